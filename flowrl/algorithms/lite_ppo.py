"""Lite PPO: GRPO with the standard deviation of the batch and a mean over all tokens (arXiv:2508.08221)."""

from dataclasses import replace

from flowrl.algorithms.grpo import grpo
from flowrl.parts.advantages import GroupCentred
from flowrl.parts.aggregations import DecisionMean
from flowrl.parts.algorithm import Algorithm

PAPER = "arXiv:2508.08221"


def lite_ppo(*, clip: float = 0.2, length: int = 256, temperature: float = 1.0) -> Algorithm:
    """The two tricks that the paper keeps, as TRL has them (``scale_rewards: batch``, ``loss_type: dapo``); no KL."""
    return replace(
        grpo(clip=clip, kl=0.0, length=length, temperature=temperature),
        advantage=GroupCentred(scale="global", clip=None),
        aggregation=DecisionMean(),
    )
