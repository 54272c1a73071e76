"""RAFT: fine-tune on the best sample of each group (arXiv:2304.06767)."""

from dataclasses import replace

from flowrl.algorithms.rwr import rwr
from flowrl.parts.advantages import BestOfGroup
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.selections import DropFlatGroups

PAPER = "arXiv:2304.06767"


def raft(*, draws: int = 4, steps: int = 10, guidance: float | None = None) -> Algorithm:
    """`rwr` with all weight on the winner (shared among ties); groups without a winner are left out."""
    return replace(
        rwr(draws=draws, steps=steps, guidance=guidance),
        advantage=BestOfGroup(),
        selection=DropFlatGroups(),
        min_group=2,
    )
