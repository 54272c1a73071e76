"""UniGRPO: ratios of mean log-probabilities under masks of a structured grid of rates (MMaDA, arXiv:2505.15809)."""

from dataclasses import replace

from flowrl.algorithms.diffu_grpo import diffu_grpo
from flowrl.estimators.masked import MaskedViews
from flowrl.estimators.views import TimeGrid
from flowrl.parts.advantages import GroupCentred
from flowrl.parts.aggregations import SampleMean
from flowrl.parts.algorithm import Algorithm

PAPER = "arXiv:2505.15809"


def unigrpo(
    *,
    clip: float = 0.2,
    kl: float = 0.01,
    draws: int = 4,
    length: int = 256,
    steps: int = 128,
    block: int | None = 32,
    temperature: float = 1.0,
) -> Algorithm:
    """The prompt is never masked. The whole grid of rates is used in every update, where the paper takes one rate per
    inner update; its clip, KL weight and grid size are not published (unverified)."""
    sizes = {"length": length, "steps": steps, "block": block, "temperature": temperature}
    return replace(
        diffu_grpo(clip=clip, kl=kl, **sizes),
        estimator=MaskedViews(views=TimeGrid(draws=draws)),
        advantage=GroupCentred(clip=None),
        aggregation=SampleMean(),
    )
