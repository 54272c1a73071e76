"""DNO: direct Nash optimisation, classification of a group's pairs by their expected win rates (arXiv:2404.03715)."""

from dataclasses import replace
from typing import Literal

from flowrl.algorithms.gvpo import gvpo
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.comparisons import WinRate
from flowrl.parts.regressions import SoftPairs

PAPER = "arXiv:2404.03715"


def dno(
    *,
    eta: float = 0.1,
    length: int = 256,
    temperature: float = 1.0,
    steps: int = 128,
    block: int | None = 32,
    family: Literal["causal", "masked"] = "causal",
) -> Algorithm:
    """Soft labels ``sigmoid(w_i - w_j)`` of win rates w in the group, log-ratios to the policy that sampled, over all
    pairs: the minimiser is that policy times ``exp(w / eta)``. Reconstruction of the paper's exact algorithm; its
    practical one (DPO on pairs of large margin with a teacher's answers) is not this. eta is ours."""
    sizes = {"length": length, "temperature": temperature, "steps": steps, "block": block}
    return replace(gvpo(family=family, **sizes), advantage=WinRate(), objective=SoftPairs(beta=eta))
