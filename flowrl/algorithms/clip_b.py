"""Clip_B: bad tokens are left out where pushing them down would lower the entropy most (arXiv:2602.03392)."""

from dataclasses import replace

from flowrl.algorithms.grpo import grpo
from flowrl.parts.aggregations import DecisionMean
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.loss_masks import EntropyDiscriminator

PAPER = "arXiv:2602.03392"


def clip_b(*, width: float = 2.5, clip: float = 0.2, length: int = 256, temperature: float = 1.0) -> Algorithm:
    """As released (agentscope-ai/Trinity-RFT): 2.5 standard deviations of the batch; what is left out does not count in
    the mean. Its second form, Clip_V, needs the distribution of every token and is not built."""
    return replace(
        grpo(clip=clip, kl=0.0, length=length, temperature=temperature),
        loss_masks=(EntropyDiscriminator(width),),
        aggregation=DecisionMean(),
    )
