"""APO-down: both answers of a recorded pair become less likely, the preferred one by less (arXiv:2408.06266)."""

from dataclasses import replace
from typing import Literal

from flowrl.algorithms.dpo import dpo
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.preferences import Preference

PAPER = "arXiv:2408.06266"


def apo_down(
    *,
    beta: float = 0.1,
    columns: tuple[str, ...] = ("chosen", "rejected"),
    ratings: tuple[str, ...] = (),
    length: int = 1024,
    draws: int = 8,
    family: Literal["causal", "masked"] = "causal",
) -> Algorithm:
    """``sigmoid(beta s_w) + sigmoid(-beta (s_w - s_l))``, as in TRL 1.16, to which the authors contributed it. For
    models that are better than the preferred answers."""
    pairs = dpo(columns=columns, ratings=ratings, length=length, draws=draws, family=family)
    return replace(pairs, objective=Preference("apo_down", beta))
