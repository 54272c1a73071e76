"""RPO: DPO plus imitation of the preferred answer, against over-optimised rewards (arXiv:2405.16436)."""

from dataclasses import replace
from typing import Literal

from flowrl.algorithms.dpo import dpo
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.preferences import Preference

PAPER = "arXiv:2405.16436"


def rpo(
    *,
    beta: float = 0.1,
    sft: float = 1.0,
    columns: tuple[str, ...] = ("chosen", "rejected"),
    ratings: tuple[str, ...] = (),
    length: int = 1024,
    draws: int = 8,
    family: Literal["causal", "masked"] = "causal",
) -> Algorithm:
    """As ported by TRL 1.16 (``loss_type=[sigmoid, sft]``, weights 1 and 1): the log-likelihood is the mean over the
    preferred tokens of the batch. The paper's is a sum with a weight of .005 (unverified)."""
    pairs = dpo(columns=columns, ratings=ratings, length=length, draws=draws, family=family)
    return replace(pairs, objective=Preference("sigmoid", beta, sft=sft, sft_over="batch"))
