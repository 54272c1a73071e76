"""FPO++: FPO with a ratio of its own for every (time, noise) draw, and bad samples pulled back (arXiv:2602.02481)."""

from dataclasses import replace
from typing import Literal

from flowrl.algorithms.fpo import fpo
from flowrl.estimators.matching import Matching
from flowrl.estimators.times import NOISE_TIME, GridTimes
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.objectives import AsymmetricClip

PAPER = "arXiv:2602.02481"


def fpo_pp(
    *,
    clip: float = 0.01,
    draws: int = 8,
    steps: int = 10,
    weight: Literal["uniform", "t", "t2", "noise"] = "t",
) -> Algorithm:
    """`fpo` for images. Every draw is clipped on its own for good samples and pulled back quadratically for bad ones
    (`AsymmetricClip`), so the loss does not couple draws and is evaluated in one pass.

    No code of the authors was released; formulas follow their page and typoverflow/flow-rl, whose control tasks use
    clip 0.05 and the plain velocity error (``weight: uniform``), summed and divided by the square root of the size.
    Deviations, chosen on images (`benchmarks/README.md`): clip 0.01; weight t, which fades where the network cannot see
    the noise; the mean over latent elements; group advantage instead of a critic.
    """
    return replace(
        fpo(draws=draws, steps=steps),
        estimator=Matching(
            draws=draws,
            times=GridTimes(fraction=1.0, stratified=True, least=NOISE_TIME),
            weight=weight,
            guidance=1.0,
        ),
        objective=AsymmetricClip(clip),
    )
