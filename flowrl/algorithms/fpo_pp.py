"""FPO++: FPO with a ratio of its own for every (time, noise) draw, and bad samples pulled back (arXiv:2602.02481)."""

from dataclasses import replace
from typing import Any, Literal

from flowrl.algorithms.fpo import fpo
from flowrl.estimators.episodes import PerDecision
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.objectives import AsymmetricClip

PAPER = "arXiv:2602.02481"


def fpo_pp(
    *,
    clip: float = 0.01,
    draws: int = 8,
    steps: int = 10,
    weight: Literal["uniform", "t", "t2", "noise"] = "t",
    environment: str = "avoid",
    decisions: int = 40,
    family: Literal["diffusion", "control"] = "diffusion",
) -> Algorithm:
    """`fpo` for images. Every draw is clipped on its own for good samples and pulled back quadratically for bad ones
    (`AsymmetricClip`), so the loss does not couple draws and is evaluated in one pass.

    No code of the authors was released; formulas follow their page and typoverflow/flow-rl, whose control tasks use
    clip 0.05 and the plain velocity error (``weight: uniform``), summed and divided by the square root of the size.
    Deviations, chosen on images (`benchmarks/README.md`): clip 0.01; weight t, which fades where the network cannot see
    the noise; the mean over latent elements; group advantage instead of a critic.

    ``family: control`` acts in an environment, with `fpo`'s critic and credit at gamma .99; take ``clip: 0.05, weight:
    uniform`` there, and ``draws: 16`` as the port. Not there: its bounds on errors, noise on actions, times near 0.
    """
    acting: dict[str, Any] = {"environment": environment, "decisions": decisions, "gamma": 0.99}
    made = fpo(draws=draws, steps=steps, weight=weight, family=family, **(acting if family == "control" else {}))
    estimator = made.estimator
    if isinstance(estimator, PerDecision):
        estimator = replace(estimator, average=False)
    return replace(made, estimator=estimator, objective=AsymmetricClip(clip))
