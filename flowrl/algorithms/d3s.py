"""D3S: the samples whose advantages vary most, and of them the tokens of large advantage and entropy
(arXiv:2509.22115)."""

from dataclasses import replace

from flowrl.algorithms.grpo import grpo
from flowrl.parts.aggregations import DecisionMean
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.loss_masks import TopEntropy
from flowrl.parts.selections import MostVaried

PAPER = "arXiv:2509.22115"


def d3s(
    *, fraction: float = 0.5, share: float = 0.5, clip: float = 0.2, length: int = 256, temperature: float = 1.0
) -> Algorithm:
    """Reconstruction from the abstract: both shares are ours, and stay as they are, where the paper relaxes them over
    the run (a coefficient on ``selection.fraction`` and ``loss_masks.0.share`` does so)."""
    return replace(
        grpo(clip=clip, kl=0.0, length=length, temperature=temperature),
        selection=MostVaried(fraction),
        loss_masks=(TopEntropy(share, by_advantage=True),),
        aggregation=DecisionMean(),
    )
