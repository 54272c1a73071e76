"""OPMD: REINFORCE with a centred reward over 1 + tau, from the consistency of mirror descent (arXiv:2509.24203)."""

from dataclasses import replace

from flowrl.algorithms.reinforce import reinforce
from flowrl.parts.aggregations import DecisionMean
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.group_advantages import GroupShifted

PAPER = "arXiv:2509.24203"


def opmd(*, tau: float = 1.0, length: int = 256, temperature: float = 1.0) -> Algorithm:
    """As released (agentscope-ai/Trinity-RFT, ``opmd``), with the mean of the group as baseline: at the old policy the
    gradient of ``(A - tau log ratio)^2``, over ``-2 tau (1 + tau)``."""
    return replace(
        reinforce(length=length, temperature=temperature),
        advantage=GroupShifted(scale=1 / (1 + tau)),
        aggregation=DecisionMean(),
        min_group=2,
    )
