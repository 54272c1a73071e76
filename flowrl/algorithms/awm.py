"""AWM: policy gradient on the flow-matching loss of the policy's own samples (arXiv:2509.25050)."""

from flowrl.estimators.matching import Matching
from flowrl.estimators.times import GridTimes
from flowrl.parts.advantages import GroupCentred
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.objectives import Clipped
from flowrl.parts.regularizers import Prediction
from flowrl.parts.schedules import Follower, Ramp
from flowrl.samplers.flow import FlowSampler

PAPER = "arXiv:2509.25050"


def awm(
    *,
    clip: float = 1.0,
    reference: float = 1e-3,
    ema: float = 1.0,
    draws: int = 6,
    steps: int = 14,
    power: float = 0.25,
) -> Algorithm:
    """The released SD3.5 defaults: no guidance, stratified times of the rollout's grid, generalised Huber link,
    prediction penalties to the reference and to a slow copy (decay ``min(0.3, 0.001 n)``). Credit is scaled to at
    most 1. The
    paper samples with SA-Solver; here with Euler (any sampler will do, none is recorded)."""
    held = (Prediction(reference, "reference"), Prediction(ema, "ema_policy"))
    return Algorithm(
        sampler=FlowSampler(steps=steps, guidance=1.0),
        estimator=Matching(
            draws=draws, times=GridTimes(fraction=0.9, stratified=True), weight="ghuber", power=power, guidance=1.0
        ),
        advantage=GroupCentred(scale="global", ddof=0, eps=1e-4, clip=5.0, scaled_to=1.0),
        objective=Clipped(clip, clip),
        regularizers=tuple(term for term in held if term.weight > 0),
        followers=(Follower("ema_policy", Ramp(slope=0.001, most=0.3)),) if ema > 0 else (),
    )
