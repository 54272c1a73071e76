"""ReFL: the reward of the clean image that a random late step predicts, back through that step (arXiv:2304.05977)."""

from dataclasses import replace

from flowrl.algorithms.draft import draft
from flowrl.estimators.pathwise import Replay
from flowrl.math.flow import DDIM
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.objectives import Ascent
from flowrl.samplers.flow import FlowSampler
from flowrl.samplers.windows import LastSteps

PAPER = "arXiv:2304.05977"


def refl(
    *, steps: int = 40, last: int = 10, cap: float | None = 2.0, scale: float = 1e-3, guidance: float | None = 1.0
) -> Algorithm:
    """The settings of ImageReward's ReFL.py (THUDM/ImageReward, as of November 2026) for Stable Diffusion 1.4: 40 steps
    of DDPM, here ``DDIM(1)``, without guidance; one of the last ten is judged, drawn for each sample;
    ``0.001 relu(2 - r)`` of ImageReward, whose scores are standardised.

    Deviations: the whole trajectory is sampled, because the run's rewards score the finished sample, where the release
    stops at the step it drew; a step is drawn for each sample, not for each batch; its optional pre-training loss on
    captioned images is left out (``reference`` of ``draft`` holds the policy instead).
    """
    return replace(
        draft(),
        sampler=FlowSampler(steps=steps, dynamics=DDIM(1.0), window=LastSteps(last, noise=True), guidance=guidance),
        estimator=Replay(first="last", last="random", checkpoint=False),
        objective=Ascent(cap, scale),
    )
