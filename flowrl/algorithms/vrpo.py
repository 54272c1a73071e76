"""VRPO: preference optimisation on variance-reduced likelihood bounds (LLaDA 1.5, arXiv:2505.19223)."""

from dataclasses import replace

from flowrl.algorithms.elbo_pg import elbo_pg
from flowrl.parts.advantages import BestVersusWorst
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.preferences import Preference
from flowrl.parts.selections import NonzeroAdvantage

PAPER = "arXiv:2505.19223"


def vrpo(
    *,
    beta: float = 0.2,
    sft: float = 0.05,
    draws: int = 8,
    length: int = 256,
    steps: int = 128,
    block: int | None = 32,
    temperature: float = 1.0,
) -> Algorithm:
    """Pairs are the best and the worst completion of a group; the paper's come from a preference data set. One mask per
    time, the same views for policy and reference."""
    return replace(
        elbo_pg(draws=draws, length=length, steps=steps, block=block, temperature=temperature),
        advantage=BestVersusWorst(),
        objective=Preference("sigmoid", beta, sft=sft),
        selection=NonzeroAdvantage(),
    )
