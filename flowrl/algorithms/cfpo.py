"""CFPO: a quadratic penalty from the total variation instead of a clip (arXiv:2601.22801)."""

from dataclasses import replace

from flowrl.algorithms.grpo import grpo
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.surrogates import Quadratic

PAPER = "arXiv:2601.22801"


def cfpo(*, clip: float = 0.2, length: int = 256, temperature: float = 1.0) -> Algorithm:
    """As two independent ports have its equation 7: `spo_simple` with a mean over a completion's tokens first. Without
    KL, which the paper has as an option."""
    return replace(
        grpo(kl=0.0, length=length, temperature=temperature),
        objective=Quadratic(clip),
    )
