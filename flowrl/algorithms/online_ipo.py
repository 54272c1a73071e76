"""Online IPO: identity preference optimisation on pairs that the policy samples, whose gradient vanishes at the
regularised Nash equilibrium (arXiv:2403.08635)."""

from dataclasses import replace
from typing import Literal

from flowrl.algorithms.gvpo import gvpo
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.comparisons import WinRate
from flowrl.parts.regressions import GroupRegression

PAPER = "arXiv:2403.08635"


def online_ipo(
    *,
    tau: float = 0.1,
    length: int = 256,
    temperature: float = 1.0,
    steps: int = 128,
    block: int | None = 32,
    family: Literal["causal", "masked"] = "causal",
) -> Algorithm:
    """``(s_i - s_j - (P_ij - 1/2) / tau)^2`` over all pairs of a group, s the log-ratio to the reference, P 1 for the
    higher reward, 1/2 for equal ones. Reconstruction from the formula: no released code; tau .1 is ours. Momentum
    (Adam's first beta) lets it orbit intransitive preferences; without it and with a falling rate it settles."""
    sizes = {"length": length, "temperature": temperature, "steps": steps, "block": block}
    return replace(
        gvpo(family=family, **sizes),
        advantage=WinRate(),
        objective=GroupRegression(reference_share=1.0, target=1 / tau, scale=2.0),
    )
