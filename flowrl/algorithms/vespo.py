"""VESPO: completions weighted by a smooth function of their whole ratio, without normalising by length
(arXiv:2602.10693)."""

from dataclasses import replace

from flowrl.algorithms.grpo import grpo
from flowrl.parts.aggregations import DecisionMean
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.surrogates import GammaWeight

PAPER = "arXiv:2602.10693"


def vespo(*, length: int = 256, temperature: float = 1.0) -> Algorithm:
    """As TRL has it (``loss_type: vespo``): ``(k, lambda)`` is (2, 3) for good completions and (3, 2) for bad ones."""
    return replace(
        grpo(kl=0.0, length=length, temperature=temperature),
        objective=GammaWeight(),
        aggregation=DecisionMean(),
    )
