"""KL-Cov: the ratio without a clip, and a penalty on the few tokens of the largest covariance (arXiv:2505.22617)."""

from dataclasses import replace

from flowrl.algorithms.grpo import grpo
from flowrl.parts.aggregations import DecisionMean
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.surrogates import CovariancePenalty

PAPER = "arXiv:2505.22617"


def kl_cov(*, share: float = 2e-4, weight: float = 1.0, length: int = 256, temperature: float = 1.0) -> Algorithm:
    """As verl has it (``kl_cov``, from PRIME-RL/Entropy-Mechanism-of-RL): .02 % of the tokens; 1 is the default of its
    function, .1 of its configuration. ``share=0`` is the plain ratio."""
    return replace(
        grpo(kl=0.0, length=length, temperature=temperature),
        objective=CovariancePenalty(share, weight),
        aggregation=DecisionMean(),
    )
