"""DiffusionNFT: an implicit positive and negative policy around the old one, on the forward process
(arXiv:2509.16117)."""

from flowrl.estimators.matching import ContrastedMatching
from flowrl.estimators.times import GridTimes
from flowrl.parts.advantages import GroupCentred
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.objectives import ImplicitPair
from flowrl.parts.regularizers import Prediction
from flowrl.parts.schedules import Follower, Ramp
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
    """The released SD3.5 defaults: no guidance, DPM-Solver++ rollouts of the old policy, which follows the live one
    with decay ``min(decay n, most)`` after n optimiser steps; ``strength`` b is the same number in estimator and
    objective."""
    return Algorithm(
        sampler=FlowSampler(steps=steps, solver="dpmpp_2m", guidance=1.0),
        estimator=ContrastedMatching(draws=draws, times=GridTimes(fraction=0.99), strength=strength),
        advantage=GroupCentred(scale="global", ddof=0, eps=1e-4),
        objective=ImplicitPair(strength, max_advantage),
        regularizers=(Prediction(reference),) if reference > 0 else (),
        behaviour="old",
        followers=(Follower("old", Ramp(slope=decay, most=most)),),
    )
