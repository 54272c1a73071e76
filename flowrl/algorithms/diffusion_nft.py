"""DiffusionNFT: an implicit positive and negative policy around the old one, on the forward process
(arXiv:2509.16117)."""

from flowrl.estimators.matching import ContrastedMatching
from flowrl.estimators.times import GridTimes
from flowrl.parts.advantages import GroupCentred
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.ema import Ema, Ramp
from flowrl.parts.objectives import ImplicitPair
from flowrl.parts.regularizers import Prediction
from flowrl.samplers.flow import FlowSampler

PAPER = "arXiv:2509.16117"


def diffusion_nft(
    *,
    strength: float = 1.0,
    reference: float = 1e-4,
    max_advantage: float = 5.0,
    draws: int = 9,
    steps: int = 10,
    decay: float = 0.001,
    most: float = 0.5,
) -> Algorithm:
    """The GenEval and PickScore settings of NVlabs/DiffusionNFT (22 Sep 2025) for SD3.5: no guidance, DPM-Solver++
    rollouts of the old policy, which follows the live one with decay ``min(decay n, most)`` after n optimiser steps,
    nine of all ten times of the rollout's grid at random. ``strength`` b is the same number in estimator and objective.
    Flat groups stay in the mean.

    OCR: ``strength: 0.1``, decay 0 for 75 steps and then 0.0075 a step up to 0.999
    (``ema_weights: {use: ema, name: old, decay: {use: ramp, slope: 0.0075, most: 0.999, start: 75}}``), two updates.
    Several rewards: ``strength: 0.1, steps: 25, draws: 24``, and the rewards summed.
    """
    return Algorithm(
        sampler=FlowSampler(steps=steps, solver="dpmpp_2m", guidance=1.0),
        estimator=ContrastedMatching(draws=draws, times=GridTimes(fraction=1.0), strength=strength),
        advantage=GroupCentred(scale="global", ddof=0, eps=1e-4),
        objective=ImplicitPair(strength, max_advantage),
        regularizers=(Prediction(reference),) if reference > 0 else (),
        behaviour="old",
        ema_weights=(Ema("old", Ramp(slope=decay, most=most)),),
    )
