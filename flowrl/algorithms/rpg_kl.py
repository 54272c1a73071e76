"""RPG: policy gradients of a reward less a divergence, in all eight forms (arXiv:2505.17508)."""

from dataclasses import replace
from typing import Literal

from flowrl.algorithms.grpo import grpo
from flowrl.parts.aggregations import DecisionMean
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.surrogates import RegularisedGradient

PAPER = "arXiv:2505.17508"


def rpg_kl(
    *,
    beta: float = 1e-4,
    divergence: Literal["forward", "reverse"] = "reverse",
    normalised: bool = False,
    estimator: Literal["differentiable", "reinforce"] = "reinforce",
    length: int = 256,
    temperature: float = 1.0,
) -> Algorithm:
    """The paper's losses (complex-reasoning/RPG), compared with the policy that sampled: its reference, renewed every
    iteration. The default is its unnormalised reverse divergence, estimated as REINFORCE does.

    Deviation: without the clip of the ratio that its training adds.
    """
    return replace(
        grpo(kl=0.0, length=length, temperature=temperature),
        objective=RegularisedGradient(beta, divergence, normalised, estimator),
        aggregation=DecisionMean(),
    )
