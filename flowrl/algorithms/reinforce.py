"""REINFORCE: the score function times the reward, less the mean of the batch (Williams 1992)."""

from typing import Literal

from flowrl.estimators.tokens import Tokens
from flowrl.parts.advantages import RawReward
from flowrl.parts.aggregations import SampleSum
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.objectives import ScoreFunction
from flowrl.samplers.causal import CausalSampler

PAPER = "Williams 1992, doi:10.1007/BF00992696"


def reinforce(
    *, baseline: Literal["none", "batch"] = "batch", length: int = 256, temperature: float = 1.0
) -> Algorithm:
    """Unbiased: sums over tokens, and the baseline of a sample is the mean of the *other* samples."""
    return Algorithm(
        sampler=CausalSampler(length=length, temperature=temperature),
        estimator=Tokens(),
        advantage=RawReward(baseline),
        objective=ScoreFunction(),
        aggregation=SampleSum(),
        min_group=1,
        families=("causal",),
    )
