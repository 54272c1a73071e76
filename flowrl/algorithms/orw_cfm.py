"""ORW-CFM-W2: flow matching on own samples weighted by exp(reward), held to the reference (arXiv:2502.06061)."""

from dataclasses import replace

from flowrl.algorithms.rwr import rwr
from flowrl.estimators.matching import Matching
from flowrl.estimators.times import NOISE_TIME, UniformTimes
from flowrl.parts.advantages import ExponentialWeight
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.regularizers import Prediction

PAPER = "arXiv:2502.06061"


def orw_cfm(*, tau: float = 0.5, alpha: float = 1.0, draws: int = 1, steps: int = 10) -> Algorithm:
    """As markerthu/orw-cfm (de9c766) trains CIFAR: ``exp(tau r)`` times the matching error, not normalised, and a bound
    of the Wasserstein distance to the base model, ``alpha mean (v - v_ref)^2``. With ``alpha=0`` the tilt compounds
    over iterations, ``exp(n tau r)``.

    Deviations: its epochs have 10,000 updates on fresh samples of the last epoch's weights, here ``train.updates`` on
    those of an iteration; times below `NOISE_TIME` are not drawn.
    """
    return replace(
        rwr(steps=steps),
        estimator=Matching(draws=draws, times=UniformTimes(low=NOISE_TIME)),
        advantage=ExponentialWeight(1 / tau, normalised=False),
        regularizers=(Prediction(alpha),) if alpha > 0 else (),
    )
