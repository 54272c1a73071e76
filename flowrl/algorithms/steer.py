"""STEER: tokens count less the more they are estimated to change the entropy (arXiv:2510.10150)."""

from dataclasses import replace

from flowrl.algorithms.grpo import grpo
from flowrl.parts.aggregations import DecisionMean
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.loss_masks import EntropyChange
from flowrl.parts.objectives import Clipped

PAPER = "arXiv:2510.10150"


def steer(
    *,
    least: float = 0.8,
    low: float = 0.2,
    high: float = 0.28,
    dual: float = 10.0,
    length: int = 256,
    temperature: float = 1.0,
) -> Algorithm:
    """As released (zz-haooo/STEER), in its exponential form: weights from .8 to
    1, dual clip .2, .28 and 10, mean over all tokens. ``least=1`` is the base."""
    return replace(
        grpo(kl=0.0, length=length, temperature=temperature),
        objective=Clipped(low, high, dual),
        loss_masks=(EntropyChange(least),),
        aggregation=DecisionMean(),
    )
