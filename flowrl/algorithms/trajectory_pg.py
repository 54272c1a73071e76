"""The exact policy gradient of a masked sampler: REINFORCE over every transition of the whole rollout, as full-rollout
methods have it (AGRPO, arXiv:2510.04019; ReflectDrive-2)."""

from dataclasses import replace

from flowrl.algorithms.tracerl import tracerl
from flowrl.parts.advantages import LeaveOneOut
from flowrl.parts.aggregations import SampleSum
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.emphases import Uniform
from flowrl.parts.objectives import ScoreFunction

PAPER = "arXiv:2510.04019"


def trajectory_pg(*, length: int = 256, steps: int = 64, block: int | None = 32, temperature: float = 1.0) -> Algorithm:
    """One network row per step and sample. Unbiased for every order of the sampler but ``low_confidence``."""
    return replace(
        tracerl(merge=1, kl=0.0, length=length, steps=steps, block=block, temperature=temperature),
        advantage=LeaveOneOut(),
        objective=ScoreFunction(),
        emphasis=Uniform(),
        aggregation=SampleSum(),
    )
