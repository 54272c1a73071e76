"""The exact policy gradient of a masked sampler: REINFORCE over every transition of the whole rollout, as full-rollout
methods have it (AGRPO, arXiv:2510.04019; ReflectDrive-2)."""

from dataclasses import replace

from flowrl.algorithms.diffu_grpo import diffu_grpo
from flowrl.estimators.masked import MaskedViews
from flowrl.estimators.views import Trajectory
from flowrl.parts.advantages import LeaveOneOut
from flowrl.parts.aggregations import SampleSum
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.objectives import ScoreFunction

PAPER = "arXiv:2510.04019"


def trajectory_pg(*, length: int = 256, steps: int = 64, block: int | None = 32, temperature: float = 1.0) -> Algorithm:
    """One network row per step and sample. Unbiased for every order of the sampler but ``low_confidence``, and without
    ``order_temperature``; ``top_p`` and ``top_k`` are scored as they are sampled. AGRPO's code (ICML 2026) estimates
    the same sum from 24 random steps of a rollout, divides by the number of steps and clips the ratio."""
    sizes = {"length": length, "steps": steps, "block": block, "temperature": temperature}
    return replace(
        diffu_grpo(kl=0.0, order="max_prob", **sizes),
        estimator=MaskedViews(views=Trajectory(limit=steps), per="cell", tempered=True),
        advantage=LeaveOneOut(),
        objective=ScoreFunction(),
        aggregation=SampleSum(),
        redraw=False,
    )
