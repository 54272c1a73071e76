"""TP-GRPO: steps that turn a sample the way it goes in the end are credited with more (arXiv:2602.06422)."""

from dataclasses import replace
from typing import Literal

from flowrl.algorithms.flow_cps import flow_cps
from flowrl.math.flow import CPS
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.selections import NonzeroAdvantage
from flowrl.parts.step_advantages import TurningPoints
from flowrl.samplers.previews import PreviewSampler
from flowrl.samplers.windows import EveryStep

PAPER = "arXiv:2602.06422"


def turning_point(
    *,
    clip: float = 1e-5,
    noise: float = 0.7,
    steps: int = 10,
    base: Literal["whole", "gain"] = "whole",
    bonus: float = 1.0,
    guidance: float | None = 4.5,
) -> Algorithm:
    """The SD3.5 settings of YunzeTong/TurningPoint-GRPO (f9f6ff4, ``pickscore_sd3_fast_op3``): FlowCPS's kernel in all
    steps but the last, no KL, every step's reward normalised over the group by itself. ``base`` is the released
    configuration, ``gain`` the form of the paper's text (`TurningPoints`). An iteration scores ``steps`` pictures a
    sample besides its own.
    """
    return replace(
        flow_cps(clip=clip, kl=0.0),
        sampler=PreviewSampler(steps=steps, dynamics=CPS(noise), window=EveryStep(drop=1), guidance=guidance),
        advantage=TurningPoints(scale="group", ddof=0, eps=1e-4, base=base, bonus=bonus),
        selection=NonzeroAdvantage(),
    )
