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
from flowrl.samplers.windows import EveryStep

PAPER = "arXiv:2409.00588"


def dppo(
    *,
    steps: int = 10,
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
    """The settings of irom-princeton/dppo (4 Feb 2025) for its gym tasks: every step's deviation at least .1, in
    sampling and in the density; log-probabilities are means over a chunk's numbers; clip .01 for all steps
    (``least_clip`` .001 lets it grow over the steps as for robomimic); denoising discount .99; critic rate 1e-3 beside
    1e-4 (``optimizer.critic_lr``).

    Deviations: a flow's posterior steps (DDIM with eta 1 in flow coordinates) where the release has a DDPM's, and all
    steps are tuned instead of the last 10 of 20; log-probabilities, noise and the last action are not clamped, so the
    ratio is one of densities; time limits are no ends; advantages are whitened over an iteration.
    """
    schedule = () if least_clip is None else (StepClip(least_clip, clip),)
    flow = FlowSampler(steps=steps, dynamics=Floored(DDIM(1.0), std), window=EveryStep(drop=0), guidance=1.0)
    return Algorithm(
        sampler=EpisodeSampler(sampler=flow, environment=environment, decisions=decisions),
        estimator=PerDecision(estimator=Transitions(reduction="mean")),
        advantage=DecisionRewards(),
        token_advantage=(EpisodeGAE(gamma, lam, gamma_denoise=gamma_denoise), *schedule),
        objective=Clipped(clip, clip),
        regularizers=(ValueLoss(value, clip=math.inf),),
        aggregation=DecisionMean(),
        min_group=1,
        families=("control",),
    )
