"""RLOO: REINFORCE with the mean of the group's other samples as baseline (arXiv:2402.14740)."""

from dataclasses import replace

from flowrl.algorithms.reinforce import reinforce
from flowrl.parts.advantages import LeaveOneOut
from flowrl.parts.algorithm import Algorithm

PAPER = "arXiv:2402.14740"


def rloo(*, length: int = 256, temperature: float = 1.0) -> Algorithm:
    """Unbiased, without a standard deviation. The paper's KL belongs to its reward; add one with `token_advantage`."""
    return replace(reinforce(length=length, temperature=temperature), advantage=LeaveOneOut(), min_group=2)
