"""CoPG: contrastive policy gradient, whose loss on pairs leads samples of any distribution to the reference tilted by
the reward (arXiv:2406.19185)."""

from dataclasses import replace
from typing import Literal

from flowrl.algorithms.gvpo import gvpo
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.regressions import GroupRegression

PAPER = "arXiv:2406.19185"


def copg(
    *,
    beta: float = 0.1,
    length: int = 256,
    temperature: float = 1.0,
    steps: int = 128,
    block: int | None = 32,
    family: Literal["causal", "masked"] = "causal",
) -> Algorithm:
    """``(R_i - R_j)^2`` of the rewards ``R = r - beta log p / p_reference``, summed over a group's pairs and divided by
    n (n - 1), which is each sample's share of the sum over pairs that Cohere's Command A report divides by n - 1.
    Reconstruction: there is no released code; the paper's beta depends on its reward model."""
    sizes = {"length": length, "temperature": temperature, "steps": steps, "block": block}
    return replace(gvpo(family=family, **sizes), objective=GroupRegression(reference_share=1.0, beta=beta))
