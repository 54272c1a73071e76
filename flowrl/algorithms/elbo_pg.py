"""The plain policy gradient of the evidence lower bound: the baseline that bounds are compared with (LLaDA,
arXiv:2502.09992, for the bound)."""

from dataclasses import replace

from flowrl.algorithms.diffu_grpo import diffu_grpo
from flowrl.estimators.masked import MaskedViews
from flowrl.estimators.views import RandomCount
from flowrl.parts.aggregations import SampleMean
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.objectives import ScoreFunction

PAPER = "arXiv:2502.09992"


def elbo_pg(
    *, draws: int = 4, length: int = 256, steps: int = 128, block: int | None = 32, temperature: float = 1.0
) -> Algorithm:
    """REINFORCE on ``RandomCount`` views: no ratio, no clip, no KL."""
    sizes = {"length": length, "steps": steps, "block": block, "temperature": temperature}
    return replace(
        diffu_grpo(kl=0.0, order="max_prob", **sizes),
        estimator=MaskedViews(views=RandomCount(draws=draws)),
        objective=ScoreFunction(),
        aggregation=SampleMean(),
    )
