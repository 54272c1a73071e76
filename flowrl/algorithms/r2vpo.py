"""R2VPO: the variance of the ratio is penalised instead of clipped (arXiv:2601.03320)."""

from dataclasses import replace

from flowrl.algorithms.grpo import grpo
from flowrl.parts.aggregations import DecisionMean
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.controllers import Dual
from flowrl.parts.surrogates import Importance
from flowrl.parts.trust_regions import RatioVariance

PAPER = "arXiv:2601.03320"


def r2vpo(
    *, weight: float = 0.04, target: float | None = None, rate: float = 1.0, length: int = 256, temperature: float = 1.0
) -> Algorithm:
    """As two independent ports have it, with a fixed weight of .04. ``target`` makes the weight the multiplier of the
    constraint that the variance is at most so large, raised by ``rate`` times what is above, as the paper describes;
    its step and its target are not public."""
    return replace(
        grpo(kl=0.0, length=length, temperature=temperature),
        objective=Importance(),
        regularizers=(RatioVariance(weight),),
        coefficients=() if target is None else (Dual(target, "ratio/variance", rate=rate),),
        aggregation=DecisionMean(),
    )
