"""SAPO: a smooth gate of the ratio instead of a clip, narrower for bad tokens (arXiv:2511.20347)."""

from dataclasses import replace

from flowrl.algorithms.grpo import grpo
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.surrogates import SoftGate

PAPER = "arXiv:2511.20347"


def sapo(*, positive: float = 1.0, negative: float = 1.05, length: int = 256, temperature: float = 1.0) -> Algorithm:
    """As TRL and verl have it (``loss_type: sapo``): temperatures 1 and 1.05, mean over a completion's tokens first."""
    return replace(
        grpo(kl=0.0, length=length, temperature=temperature),
        objective=SoftGate(positive, negative),
    )
