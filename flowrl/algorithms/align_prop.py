"""AlignProp: the reward's gradient through a random number of the last steps, with checkpoints (arXiv:2310.03739)."""

from dataclasses import replace

from flowrl.algorithms.draft import draft
from flowrl.estimators.pathwise import Replay
from flowrl.math.flow import DDIM
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.objectives import Ascent
from flowrl.samplers.flow import FlowSampler
from flowrl.samplers.windows import LastSteps

PAPER = "arXiv:2310.03739"


def align_prop(
    *,
    steps: int = 50,
    around: float | None = 0.84,
    spread: float = 0.1,
    scale: float = 0.01,
    guidance: float | None = 5.0,
) -> Algorithm:
    """The settings of mihirp1998/AlignProp (b22918a) for Stable Diffusion 1.5: 50 steps of ``DDIM(1)``, guidance 5, the
    gradient from step ``round(N(42, 5))`` on, at least 1 and at most 49; ``0.01 (1 - HPS)``, whose constants have no
    gradient.

    around, spread: the first step with a gradient and its deviation, as shares of the steps; ``around: null`` draws it
        uniformly, the release's other strategy.

    Deviations: each sample draws its own step, the release one for a batch; it also checkpoints the early steps, which
    have no gradient. Its loss for aesthetic scores, ``|r - 10|``, is that of ``objective: {cap: 10}``.
    """
    window = LastSteps(max(1, steps - 1), noise=True)
    return replace(
        draft(),
        sampler=FlowSampler(steps=steps, dynamics=DDIM(1.0), window=window, guidance=guidance),
        estimator=Replay(first="random", around=around, spread=spread),
        objective=Ascent(scale=scale),
    )
