"""ORPO: imitation of the preferred answer plus the log odds ratio of a recorded pair, without a reference
(arXiv:2403.07691)."""

from dataclasses import replace
from typing import Literal

from flowrl.algorithms.dpo import dpo
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.preferences import ReferenceFree

PAPER = "arXiv:2403.07691"


def orpo(
    *,
    beta: float = 0.1,
    columns: tuple[str, ...] = ("chosen", "rejected"),
    ratings: tuple[str, ...] = (),
    length: int = 1024,
    draws: int = 8,
    family: Literal["causal", "masked"] = "causal",
) -> Algorithm:
    """``NLL - beta log sigmoid(log odds_w - log odds_l)`` with beta .1, as in xfactlab/orpo (its ``alpha``) and TRL.

    Deviation: the NLL is that of the completion; both codes count the prompt's tokens as well."""
    pairs = dpo(columns=columns, ratings=ratings, length=length, draws=draws, family=family)
    return replace(pairs, objective=ReferenceFree("odds", 1.0, weight=beta, sft=1.0, sft_over="batch"))
