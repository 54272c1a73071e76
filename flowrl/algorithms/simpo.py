"""SimPO: log-probabilities per token of a recorded pair, with a target margin and no reference (arXiv:2405.14734)."""

from dataclasses import replace
from typing import Literal

from flowrl.algorithms.dpo import dpo
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.preferences import ReferenceFree

PAPER = "arXiv:2405.14734"


def simpo(
    *,
    beta: float = 2.0,
    margin: float = 0.5,
    columns: tuple[str, ...] = ("chosen", "rejected"),
    ratings: tuple[str, ...] = (),
    length: int = 1024,
    draws: int = 8,
    family: Literal["causal", "masked"] = "causal",
) -> Algorithm:
    """``-log sigmoid(beta (mean log p_w - mean log p_l) - margin)``. beta 2 and margin .25 beta are the defaults of
    princeton-nlp/SimPO (``gamma_beta_ratio``); its recipes have 2 to 10 and .3 to .5 beta. TRL's default beta of .1 is
    that of other losses."""
    pairs = dpo(columns=columns, ratings=ratings, length=length, draws=draws, family=family)
    return replace(pairs, objective=ReferenceFree("mean", beta, margin))
