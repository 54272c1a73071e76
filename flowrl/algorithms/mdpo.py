"""MDPO: the ratio and the divergence from the policy that sampled, for several steps of mirror descent
(arXiv:2005.09814)."""

from dataclasses import replace

from flowrl.algorithms.grpo import grpo
from flowrl.parts.aggregations import DecisionMean
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.surrogates import Importance
from flowrl.parts.trust_regions import ReverseKLToOld

PAPER = "arXiv:2005.09814"


def mdpo(*, eta: float = 1.0, length: int = 256, temperature: float = 1.0) -> Algorithm:
    """The paper's on-policy form on tokens with GRPO's advantage: ``E[rho A] - KL(policy, old) / eta``, whose maximum
    is ``old exp(eta A)``. Not masked diffusion's MDPO.

    Deviation: the divergence is estimated from the samples, where manantomar's code has it in closed form, and eta does
    not fall over the run.
    """
    return replace(
        grpo(kl=0.0, length=length, temperature=temperature),
        objective=Importance(),
        regularizers=(ReverseKLToOld(1 / eta),),
        aggregation=DecisionMean(),
    )
