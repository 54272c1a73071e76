"""CRD: what a likelihood has gained is regressed on the reward, both centred in the group (arXiv:2603.14128)."""

from flowrl.estimators.matching import Matching
from flowrl.estimators.times import GridTimes
from flowrl.parts.advantages import GroupCentred
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.contrasts import CentredReward
from flowrl.parts.ema import Ema, Ramp
from flowrl.parts.regularizers import Prediction
from flowrl.samplers.flow import FlowSampler

PAPER = "arXiv:2603.14128"


def crd(
    *, beta: float = 1.0, reference: float = 0.1, guidance: float | None = None, draws: int = 19, steps: int = 20
) -> Algorithm:
    """As ported by X-GenGroup/Flow-Factory (a0b2bc5); the authors' own code was not to be had. Its old policy has decay
    ``min(0.25 + 0.005 n, 0.999)``, what samples is live for 75 steps and then follows with ``min(0.0075 (n - 75),
    0.999)``.

    guidance: of the reference that the penalty holds on to; 4.5 in the port, which makes the unguided policy learn
        guidance. The self-check ``start_distance`` then says that they differ from the start.
    Deviations: that scale is none by default; centred in the group, whose prompt has one normaliser
    (``objective.pool: batch`` is the port's, which mixes prompts); the port also scales the penalty by the reward.
    ``beta`` is ours: the notes have none.
    """
    return Algorithm(
        sampler=FlowSampler(steps=steps, guidance=1.0),
        estimator=Matching(draws=draws, times=GridTimes(fraction=0.99), share="group", guided_reference=guidance),
        advantage=GroupCentred(scale="global", ddof=0, eps=1e-4),
        objective=CentredReward(beta),
        regularizers=(Prediction(reference),) if reference > 0 else (),
        behaviour="sampling",
        ema_weights=(
            Ema("old", Ramp(slope=0.005, most=0.999, base=0.25)),
            Ema("sampling", Ramp(slope=0.0075, most=0.999, start=75)),
        ),
    )
