"""SPG: raise a lower bound of good completions, press down an upper bound of bad ones (arXiv:2510.09541)."""

from dataclasses import replace

from flowrl.algorithms.diffu_grpo import diffu_grpo
from flowrl.estimators.masked import MaskedViews
from flowrl.estimators.views import BlockRandom
from flowrl.parts.aggregations import SampleMean
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.bounds import Sandwich
from flowrl.parts.emphases import ByLength

PAPER = "arXiv:2510.09541"


def spg(
    *,
    omega: float = 0.5,
    power: float = 1.5,
    draws: int = 2,
    corrupt: float = 0.15,
    length: int = 256,
    steps: int = 128,
    block: int = 32,
    temperature: float = 0.9,
) -> Algorithm:
    """The released settings, with the unbiased block bound; ``corrupt`` masks prompt tokens alone, where the released
    code also masks tokens of earlier blocks at that rate. With two views the upper bound's estimate is biased downwards
    and can lie below the lower one; there is no clip and no KL, so raise the learning rate with care."""
    sizes = {"length": length, "steps": steps, "block": block, "temperature": temperature}
    return replace(
        diffu_grpo(kl=0.0, **sizes),
        estimator=MaskedViews(plan=BlockRandom(block=block, draws=draws), per="cell", corrupt=corrupt),
        objective=Sandwich(omega, power),
        emphasis=ByLength(1.0),
        aggregation=SampleMean(),
    )
