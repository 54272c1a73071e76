"""DGPO: a group's good and bad samples as one preference on the denoising error, with ODE rollouts
(arXiv:2510.08425)."""

from flowrl.estimators.matching import Matching
from flowrl.estimators.times import GridTimes
from flowrl.parts.advantages import GroupCentred
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.contrasts import GroupPreference
from flowrl.parts.ema import Ema, Ramp
from flowrl.parts.regularizers import Prediction
from flowrl.samplers.flow import FlowSampler

PAPER = "arXiv:2510.08425"


def dgpo(
    *,
    beta: float = 100.0,
    clip: float | None = 1e-4,
    reference: float = 0.02,
    draws: int = 4,
    steps: int = 10,
    guidance: float = 1.0,
) -> Algorithm:
    """The settings of Luo-Yihong/DGPO (01ceb4b) without guidance: the noisiest four of ten times, the same noise for
    all samples of a group, advantages cut at 5, no gradient where the ratio to a slow copy (decay ``min(0.3, 0.001
    n)``) leaves ``1 -+ clip``, a prediction penalty; 24 samples a prompt.

    guidance: of the rollouts; where it is above 1, the reference is asked with it too and ``clip`` should be 1e-3 to
        1e-2.
    Deviations: the frozen base is the reference throughout; the release samples from and compares with a fast EMA after
    500 updates (beta 2000 to 5000 then). A clipped advantage is centred again.
    """
    return Algorithm(
        sampler=FlowSampler(steps=steps, guidance=guidance),
        estimator=Matching(
            draws=draws,
            times=GridTimes(fraction=0.4),
            share="group",
            compare=() if clip is None else ("old",),
            guided_reference=None if guidance == 1 else guidance,
        ),
        advantage=GroupCentred(scale="group", ddof=0, eps=1e-4, clip=5.0),
        objective=GroupPreference(beta, clip),
        regularizers=(Prediction(reference),) if reference > 0 else (),
        ema_weights=() if clip is None else (Ema("old", Ramp(slope=0.001, most=0.3)),),
    )
