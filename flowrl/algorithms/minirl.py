"""MiniRL: the score weighted by the ratio, without the tokens that PPO would clip, corrected for the sampler
(arXiv:2512.01374)."""

from dataclasses import replace

from flowrl.algorithms.grpo import grpo
from flowrl.parts.aggregations import DecisionMean
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.loss_masks import RatioMask
from flowrl.parts.objectives import ClippedWeight
from flowrl.parts.token_advantages import TruncatedImportance

PAPER = "arXiv:2512.01374"


def minirl(
    *, low: float = 0.2, high: float = 0.27, cap: float = 5.0, length: int = 256, temperature: float = 1.0
) -> Algorithm:
    """Reconstruction from the paper and notes on it: bounds and cap are not confirmed. Routers of experts are not
    replayed."""
    return replace(
        grpo(kl=0.0, length=length, temperature=temperature),
        token_advantage=(TruncatedImportance(cap),),
        objective=ClippedWeight(1e9),
        loss_masks=(RatioMask(low, high),),
        aggregation=DecisionMean(),
    )
