"""ReinFlow: PPO on the chain of a flow's steps, whose noise is learned (arXiv:2505.22094)."""

import math

from flowrl.estimators.episodes import PerDecision
from flowrl.estimators.noisy import NoisyChain
from flowrl.parts.aggregations import DecisionMean
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.episodes import DecisionRewards, EpisodeGAE
from flowrl.parts.objectives import Clipped
from flowrl.parts.regularizers import ActionShift, Entropy, ValueLoss
from flowrl.parts.schedules import HoldCosine
from flowrl.samplers.episodes import EpisodeSampler
from flowrl.samplers.noisy import NoisyFlowSampler

PAPER = "arXiv:2505.22094"
HELD, LEFT, MOST = 0.35, 0.7, "sampler.sampler.most"


def reinflow(
    *,
    steps: int = 4,
    clip: float = 0.01,
    least: float = 0.1,
    most: float = 0.24,
    entropy: float = 0.03,
    behaviour: float = 0.0,
    iterations: int = 1000,
    gamma: float = 0.99,
    lam: float = 0.95,
    value: float = 0.5,
    environment: str = "avoid",
    decisions: int = 40,
) -> Algorithm:
    """The settings of ReinFlow/ReinFlow (23 Jun 2025) for its gym tasks: 4 steps, deviations from ``least`` to ``most``
    by a small network of observation and time, one ratio per decision of log-probabilities that are means over steps
    and numbers, moved into -1 to 1; clip .01, entropy .03; rate 4.5e-5, critic 6.5e-4 (``optimizer.critic_lr``). In the
    last .65 of ``iterations`` (give those of the run) ``most`` falls by a cosine to ``least + .7 (most - least)``.
    ``behaviour`` .1 with entropy 0 is its variant that holds the flow's action from z = 0 to the base's.

    Deviations: sampling and density share one grid of times (there a rectified flow is sampled at 0, 1/3, 2/3, 1 and
    measured at 0, 1/4, 1/2, 3/4: of a toy, 95 % of the first ratios are outside the clip); states, noise and the last
    action are not clamped, so the ratio is one of densities; deviations are of standardised actions, there of actions
    in -1 to 1; both flows of ``behaviour`` start from z = 0 (there the base's first step moves where the other starts);
    time limits are no ends; advantages are whitened over an iteration.
    """
    if iterations < 1:
        raise ValueError(f"iterations={iterations} are those of the run; give 1 or more")
    held = int(iterations * HELD)
    lowest = least + LEFT * (most - least)
    lowered = HoldCosine(sets=MOST, start=most, end=lowest, hold=held, decay=iterations - held)
    return Algorithm(
        sampler=EpisodeSampler(
            sampler=NoisyFlowSampler(steps=steps, least=least, most=most), environment=environment, decisions=decisions
        ),
        estimator=PerDecision(estimator=NoisyChain()),
        advantage=DecisionRewards(),
        token_advantage=(EpisodeGAE(gamma, lam),),
        objective=Clipped(clip, clip),
        regularizers=(ValueLoss(value, clip=math.inf), Entropy(entropy), ActionShift(behaviour)),
        coefficients=(lowered,),
        aggregation=DecisionMean(),
        min_group=1,
        families=("control",),
    )
