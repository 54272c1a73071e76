"""max@k: the policy gradient of the best of k samples (arXiv:2510.23393)."""

from dataclasses import replace

from flowrl.algorithms.reinforce import reinforce
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.group_advantages import MaxAtK

PAPER = "arXiv:2510.23393"


def maxk(*, k: int = 2, length: int = 256, temperature: float = 1.0) -> Algorithm:
    """The paper's on-policy estimator with the group's mean as baseline, on whole completions; k and data.group are
    those of an experiment there. ``advantage: {baseline: none}`` is unbiased."""
    return replace(reinforce(length=length, temperature=temperature), advantage=MaxAtK(k), min_group=2)
