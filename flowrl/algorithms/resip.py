"""ResiP: PPO of a small network that corrects every action of a frozen policy of chunks (arXiv:2407.16677)."""

import math

from flowrl.estimators.episodes import PerDecision
from flowrl.estimators.gaussian import ResidualActions
from flowrl.parts.aggregations import DecisionMean
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.episodes import DecisionRewards, EpisodeGAE
from flowrl.parts.objectives import Clipped
from flowrl.parts.regularizers import ValueLoss
from flowrl.samplers.flow import FlowSampler
from flowrl.samplers.residual import ResidualEpisodes

PAPER = "arXiv:2407.16677"


def resip(
    *,
    scale: float = 0.1,
    log_std: float = -1.0,
    steps: int = 10,
    clip: float = 0.2,
    value: float = 1.0,
    gamma: float = 0.999,
    lam: float = 0.95,
    environment: str = "avoid",
    decisions: int = 40,
) -> Algorithm:
    """The settings of ankile/robust-rearrangement (26 Nov 2024, src/config/base_residual_rl.yaml): a residual of two
    layers of 256 that reads the observation and the policy's action, begins at 0 and is scaled by .1, with a fixed
    deviation of exp(-1) before the scale; clip .2, value loss 1 of half the squared error, without a clip, gamma .999
    and lambda .95 per step of the environment; a time limit is an end; there also 50 epochs over all steps at once,
    ended at a KL of .1, AdamW at rate 3e-4 (5 iterations of warm-up, then a cosine), 5e-3 of the critic
    (``optimizer.critic_lr``), decay 1e-6, gradients clipped at 1.

    Deviations: the policy takes ``steps`` Euler steps, as it is deployed (there DDIM, 4 of 100), and executes the whole
    of its chunks (there 8 of 32 actions); epochs do not end at a KL; whole episodes; advantages are whitened over an
    iteration; rewards are not divided by the deviation of returns; the critic has tanh layers of 128, and gradients are
    clipped together with its own as there, the optimiser's eps is torch's.
    """
    return Algorithm(
        sampler=ResidualEpisodes(
            sampler=FlowSampler(steps=steps, guidance=1.0),
            environment=environment,
            decisions=decisions,
            scale=scale,
            log_std=log_std,
        ),
        estimator=PerDecision(estimator=ResidualActions()),
        advantage=DecisionRewards(),
        token_advantage=(EpisodeGAE(gamma, lam, truncation="terminate"),),
        objective=Clipped(clip, clip),
        regularizers=(ValueLoss(value, clip=math.inf),),
        aggregation=DecisionMean(),
        min_group=1,
        families=("control",),
    )
