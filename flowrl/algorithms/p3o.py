"""P3O: pairwise proximal policy optimisation on differences of rewards, unmoved by what a prompt's rewards share
(arXiv:2310.00212)."""

from dataclasses import replace
from typing import Literal

from flowrl.algorithms.gvpo import gvpo
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.regressions import PairwiseClipped

PAPER = "arXiv:2310.00212"


def p3o(
    *,
    clip: float = 0.2,
    length: int = 256,
    temperature: float = 1.0,
    steps: int = 128,
    block: int | None = 32,
    family: Literal["causal", "masked"] = "causal",
) -> Algorithm:
    """Ratios of whole completions, clipped separately for each of a pair, mean over all pairs of a group.
    Reconstruction from the abstract and the authors' article: the clip range, and the form in which both ratios are
    clipped together, were not seen; the KL of the paper is `token_advantage: kl_in_reward`."""
    sizes = {"length": length, "temperature": temperature, "steps": steps, "block": block}
    return replace(gvpo(family=family, **sizes), objective=PairwiseClipped(clip, clip))
