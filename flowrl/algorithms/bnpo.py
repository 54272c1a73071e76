"""BNPO: rewards scaled by a Beta density that follows how often prompts are solved (arXiv:2506.02864)."""

from dataclasses import replace

from flowrl.algorithms.grpo import grpo
from flowrl.parts.aggregations import SampleSum
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.group_advantages import BetaNormalised
from flowrl.parts.objectives import Clipped

PAPER = "arXiv:2506.02864"


def bnpo(
    *, low: float = 0.2, high: float = 0.28, dual: float = 10.0, length: int = 256, temperature: float = 1.0
) -> Algorithm:
    """As released (changyi7231/BNPO): clip .2, .28 and 10, sums over tokens, no KL; 32 prompts of 16. Not TRL's loss
    type of that name."""
    return replace(
        grpo(kl=0.0, length=length, temperature=temperature),
        advantage=BetaNormalised(),
        objective=Clipped(low, high, dual),
        aggregation=SampleSum(),
    )
