"""RAM: regress the velocity on the reference's, moved along the old policy's error by the advantage
(arXiv:2605.10759)."""

from flowrl.estimators.matching import Matching
from flowrl.estimators.times import UniformTimes
from flowrl.parts.advantages import GroupCentred
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.ema import Ema, Ramp
from flowrl.parts.evidence import LinearisedScore
from flowrl.parts.objectives import ScoreFunction
from flowrl.parts.regularizers import Prediction
from flowrl.samplers.flow import FlowSampler

PAPER = "arXiv:2605.10759"


def ram(*, strength: float = 100.0, draws: int = 8, steps: int = 10, linearised: bool = True) -> Algorithm:
    """As ports and notes of others agree on it; the authors' code was not to be had: ``mean (v - (v_ref + strength A (u
    - v_old)))^2``, divided by ``strength`` here, so that the learning rate keeps its meaning. Samples are those of an
    old policy (decay ``min(0.01 n, 0.9)``), times have a density in proportion to t.

    strength: 100 for GenEval and OCR, 1000 for PickScore. It is the inverse strength of the pull to the reference, so
        that whatever rescales advantages (a std, a clip) rescales where training ends; there is none here.
    linearised: False has the live velocity in the place of v_old, as the paper's equation: advantage-weighted matching
        with the same penalty, whose bad samples repel further the further they are.

    Not an exact tilt by the reward (a path cost is dropped): weaker at high noise where the reward is curved. Sampling
    steps and the absence of guidance are ours.
    """
    return Algorithm(
        sampler=FlowSampler(steps=steps, guidance=1.0),
        estimator=Matching(draws=draws, times=UniformTimes(tilt=1.0), compare=("old",) if linearised else ()),
        advantage=GroupCentred(scale="none", clip=None),
        objective=LinearisedScore() if linearised else ScoreFunction(),
        regularizers=(Prediction(1 / strength),),
        behaviour="old",
        ema_weights=(Ema("old", Ramp(slope=0.01, most=0.9)),),
    )
