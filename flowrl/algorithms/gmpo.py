"""GMPO: one ratio per completion, the geometric mean of ratios that are clipped one by one (arXiv:2507.20673)."""

from dataclasses import replace

from flowrl.algorithms.grpo import grpo
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.surrogates import GeometricClip

PAPER = "arXiv:2507.20673"


def gmpo(*, low: float = 0.4, high: float = 0.4, length: int = 256, temperature: float = 1.0) -> Algorithm:
    """As verl has it (``geo_mean``), with the paper's bounds of .4 in logarithms."""
    return replace(
        grpo(kl=0.0, length=length, temperature=temperature),
        objective=GeometricClip(low, high),
    )
