"""BGPO: a linearised lower bound of the objective that is a sum over views, at the memory of one (arXiv:2510.11683)."""

from dataclasses import replace

from flowrl.algorithms.elbo_pg import elbo_pg
from flowrl.parts.advantages import GroupCentred
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.objectives import LinearBound

PAPER = "arXiv:2510.11683"


def bgpo(
    *, draws: int = 16, length: int = 256, steps: int = 128, block: int | None = 32, temperature: float = 1.0
) -> Algorithm:
    """Sixteen views per completion; ``train.micro_batch`` of them are in memory at once. The paper's views hide each
    token with probability t at weight 1 / t; counts with weight L / k estimate the same bound with less
    variance."""
    return replace(
        elbo_pg(draws=draws, length=length, steps=steps, block=block, temperature=temperature),
        advantage=GroupCentred(clip=None),
        objective=LinearBound(),
    )
