"""FPO: PPO on the ratio of exponentiated flow-matching losses (arXiv:2507.21053)."""

from flowrl.estimators.matching import Matching
from flowrl.estimators.times import NOISE_TIME, GridTimes
from flowrl.parts.advantages import GroupCentred
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.objectives import ClippedMean
from flowrl.samplers.flow import FlowSampler

PAPER = "arXiv:2507.21053"


def fpo(*, clip: float = 0.05, draws: int = 8, steps: int = 10) -> Algorithm:
    """The settings of akanazawa/fpo (12 Jan 2026, playground): noise-prediction error (weight ``(1-t)^2``), averaged
    over the draws before the exponential, clip 0.05. For images prefer `fpo_pp`: here nothing bounds how far bad
    samples are repelled, because a clip on the mean of the draws hardly ever acts, and training collapses.

    Deviations: the release's tasks are control, whose grid ends at t = 1 / steps; the last time of an image model's
    grid can be 0.001 or 0.009, where the error tells nothing of the policy and has the largest gradient of all, so
    times below ``NOISE_TIME`` are left out. The times of a sample are spread over the grid instead of drawn
    independently. The paper uses a critic; an image is one action with one reward, so the group stands in for it.
    """
    return Algorithm(
        sampler=FlowSampler(steps=steps, guidance=1.0),
        estimator=Matching(
            draws=draws,
            times=GridTimes(fraction=1.0, stratified=True, least=NOISE_TIME),
            weight="noise",
            guidance=1.0,
        ),
        advantage=GroupCentred(scale="group", ddof=1, eps=1e-8),
        objective=ClippedMean(clip, clip),
    )
