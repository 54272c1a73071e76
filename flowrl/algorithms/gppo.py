"""GPPO: clipped tokens keep a bounded gradient (Klear-Reasoner, arXiv:2508.07629)."""

from dataclasses import replace

from flowrl.algorithms.grpo import grpo
from flowrl.parts.aggregations import DecisionMean
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.surrogates import PreservedClip

PAPER = "arXiv:2508.07629"


def gppo(*, low: float = 0.2, high: float = 0.2, length: int = 256, temperature: float = 1.0) -> Algorithm:
    """As released (suu990901/KlearReasoner): the loss is PPO's, the gradient beyond the clip is that of its limit."""
    return replace(
        grpo(kl=0.0, length=length, temperature=temperature),
        objective=PreservedClip(low, high),
        aggregation=DecisionMean(),
    )
