"""Reward-weighted regression: imitate samples in proportion to ``exp(reward / temperature)`` (Peters & Schaal 2007)."""

from flowrl.estimators.matching import Matching
from flowrl.estimators.times import LogitNormalTimes
from flowrl.parts.advantages import ExponentialWeight
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.objectives import ScoreFunction
from flowrl.samplers.flow import FlowSampler

PAPER = "Peters & Schaal 2007"


def rwr(*, temperature: float = 0.2, draws: int = 4, steps: int = 10, guidance: float | None = None) -> Algorithm:
    """Weighted flow matching on the policy's own samples. With guided rollouts the conditional branch learns the
    guided output."""
    return Algorithm(
        sampler=FlowSampler(steps=steps, guidance=guidance),
        estimator=Matching(draws=draws, times=LogitNormalTimes(), weight="uniform", guidance=1.0),
        advantage=ExponentialWeight(temperature),
        objective=ScoreFunction(),
        min_group=1,
    )
