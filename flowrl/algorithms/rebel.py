"""REBEL: regression of the difference of two samples' log-ratios on that of their rewards (arXiv:2404.16767)."""

from dataclasses import replace
from typing import Literal

from flowrl.algorithms.flow_grpo import flow_grpo
from flowrl.algorithms.gvpo import gvpo
from flowrl.parts.advantages import GroupCentred
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.regressions import GroupRegression
from flowrl.parts.selections import AllSamples

PAPER = "arXiv:2404.16767"


def rebel(
    *,
    eta: float = 1.0,
    length: int = 256,
    temperature: float = 1.0,
    steps: int | None = None,
    block: int | None = 32,
    family: Literal["causal", "masked", "diffusion"] = "causal",
) -> Algorithm:
    """ZhaolinGao/REBEL: ``(d_i - d_j - eta (r_i - r_j))^2`` with d the log-ratio of a sample to the policy that
    sampled, eta 1, mean over all pairs of a group (the paper has two samples a prompt). Diffusion: over the steps of
    a trajectory, whose log-densities are means over the latent's numbers, as `flow_grpo` has them."""
    objective = GroupRegression(target=eta, scale=2.0)
    if family == "diffusion":
        return replace(
            flow_grpo(kl=0.0, steps=steps or 10),
            advantage=GroupCentred(scale="none", clip=None),
            objective=objective,
            selection=AllSamples(),
        )
    sizes = {"length": length, "temperature": temperature, "steps": steps or 128, "block": block}
    return replace(gvpo(family=family, **sizes), objective=objective)
