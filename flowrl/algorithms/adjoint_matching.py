"""Adjoint Matching: a tilted model, by regression on the adjoint of the reward along memoryless samples
(arXiv:2409.08861)."""

from typing import Literal

from flowrl.estimators.adjoint import Adjoint
from flowrl.math.flow import FlowSDE
from flowrl.parts.advantages import Ones
from flowrl.parts.aggregations import SampleSum
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.objectives import ScoreFunction
from flowrl.samplers.flow import FlowSampler
from flowrl.samplers.windows import LastSteps

PAPER = "arXiv:2409.08861"


def adjoint_matching(
    *,
    scale: float = 100.0,
    steps: int = 50,
    pairing: Literal["next", "same"] = "next",
    guidance: float | None = None,
) -> Algorithm:
    """The settings of microsoft/soc-fine-tuning-sd (489f904): 50 steps, of which two of the first 60 % and two of the
    others are trained, sum over latent elements and steps. The kernel is the memoryless one of flow models,
    ``FlowSDE(sqrt 2)``; for Stable Diffusion the release has ``DDIM(1)`` (``sampler: {dynamics: {use: ddim}}``).

    scale: lambda, how far the reward tilts the model; 100 is for ImageReward.
    pairing: ``next`` regresses a step on the adjoint after it, the optimum of the discrete problem, the default here;
        the release pairs it with that before it (``same``), of the same limit of many steps.

    Deviations: ``pairing``; the release masks samples whose loss exceeds a running 0.9 quantile, and drops prompts at a
    rate of 0.2; neither is done here.
    """
    return Algorithm(
        sampler=FlowSampler(steps=steps, dynamics=FlowSDE(2**0.5), window=LastSteps(noise=True), guidance=guidance),
        estimator=Adjoint(scale=scale, pairing=pairing),
        advantage=Ones(),
        objective=ScoreFunction(),
        aggregation=SampleSum(),
        min_group=1,
    )
