"""CPO: a logistic loss of the log-probabilities of a recorded pair without a reference, plus imitation of the
preferred one (arXiv:2401.08417)."""

from dataclasses import replace
from typing import Literal

from flowrl.algorithms.dpo import dpo
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.preferences import ReferenceFree

PAPER = "arXiv:2401.08417"


def cpo(
    *,
    beta: float = 0.1,
    sft: float = 1.0,
    columns: tuple[str, ...] = ("chosen", "rejected"),
    ratings: tuple[str, ...] = (),
    length: int = 1024,
    draws: int = 8,
    family: Literal["causal", "masked"] = "causal",
) -> Algorithm:
    """Defaults of TRL 1.16, whose CPOTrainer is the authors' (fe1ixxu/ALMA): the NLL is the mean over all preferred
    tokens of the batch."""
    pairs = dpo(columns=columns, ratings=ratings, length=length, draws=draws, family=family)
    return replace(pairs, objective=ReferenceFree("sum", beta, sft=sft, sft_over="batch"))
