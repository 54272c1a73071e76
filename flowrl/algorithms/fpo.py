"""FPO: PPO on the ratio of exponentiated flow-matching losses (arXiv:2507.21053)."""

from flowrl.estimators.matching import Matching
from flowrl.estimators.times import GridTimes
from flowrl.parts.advantages import GroupCentred
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.objectives import ClippedMean
from flowrl.samplers.flow import FlowSampler

PAPER = "arXiv:2507.21053"


def fpo(*, clip: float = 0.05, draws: int = 8, steps: int = 10) -> Algorithm:
    """Noise-prediction error (weight ``(1-t)^2``) averaged over the draws before the exponential. The paper's control
    tasks use a critic; an image is one action with one reward, so the group stands in for it."""
    return Algorithm(
        sampler=FlowSampler(steps=steps, guidance=1.0),
        estimator=Matching(draws=draws, times=GridTimes(fraction=1.0, stratified=True), weight="noise", guidance=1.0),
        advantage=GroupCentred(scale="group", ddof=1, eps=1e-8),
        objective=ClippedMean(clip, clip),
    )
