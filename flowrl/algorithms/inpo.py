"""INPO: iterative Nash policy optimisation, a squared pair loss anchored at the reference and at the policy that
sampled (arXiv:2407.00617)."""

from dataclasses import replace
from typing import Literal

from flowrl.algorithms.gvpo import gvpo
from flowrl.parts.advantages import BestVersusWorst
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.regressions import GroupRegression
from flowrl.parts.selections import NonzeroAdvantage

PAPER = "arXiv:2407.00617"


def inpo(
    *,
    eta: float = 0.0075,
    tau: float = 0.0025,
    length: int = 256,
    temperature: float = 1.0,
    steps: int = 128,
    block: int | None = 32,
    family: Literal["causal", "masked"] = "causal",
) -> Algorithm:
    """``(h - 1 / (2 eta))^2``, h the winner's less the loser's ``log p - (tau / eta) log p_reference - (1 - tau / eta)
    log p_old``, on the best and the worst of a group. As ported by others, whose eta and tau these are; the winner
    is the one with the higher reward, where the paper asks a preference model."""
    if not 0 < tau <= eta:
        raise ValueError(f"tau={tau} over eta={eta} is the reference's share of the anchor; give 0 < tau <= eta")
    sizes = {"length": length, "temperature": temperature, "steps": steps, "block": block}
    return replace(
        gvpo(family=family, **sizes),
        advantage=BestVersusWorst(),
        objective=GroupRegression(tau / eta, target=1 / (4 * eta), scale=2.0),
        selection=NonzeroAdvantage(),
    )
