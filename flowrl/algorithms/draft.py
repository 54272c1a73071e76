"""DRaFT-K: the reward's gradient through the last K denoising steps (arXiv:2309.17400)."""

from flowrl.estimators.pathwise import Replay
from flowrl.parts.advantages import Ones
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.objectives import Ascent
from flowrl.parts.regularizers import Prediction
from flowrl.samplers.flow import FlowSampler
from flowrl.samplers.windows import LastSteps

PAPER = "arXiv:2309.17400"


def draft(
    *,
    last: int | None = 1,
    steps: int = 50,
    guidance: float | None = None,
    cap: float | None = None,
    reference: float = 0.0,
    checkpoint: bool = True,
) -> Algorithm:
    """Reconstruction from the paper's abstract and ports: no code of its authors could be read. Deterministic sampling
    without gradient, of which the last steps are taken again with one; all rewards need a ``gradient`` (`flowrl
    rewards`). Groups of one sample are enough.

    last: K, the steps with a gradient; 1 is usual, None takes all (DRaFT).
    cap: leave rewards above this alone. reference: weight of the mean squared difference to the reference's velocities.
        Without either a reward is soon exploited: watch another one (``train: false``).
    checkpoint: hold the activations of one step at a time, for a third more time; of no use at K = 1.

    The steps with a gradient are evaluated twice, K forwards more than in one pass: sampling stays that of every other
    method, and the check of the ratio shows that the gradient is that of what was sampled.
    """
    return Algorithm(
        sampler=FlowSampler(steps=steps, window=LastSteps(last), guidance=guidance),
        estimator=Replay(checkpoint=checkpoint),
        advantage=Ones(),
        objective=Ascent(cap),
        regularizers=(Prediction(reference),) if reference else (),
        min_group=1,
    )
