"""SRPO: rewards relative between two texts, of samples recovered from known noise at any level (arXiv:2509.06942)."""

from dataclasses import replace

from flowrl.algorithms.draft import draft
from flowrl.estimators.renoise import RelativeRenoise
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.objectives import Ascent
from flowrl.samplers.flow import FlowSampler

PAPER = "arXiv:2509.06942"


def srpo(
    *,
    steps: int = 25,
    cap: float | None = 0.7,
    denoise: tuple[float, float] = (0.1, 0.25),
    invert: tuple[float, float] = (0.3, 0.01),
    good: str = "Realistic photo. {}",
    bad: str = "CG render. {}",
    guidance: float | None = 1.0,
) -> Algorithm:
    """The FLUX settings of Tencent-Hunyuan/SRPO (81e5898) with HPSv2: 25 steps with shift 3, times .750 to .964, a step
    of a tenth of that range, ``relu(0.7 - r)``, the mean of both branches. For PickScore it has ``denoise: [0.1, 0.5]``
    and ``invert: [0.6, 0.01]``.

    good, bad: what the two texts are, around the prompt. The release reads its control words from its data, these are
        ours; the reward has to know the difference.

    Deviations: each sample draws its own time and noise, which are common to a batch there; the network's guidance
    embedding is the model's in sampling and training alike (1 and 3.5 there).
    """
    return replace(
        draft(),
        sampler=FlowSampler(steps=steps, shift=3.0, guidance=guidance),
        estimator=RelativeRenoise(denoise=denoise, invert=invert, good=good, bad=bad, guidance=guidance),
        objective=Ascent(cap),
    )
