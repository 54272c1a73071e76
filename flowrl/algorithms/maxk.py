"""max@k: the policy gradient of the best of k samples (arXiv:2510.23393)."""

from dataclasses import replace

from flowrl.algorithms.reinforce import reinforce
from flowrl.parts.advantages import RawReward
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.group_advantages import MaxAtK
from flowrl.parts.set_objectives import BestOfK

PAPER = "arXiv:2510.23393"


def maxk(*, k: int = 2, off_policy: bool = False, length: int = 256, temperature: float = 1.0) -> Algorithm:
    """The paper's on-policy estimator with the group's mean as baseline, on whole completions; k and data.group are
    those of an experiment there. ``advantage: {baseline: none}`` is unbiased. ``off_policy`` weights every set of k by
    how far the policy has moved on it, to first order, for several updates on the same samples."""
    algorithm = replace(reinforce(length=length, temperature=temperature), min_group=2)
    if off_policy:
        return replace(algorithm, advantage=RawReward(), objective=BestOfK(k))
    return replace(algorithm, advantage=MaxAtK(k))
