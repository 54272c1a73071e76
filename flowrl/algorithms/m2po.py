"""M2PO: the largest ratios are left out until their second moment over the batch is small (arXiv:2510.01161)."""

from dataclasses import replace

from flowrl.algorithms.grpo import grpo
from flowrl.parts.aggregations import DecisionMean
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.loss_masks import SecondMoment
from flowrl.parts.surrogates import Importance

PAPER = "arXiv:2510.01161"


def m2po(*, threshold: float = 0.04, length: int = 256, temperature: float = 1.0) -> Algorithm:
    """As ported by agentscope-ai/Trinity-RFT, over an optimiser batch. For ``train.staleness`` and many updates."""
    return replace(
        grpo(kl=0.0, length=length, temperature=temperature),
        objective=Importance(),
        loss_masks=(SecondMoment(threshold),),
        aggregation=DecisionMean(),
    )
