"""Diffusion-KTO: single pictures labelled good or bad, against the policy's distance to the reference
(arXiv:2404.04465)."""

from dataclasses import replace
from typing import Literal

from flowrl.algorithms.diffusion_dpo import diffusion_dpo
from flowrl.estimators.matching import Matching
from flowrl.estimators.times import TrainingTimes
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.contrasts import LabelledUtility
from flowrl.parts.records import Labelled
from flowrl.samplers.flow import FlowSampler
from flowrl.samplers.recorded import Recorded

PAPER = "arXiv:2404.04465"


def diffusion_kto(
    *,
    beta: float = 1000.0,
    utility: Literal["kahneman", "loss_averse", "risk_seeking"] = "kahneman",
    column: str = "image",
    label: str = "label",
    weight: Literal["uniform", "noise"] = "noise",
    draws: int = 1,
    steps: int = 20,
    guidance: float | None = None,
) -> Algorithm:
    """The settings of jacklishufan/diffusion-kto (226bbd0) for SD1.5: a picture of ``column`` and whether it is good in
    ``label`` (true or false, or a number above 0 or not), the error of the predicted noise, beta without the half that
    `diffusion_dpo` has before it. The distance is the mean of the whole optimiser batch, of all processes. The release
    draws good pictures with share .8, which is the data set's matter here, and replaces a fifth of the prompts by the
    empty one, which is left out.

    ``steps`` and ``guidance`` are those of evaluation.
    """
    return replace(
        diffusion_dpo(refresh=None),
        estimator=Matching(draws=draws, times=TrainingTimes(), weight=weight),
        sampler=Recorded(sampler=FlowSampler(steps=steps, guidance=guidance), columns=(column,), ratings=(label,)),
        advantage=Labelled(),
        objective=LabelledUtility(beta, utility),
        min_group=1,
    )
