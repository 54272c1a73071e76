"""OPO: on-policy REINFORCE with the baseline of least variance, rewards weighted by length (arXiv:2505.23585)."""

from dataclasses import replace

from flowrl.algorithms.reinforce import reinforce
from flowrl.parts.advantages import RawReward
from flowrl.parts.aggregations import DecisionMean
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.shaping import LengthBaseline

PAPER = "arXiv:2505.23585"


def opo(*, length: int = 256, temperature: float = 1.0) -> Algorithm:
    """As verl has it (``adv_estimator: opo``): no standard deviation, no KL; one update on every sample."""
    return replace(
        reinforce(length=length, temperature=temperature),
        advantage=RawReward(),
        token_advantage=(LengthBaseline(),),
        aggregation=DecisionMean(),
        min_group=2,
    )
