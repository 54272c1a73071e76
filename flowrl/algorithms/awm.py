"""AWM: policy gradient on the flow-matching loss of the policy's own samples (arXiv:2509.25050)."""

from flowrl.estimators.matching import Matching
from flowrl.estimators.times import GridTimes
from flowrl.parts.advantages import GroupCentred
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.ema import Ema, Ramp
from flowrl.parts.objectives import Clipped
from flowrl.parts.regularizers import Prediction
from flowrl.samplers.flow import FlowSampler

PAPER = "arXiv:2509.25050"


def awm(
    *,
    clip: float = 1.0,
    reference: float = 1e-3,
    ema: float = 1.0,
    draws: int = 6,
    steps: int = 14,
    power: float = 0.25,
    skip: int = 1,
) -> Algorithm:
    """The GenEval settings of scxue/advantage_weighted_matching (27 Mar 2026) for SD3.5: no guidance, one time of the
    rollout's grid from each of {1}, {2, 3}, ..., {10, 11} (its ``discrete_wo_init``: never pure noise), generalised
    Huber link, prediction penalties to the reference and to a slow copy (decay ``min(0.3, 0.001 n)``). Advantages
    are scaled to at most 1. Flat groups stay in the mean.

    reference: 0.001 for GenEval, 0.003 for OCR, 0.0001 for PickScore.
    skip: 1 for GenEval and OCR; PickScore's ``discrete`` times start at pure noise, 0.

    Deviations: the release samples with SA-Solver (stochastic with tau 0.4 for GenEval and OCR, deterministic for
    PickScore), here with Euler: any sampler will do, none is recorded. Its micro-batches share their times, here every
    sample draws its own.
    """
    held = (Prediction(reference, "reference"), Prediction(ema, "ema_policy"))
    return Algorithm(
        sampler=FlowSampler(steps=steps, guidance=1.0),
        estimator=Matching(
            draws=draws,
            times=GridTimes(fraction=0.9, skip=skip, stratified=True),
            weight="ghuber",
            power=power,
            guidance=1.0,
        ),
        advantage=GroupCentred(scale="global", ddof=0, eps=1e-4, clip=5.0, scaled_to=1.0),
        objective=Clipped(clip, clip),
        regularizers=tuple(term for term in held if term.weight > 0),
        ema_weights=(Ema("ema_policy", Ramp(slope=0.001, most=0.3)),) if ema > 0 else (),
    )
