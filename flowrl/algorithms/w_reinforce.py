"""Weighted REINFORCE: wrong answers are pushed down, right ones are raised a tenth as much (arXiv:2506.01347)."""

from dataclasses import replace

from flowrl.algorithms.reinforce import reinforce
from flowrl.parts.aggregations import DecisionMean
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.group_advantages import SignWeighted

PAPER = "arXiv:2506.01347"


def w_reinforce(*, positive: float = 0.1, length: int = 256, temperature: float = 1.0) -> Algorithm:
    """Reconstruction from the paper: its objective is a tenth of positive plus negative sample reinforcement, rewards 1
    and -1, no baseline. ``positive=0`` is the negative part alone, 1 is REINFORCE."""
    return replace(
        reinforce(length=length, temperature=temperature),
        advantage=SignWeighted(positive),
        aggregation=DecisionMean(),
        min_group=1,
    )
