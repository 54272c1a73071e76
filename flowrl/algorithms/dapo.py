"""DAPO: GRPO with a higher upper clip, a mean over all tokens, flat groups replaced and no KL (arXiv:2503.14476)."""

from dataclasses import replace

from flowrl.algorithms.grpo import grpo
from flowrl.parts.aggregations import DecisionMean
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.objectives import Clipped
from flowrl.parts.selections import ReplaceFlatGroups

PAPER = "arXiv:2503.14476"


def dapo(*, low: float = 0.2, high: float = 0.28, length: int = 256, temperature: float = 1.0) -> Algorithm:
    """Dynamic sampling is the selection (`ReplaceFlatGroups`: up to ten rounds; ``selection: drop_flat_groups`` samples
    once). The soft punishment of overlong completions is a reward: `length_penalty`."""
    return replace(
        grpo(kl=0.0, length=length, temperature=temperature),
        objective=Clipped(low, high),
        selection=ReplaceFlatGroups(),
        aggregation=DecisionMean(),
    )
