"""PACS: rewards as labels of a classifier whose logit is a sample's log-ratio less that of its siblings
(arXiv:2509.02522)."""

from dataclasses import replace
from typing import Literal

from flowrl.algorithms.gvpo import gvpo
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.comparisons import Labels
from flowrl.parts.labels import LabelContrast

PAPER = "arXiv:2509.02522"


def pacs(
    *,
    beta: float = 1.0,
    balanced: bool = False,
    threshold: float = 0.5,
    length: int = 256,
    temperature: float = 1.0,
    steps: int = 128,
    block: int | None = 32,
    family: Literal["causal", "masked"] = "causal",
) -> Algorithm:
    """ritzz-ai/PACS: binary cross entropy, the log-ratio to the policy that sampled summed over tokens and compared
    leave-one-out, beta 1 or 2 by script. ``balanced`` is its class weights. Rewards above ``threshold`` are right.
    Padding is left out of the sum, which the release forgets on one path."""
    sizes = {"length": length, "temperature": temperature, "steps": steps, "block": block}
    return replace(gvpo(family=family, **sizes), advantage=Labels(threshold), objective=LabelContrast(beta, balanced))
