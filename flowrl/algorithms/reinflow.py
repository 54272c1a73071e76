"""ReinFlow: PPO on the chain of a flow's steps, whose noise is learned (arXiv:2505.22094)."""

import math

from flowrl.estimators.episodes import PerDecision
from flowrl.estimators.noisy import NoisyChain
from flowrl.parts.aggregations import DecisionMean
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.episodes import DecisionRewards, EpisodeGAE
from flowrl.parts.objectives import Clipped
from flowrl.parts.regularizers import Entropy, ValueLoss
from flowrl.samplers.episodes import EpisodeSampler
from flowrl.samplers.noisy import NoisyFlowSampler

PAPER = "arXiv:2505.22094"


def reinflow(
    *,
    steps: int = 4,
    clip: float = 0.01,
    least: float = 0.1,
    most: float = 0.24,
    entropy: float = 0.03,
    gamma: float = 0.99,
    lam: float = 0.95,
    value: float = 0.5,
    environment: str = "avoid",
    decisions: int = 40,
) -> Algorithm:
    """The settings of ReinFlow/ReinFlow (23 Jun 2025) for its gym tasks: 4 steps, deviations from ``least`` to ``most``
    by a small network of observation and time, one ratio per decision of log-probabilities that are means over steps
    and numbers, moved into -1 to 1; clip .01, entropy .03; rate 4.5e-5, critic 6.5e-4 (``optimizer.critic_lr``).

    Deviations: sampling and density share one grid of times (there a rectified flow is sampled at 0, 1/3, 2/3, 1 and
    measured at 0, 1/4, 1/2, 3/4: of a toy, 95 % of the first ratios are outside the clip); states, noise and the last
    action are not clamped, so the ratio is one of densities; deviations are of standardised actions, there of actions
    in -1 to 1; ``most`` is not lowered while training; time limits are no ends; advantages are whitened over an
    iteration.
    """
    return Algorithm(
        sampler=EpisodeSampler(
            sampler=NoisyFlowSampler(steps=steps, least=least, most=most), environment=environment, decisions=decisions
        ),
        estimator=PerDecision(estimator=NoisyChain()),
        advantage=DecisionRewards(),
        token_advantage=(EpisodeGAE(gamma, lam),),
        objective=Clipped(clip, clip),
        regularizers=(ValueLoss(value, clip=math.inf), Entropy(entropy)),
        aggregation=DecisionMean(),
        min_group=1,
        families=("control",),
    )
