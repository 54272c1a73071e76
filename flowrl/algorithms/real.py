"""REAL: rewards as labels, an anchored softmax over a group's right and wrong samples with bounded weights
(arXiv:2602.05630)."""

from dataclasses import replace
from typing import Literal

from flowrl.algorithms.gvpo import gvpo
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.comparisons import Labels
from flowrl.parts.labels import AnchoredLabels

PAPER = "arXiv:2602.05630"


def real(
    *,
    tau: float = 0.5,
    threshold: float = 0.5,
    length: int = 256,
    temperature: float = 1.0,
    steps: int = 128,
    block: int | None = 32,
    family: Literal["causal", "masked"] = "causal",
) -> Algorithm:
    """Reconstruction from notes on the paper: mean log-ratios per token, temperature .5, one anchor logit 0, mean over
    groups. Groups that are all right or all wrong are learned from. Rewards above ``threshold`` are right."""
    sizes = {"length": length, "temperature": temperature, "steps": steps, "block": block}
    return replace(gvpo(family=family, **sizes), advantage=Labels(threshold), objective=AnchoredLabels(tau))
