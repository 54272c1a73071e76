"""ROCM: the reward's gradient through a whole consistency sampler, held by an f-divergence (arXiv:2503.06171)."""

from dataclasses import replace
from typing import Literal

from flowrl.algorithms.draft import draft
from flowrl.estimators.pathwise import Replay
from flowrl.math.flow import CPS
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.regularizers import FDivergence
from flowrl.samplers.flow import FlowSampler
from flowrl.samplers.windows import LastSteps

PAPER = "arXiv:2503.06171"


def rocm(
    *,
    divergence: Literal["kl", "hellinger", "chi2", "alpha", "js"] = "kl",
    weight: float = 0.1,
    steps: int = 4,
    guidance: float | None = 1.0,
    checkpoint: bool = True,
) -> Algorithm:
    """Reconstruction from the abstract: there is no code, and its weights and number of steps are not known. Each step
    predicts the clean latent and noises it afresh to the next time, ``CPS(1)``, as consistency models sample; the noise
    is kept, so that the gradient runs through all steps. Divergences are per latent element, and means over the steps.

    divergence: of the steps from the reference's; the bounded ones (``hellinger``, ``js``, ``alpha``) saturate.
    weight: 0 leaves the reward alone, which is DRaFT over all steps.
    """
    return replace(
        draft(),
        sampler=FlowSampler(steps=steps, dynamics=CPS(1.0), window=LastSteps(noise=True), guidance=guidance),
        estimator=Replay(checkpoint=checkpoint),
        regularizers=(FDivergence(weight, divergence),) if weight else (),
    )
