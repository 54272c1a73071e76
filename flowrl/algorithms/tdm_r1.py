"""TDM-R1: a few-step model follows a reward of any kind through a surrogate that learns it, beside its teacher's scores
(arXiv:2603.07700)."""

from flowrl.estimators.trajectory_matching import BoundaryMatching, TrajectoryDifference, TrajectoryMatching
from flowrl.parts.advantages import GroupCentred, Ones
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.companions import Companion
from flowrl.parts.contrasts import GroupPreference
from flowrl.parts.ema import Ema, Ramp
from flowrl.parts.loss_weights import LaterSteps
from flowrl.parts.objectives import ScoreFunction
from flowrl.parts.trust_regions import SquaredGain
from flowrl.samplers.flow import FlowSampler
from flowrl.samplers.windows import LastSteps

PAPER = "arXiv:2603.07700"


def tdm_r1(
    *,
    steps: int = 4,
    guidance: float | None = 4.5,
    guided: float = 1.05,
    rewarded: float = 0.7,
    beta: float = 1.0,
    clip: float = 1e-3,
    real: str = "reference",
    passes: int = 5,
    lr: float | None = 3e-4,
) -> Algorithm:
    """As ported by Flow-Factory (X-GenGroup, 1593258): the authors released weights alone. Two sets of weights learn
    beside the generator: the fake score, and a surrogate that DGPO's loss makes prefer the states of rewarded samples;
    the generator follows real less fake score, guidance, and surrogate less its start. Groups of 24 and
    ``optimizer.lr: 7.5e-5``; betas 0 and .999 (``optimizer.betas``; there the surrogate has .9).

    Start from a few-step model, best one of TDM, as ``model.adapter`` on the many-step base or as ``model.path``;
    ``real`` then names that base, ``teachers: {NAME: {path: ...}}``. Its default is what training starts from.

    guidance: of real, surrogate and its start; ``guidance: 1, guided: 0`` for models without.
    guided: .3 x 3.5, of the direction of guidance. rewarded: .7, of the surrogate's.
    beta, clip: of the surrogate's loss: strength, and how far its error may leave that of its slow copy.
    passes: of the fake score over an iteration's samples, at points drawn anew. lr: of fake and surrogate.

    Deviations: how many passes the port makes by default could not be read (5 are DMD2's). A clipped advantage is
    centred again. The fake score starts as a copy of the generator, not of the base.
    """
    surrogate = Companion(
        name="surrogate",
        estimator=BoundaryMatching(draws=steps, compare=("slow",), guided_reference=guidance),
        objective=GroupPreference(beta, clip, "slow", most=0.05),
        advantage=GroupCentred(scale="global", ddof=0, clip=5.0),
        regularizers=(SquaredGain(0.001),),
        loss_weight=LaterSteps(),
        ema_weights=(Ema("slow", Ramp(slope=0.001, most=0.3, base=0.001)),),
        lr=lr,
    )
    return Algorithm(
        sampler=FlowSampler(steps=steps, window=LastSteps(), guidance=1.0),
        estimator=TrajectoryDifference(
            real=real, surrogate="surrogate", guidance=guidance, guided=guided, rewarded=rewarded
        ),
        advantage=Ones(),
        objective=ScoreFunction(),
        companions=(Companion(name="fake", estimator=TrajectoryMatching(), epochs=passes, lr=lr), surrogate),
        teachers=() if real == "reference" else (real,),
    )
