"""GSPO: one clipped, length-normalised ratio per completion (arXiv:2507.18071)."""

from dataclasses import replace

from flowrl.algorithms.grpo import grpo
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.objectives import ClippedMean

PAPER = "arXiv:2507.18071"


def gspo(*, low: float = 3e-4, high: float = 4e-4, length: int = 256, temperature: float = 1.0) -> Algorithm:
    """The paper's clip range, no KL."""
    return replace(grpo(kl=0.0, length=length, temperature=temperature), objective=ClippedMean(low, high))
