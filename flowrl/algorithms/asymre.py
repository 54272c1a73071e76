"""AsymRE: REINFORCE with a baseline a little below the mean of the samples, for samples of any policy
(arXiv:2506.20520)."""

from dataclasses import replace

from flowrl.algorithms.reinforce import reinforce
from flowrl.parts.aggregations import DecisionMean
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.group_advantages import GroupShifted

PAPER = "arXiv:2506.20520"


def asymre(*, shift: float = -0.1, length: int = 256, temperature: float = 1.0) -> Algorithm:
    """As ported by agentscope-ai/Trinity-RFT: the mean of the group and -.1. No importance weights."""
    return replace(
        reinforce(length=length, temperature=temperature),
        advantage=GroupShifted(shift=shift),
        aggregation=DecisionMean(),
        min_group=2,
    )
