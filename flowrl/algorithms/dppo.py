"""DPPO: PPO on the denoising steps of a policy's action chunks, with a critic of the environment's states
(arXiv:2409.00588)."""

import math

from flowrl.estimators.episodes import PerDecision
from flowrl.estimators.transitions import Transitions
from flowrl.math.flow import DDIM, Floored
from flowrl.parts.aggregations import DecisionMean
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.episodes import DecisionRewards, EpisodeGAE, StepClip
from flowrl.parts.objectives import Clipped
from flowrl.parts.regularizers import ValueLoss
from flowrl.samplers.episodes import EpisodeSampler
from flowrl.samplers.flow import FlowSampler
from flowrl.samplers.windows import LastSteps

PAPER = "arXiv:2409.00588"
NOISE_BOUND, LOG_BOUNDS = 3.0, (-5.0, 2.0)


def dppo(
    *,
    steps: int = 20,
    tuned: int | None = 10,
    clip: float = 0.01,
    least_clip: float | None = None,
    std: float = 0.1,
    gamma: float = 0.99,
    lam: float = 0.95,
    gamma_denoise: float = 0.99,
    value: float = 0.5,
    environment: str = "avoid",
    decisions: int = 40,
) -> Algorithm:
    """The settings of irom-princeton/dppo (4 Feb 2025) for its gym tasks: of 20 steps the first 10 are made by the
    frozen base and the last 10 are tuned (``tuned: null`` tunes all; the policy acts by both networks, also exported);
    a DDPM's posterior steps, every deviation at least .1 in its units, in sampling and in the density; noise moved into
    -3 to 3, log-probabilities of single numbers into -5 to 2, then means over a chunk; clip .01 for all steps
    (``least_clip`` .001 lets it grow over the steps as for robomimic); denoising discount .99; critic rate 1e-3 beside
    1e-4 (``optimizer.critic_lr``). The clean chunk that a DDPM predicts is bounded by the model's ``bound``.

    Deviations: a flow has the same steps in its coordinates; evaluation and deployment have none of the noise that its
    evaluation keeps (all steps but the last); time limits are no ends; advantages are whitened over an iteration, there
    over a minibatch; no early stop at a KL of 1; rewards are not scaled by their running deviation.
    """
    chain = LastSteps(tuned, noise=True, densities=True)
    schedule = () if least_clip is None else (StepClip(least_clip, clip),)
    flow = FlowSampler(
        steps=steps, dynamics=Floored(DDIM(1.0), std), window=chain, noise_bound=NOISE_BOUND, guidance=1.0
    )
    return Algorithm(
        sampler=EpisodeSampler(sampler=flow, environment=environment, decisions=decisions, frozen_base=True),
        estimator=PerDecision(estimator=Transitions(reduction="mean", bounds=LOG_BOUNDS)),
        advantage=DecisionRewards(),
        token_advantage=(EpisodeGAE(gamma, lam, gamma_denoise=gamma_denoise), *schedule),
        objective=Clipped(clip, clip),
        regularizers=(ValueLoss(value, clip=math.inf),),
        aggregation=DecisionMean(),
        min_group=1,
        families=("control",),
    )
