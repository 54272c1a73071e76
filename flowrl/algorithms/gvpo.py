"""GVPO: regression of a group's centred log-ratios on its centred rewards, valid for samples of any distribution
(arXiv:2504.19599)."""

from dataclasses import replace
from typing import Literal

from flowrl.algorithms.elbo_pg import elbo_pg
from flowrl.algorithms.grpo import grpo
from flowrl.parts.advantages import GroupCentred
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.regressions import GroupRegression

PAPER = "arXiv:2504.19599"


def gvpo(
    *,
    beta: float = 0.1,
    length: int = 256,
    temperature: float = 1.0,
    steps: int = 128,
    block: int | None = 32,
    family: Literal["causal", "masked"] = "causal",
) -> Algorithm:
    """jszkc/GVPO (2025): log-ratios to the policy that sampled, summed over tokens, beta .1, no standard deviation, no
    clip; the mean over groups of the sum over a group's n samples, divided by 2 (n - 1). The released code holds the
    group's mean log-ratio constant, which is the same gradient, because residuals sum to 0. Masked models, which it
    does not have: bounds on four views of a completion; ``steps`` and ``block`` are of their sampler."""
    sizes = {"length": length, "temperature": temperature}
    return replace(
        grpo(kl=0.0, **sizes) if family == "causal" else elbo_pg(steps=steps, block=block, **sizes),
        advantage=GroupCentred(scale="none", clip=None),
        objective=GroupRegression(beta=beta, scale=0.5),
        families=(family,),
    )
