"""CISPO: the truncated ratio only weights the score, so no token loses its gradient (MiniMax-M1, arXiv:2506.13585)."""

from dataclasses import replace

from flowrl.algorithms.grpo import grpo
from flowrl.parts.aggregations import DecisionMean
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.objectives import ClippedWeight

PAPER = "arXiv:2506.13585"


def cispo(*, high: float = 4.0, length: int = 256, temperature: float = 1.0) -> Algorithm:
    """Ratios up to ``1 + high``, no lower bound, mean over all tokens, no KL. The paper does not print its bound; 5 is
    what TRL's documentation recommends for it."""
    return replace(
        grpo(kl=0.0, length=length, temperature=temperature),
        objective=ClippedWeight(high),
        aggregation=DecisionMean(),
    )
