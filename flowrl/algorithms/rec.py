"""REC: REINFORCE on samples of any policy, with tokens left out whose ratio has moved too far (arXiv:2509.24203)."""

from dataclasses import replace
from typing import Literal

from flowrl.algorithms.grpo import grpo
from flowrl.parts.aggregations import DecisionMean
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.loss_masks import RatioMask
from flowrl.parts.objectives import ScoreFunction

PAPER = "arXiv:2509.24203"


def rec(
    *,
    low: float = 0.2,
    high: float = 0.2,
    sides: Literal["one", "two", "ring"] = "one",
    length: int = 256,
    temperature: float = 1.0,
) -> Algorithm:
    """As released (agentscope-ai/Trinity-RFT, ``rec``): no importance weights, the clip of PPO as a mask. ``sides`` are
    its one-sided, two-sided and ring form."""
    return replace(
        grpo(kl=0.0, length=length, temperature=temperature),
        objective=ScoreFunction(),
        loss_masks=(RatioMask(low, high, sides),),
        aggregation=DecisionMean(),
    )
