"""DRaFT-LV: DRaFT-1 with the gradient averaged over several noises of the last step (arXiv:2309.17400)."""

from dataclasses import replace

from flowrl.algorithms.draft import draft
from flowrl.estimators.renoise import Renoise
from flowrl.parts.algorithm import Algorithm
from flowrl.samplers.flow import FlowSampler

PAPER = "arXiv:2309.17400"


def draft_lv(
    *, draws: int = 2, steps: int = 50, guidance: float | None = None, cap: float | None = None, reference: float = 0.0
) -> Algorithm:
    """Reconstruction from the paper's abstract and ports: no code of its authors could be read, and its number of draws
    is not known. The finished sample is noised to the last time of the grid, and the step from there judged.

    cap, reference: as of ``draft``. The unnoised step of DRaFT-1 itself is not one of the draws.
    """
    return replace(
        draft(cap=cap, reference=reference),
        sampler=FlowSampler(steps=steps, guidance=guidance),
        estimator=Renoise(draws=draws, guidance=guidance),
    )
