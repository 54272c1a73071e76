"""ReMax: REINFORCE with the reward of the greedy completion as baseline (arXiv:2310.10505)."""

from dataclasses import replace

from flowrl.algorithms.reinforce import reinforce
from flowrl.parts.advantages import GreedyBaseline
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.selections import AllButFirst
from flowrl.samplers.causal import CausalSampler

PAPER = "arXiv:2310.10505"


def remax(*, length: int = 256, temperature: float = 1.0) -> Algorithm:
    """The first sample of every group is greedy and only a baseline, so the paper's one sample per prompt is
    ``data.group: 2``."""
    return replace(
        reinforce(),
        sampler=CausalSampler(length=length, temperature=temperature, greedy_first=True),
        advantage=GreedyBaseline(),
        selection=AllButFirst(),
        min_group=2,
    )
