"""Delta-L: completions weighted by a power of their length, so that the mean has little variance (arXiv:2509.07558)."""

from dataclasses import replace

from flowrl.algorithms.grpo import grpo
from flowrl.parts.aggregations import LengthPower
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.objectives import Clipped

PAPER = "arXiv:2509.07558"


def delta_l(
    *, power: float = 1.0, low: float = 0.2, high: float = 0.3, length: int = 256, temperature: float = 1.0
) -> Algorithm:
    """As released (zerolllin/Delta-L-Normalization) for countdown; .75 for mathematics. ``power=0`` divides all by the
    sampler's length."""
    return replace(
        grpo(kl=0.0, length=length, temperature=temperature),
        objective=Clipped(low, high),
        aggregation=LengthPower(power),
    )
