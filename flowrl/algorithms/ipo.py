"""IPO: the margin of a recorded pair is regressed to a target instead of pushed without end (arXiv:2310.12036)."""

from dataclasses import replace
from typing import Literal

from flowrl.algorithms.dpo import dpo
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.preferences import Preference

PAPER = "arXiv:2310.12036"


def ipo(
    *,
    beta: float = 0.1,
    per_token: bool = True,
    columns: tuple[str, ...] = ("chosen", "rejected"),
    ratings: tuple[str, ...] = (),
    length: int = 1024,
    draws: int = 8,
    family: Literal["causal", "masked"] = "causal",
) -> Algorithm:
    """As ported by TRL 1.16: ``(d - 1 / (2 beta))^2`` of log-ratios per token. ``per_token`` false is the paper's, of
    sums, in which beta is its tau."""
    pairs = dpo(columns=columns, ratings=ratings, length=length, draws=draws, family=family)
    return replace(pairs, objective=Preference("ipo", beta, per_token=per_token))
