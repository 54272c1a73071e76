"""ATR-GRPO: ratios are clipped where the estimate k3 of the divergence reaches a bound (arXiv:2602.05494)."""

from dataclasses import replace

from flowrl.algorithms.grpo import grpo
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.surrogates import DivergenceClip

PAPER = "arXiv:2602.05494"


def kl3_clip(*, delta: float = 0.05, length: int = 256, temperature: float = 1.0) -> Algorithm:
    """As ported by others; the authors' bound is not known: .05 are ratios from .716 to 1.350, .033 is nearest to
    DAPO's."""
    return replace(
        grpo(kl=0.0, length=length, temperature=temperature),
        objective=DivergenceClip(delta),
    )
