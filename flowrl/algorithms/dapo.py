"""DAPO: GRPO with a higher upper clip, a mean over all tokens, flat groups left out and no KL (arXiv:2503.14476)."""

from dataclasses import replace

from flowrl.algorithms.grpo import grpo
from flowrl.parts.aggregations import DecisionMean
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.objectives import Clipped
from flowrl.parts.selections import DropFlatGroups

PAPER = "arXiv:2503.14476"


def dapo(*, low: float = 0.2, high: float = 0.28, length: int = 256, temperature: float = 1.0) -> Algorithm:
    """Flat groups are dropped, not replaced by further sampling. The soft punishment of overlong completions is a
    reward: `length_penalty`."""
    return replace(
        grpo(kl=0.0, length=length, temperature=temperature),
        objective=Clipped(low, high),
        selection=DropFlatGroups(),
        aggregation=DecisionMean(),
    )
