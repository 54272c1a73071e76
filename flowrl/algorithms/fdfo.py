"""FDFO: finite differences of the reward between two nearly equal rollouts, as a direction for every velocity on the
way (arXiv:2603.12893)."""

import math

from flowrl.estimators.directions import Directions
from flowrl.math.flow import CPS
from flowrl.parts.advantages import GroupCentred
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.ema import Ema, Ramp
from flowrl.parts.surrogates import Quadratic
from flowrl.samplers.flow import FlowSampler
from flowrl.samplers.windows import EveryStep

PAPER = "arXiv:2603.12893"


def fdfo(*, churn: float = 0.0025, width: float = 0.03, steps: int = 40) -> Algorithm:
    """Written from the paper's formulas with the numbers of the authors' release (NVlabs, 740e22f, whose licence is
    non-commercial; nothing of it is used): pairs (``data.group: 2``) from one initial noise, churned a little there and
    at every step, no guidance, 40 steps, all states trained along the pair's own difference, four updates an epoch
    (``train.updates``).

    churn: gamma, noise is scaled to ``1 / (1 + gamma)`` and filled up; that is `CPS` with ``cos(noise pi / 2) = 1 / (1
        + gamma)``.
    Larger groups work too: every sample against the mean of its group.
    """
    if not churn > 0:
        raise ValueError(f"churn={churn} makes both samples of a pair the same; give more than 0 (the release: .0025)")
    noise = math.acos(1 / (1 + churn)) * 2 / math.pi
    return Algorithm(
        sampler=FlowSampler(
            steps=steps,
            dynamics=CPS(noise),
            window=EveryStep(drop=1),
            guidance=1.0,
            share_noise=True,
            own_noise=noise,
        ),
        estimator=Directions(),
        advantage=GroupCentred(scale="none", clip=None),
        objective=Quadratic(width),
        behaviour="old",
        ema_weights=(Ema("old", Ramp(slope=0.0, most=0.0)),),
    )
