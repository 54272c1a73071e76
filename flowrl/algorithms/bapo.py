"""BAPO: clip bounds are searched for every batch until good tokens weigh enough against bad ones (arXiv:2510.18927)."""

from dataclasses import replace

from flowrl.algorithms.grpo import grpo
from flowrl.parts.aggregations import DecisionMean
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.surrogates import SearchedClip

PAPER = "arXiv:2510.18927"


def bapo(
    *,
    low: float = 0.6,
    high: float = 1.2,
    balance: float = 1.0,
    dual: float = 10.0,
    length: int = 256,
    temperature: float = 1.0,
) -> Algorithm:
    """Ratios from .6 and 1.2, raised by .05 up to .9 and 3, as released
    (WooooDyy/BAPO; its example has a balance of .5), over an optimiser batch instead of a micro-batch.

    Deviation: bad tokens count by their gradient; the release's own count, whose first stage cannot succeed, is
    ``objective: {contribution: value}``.
    """
    return replace(
        grpo(kl=0.0, length=length, temperature=temperature),
        objective=SearchedClip(low=low, high=high, balance=balance, dual=dual),
        aggregation=DecisionMean(),
    )
