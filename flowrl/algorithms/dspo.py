"""DSPO: noise prediction on preferred pictures, its target moved by what the policy has left of the reference (Zhu et
al., ICLR 2025)."""

from dataclasses import replace

from flowrl.algorithms.diffusion_dpo import diffusion_dpo
from flowrl.estimators.matching import Matching
from flowrl.estimators.times import TrainingTimes
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.contrasts import ScorePreference

PAPER = "ICLR 2025, openreview xyfb9HHvMe"


def dspo(
    *,
    beta: float = 0.001,
    columns: tuple[str, ...] = ("chosen", "rejected"),
    draws: int = 1,
    steps: int = 20,
    guidance: float | None = None,
) -> Algorithm:
    """The SD1.5 branch of huaishengzhu/DSPO (8b4e09b) as its code has it; its SDXL branch is another formula, which has
    no data term where the predictions are far apart, and is not built. ``steps`` and ``guidance`` are those of
    evaluation.

    beta: at the reference the gradient is ``1 - beta / 2`` times that of fine-tuning on the preferred pictures, so that
        values from 2 on unlearn them and are refused: Diffusion-DPO's does not carry over.
    """
    base = diffusion_dpo(pairs="recorded", refresh=None, columns=columns, steps=steps, guidance=guidance)
    estimator = Matching(draws=draws, times=TrainingTimes(), weight="noise", share="group")
    return replace(base, estimator=estimator, objective=ScorePreference(beta))
