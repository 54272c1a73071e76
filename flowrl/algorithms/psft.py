"""PSFT: proximal supervised fine-tuning, PPO's clip on demonstrations of advantage 1 (arXiv:2508.17784)."""

from dataclasses import replace

from flowrl.algorithms.sft import sft
from flowrl.parts.aggregations import DecisionMean
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.objectives import Clipped

PAPER = "arXiv:2508.17784"


def psft(
    *,
    low: float = 0.2,
    high: float = 0.28,
    dual: float | None = 10.0,
    columns: tuple[str, ...] = ("completion",),
    length: int = 1024,
) -> Algorithm:
    """zwhong714/PSFT: ratios to the policy before the iteration's first update, clip .2 and .28, mean over tokens, no
    KL; 64 demonstrations in eight updates (`train.updates: 8`), which is what makes it differ from SFT: at the first of
    them the gradient is SFT's. The second clip of 10 acts on negative advantages, of which there are none."""
    base = sft(columns=columns, length=length)
    return replace(base, objective=Clipped(low, high, dual), aggregation=DecisionMean())
