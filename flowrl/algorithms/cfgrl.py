"""CFGRL: imitate everything and, with a label, what is better than expected; act by guidance between both
(arXiv:2505.23458)."""

import math

from flowrl.estimators.episodes import PerDecision
from flowrl.estimators.imitation import LabelledMatching
from flowrl.estimators.times import UniformTimes
from flowrl.parts.aggregations import DecisionMean
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.episodes import DecisionRewards, EpisodeGAE, Improved
from flowrl.parts.objectives import ScoreFunction
from flowrl.parts.regularizers import ValueLoss
from flowrl.samplers.episodes import EpisodeSampler
from flowrl.samplers.flow import FlowSampler

PAPER = "arXiv:2505.23458"


def cfgrl(
    *,
    steps: int = 32,
    guidance: float | None = 1.0,
    null: float = 0.1,
    draws: int = 1,
    gamma: float = 0.99,
    lam: float = 0.95,
    value: float = 0.5,
    environment: str = "avoid",
    decisions: int = 40,
) -> Algorithm:
    """``null |v_0 - u|^2 + 1[A > 0] |v_1 - u|^2`` at the same noise for every decision, u the velocity to its chunk, v_1
    with the label and v_0 without; acts by ``v_0 + w (v_1 - v_0)``, w = ``guidance``, in evaluation ``eval.guidance``,
    which an export remembers. As kvfrans/cfgrl (rlbase/algs_offline/iql_diffusion.py, read in mhyatt000/cfgrl, 6b95e5a):
    both errors of every sample, the plain one times .1, 32 steps, w 1 unless another is asked for of 1 to 100; rate
    3e-4.

    Deviations: A is `EpisodeGAE` with the mean return's critic, there IQL's Q - V (two Q, expectile .9); data are
    the policy's own episodes, made with ``guidance``, there a fixed set: `sampler: {use: demonstrations}` reads one, with
    the column ``reward``; any time, there multiples of 1/32; the label adds a vector to the first layer, there an
    embedding of 32 numbers is its input; means over both errors, times 2. The release's other form for single tasks
    (ogbench/agents/flowiql.py) has a label for A < 0 too, and forgets the label of a tenth; that with goals forgets the
    goal: neither is here.
    """
    flow = FlowSampler(steps=steps, guidance=guidance)
    return Algorithm(
        sampler=EpisodeSampler(sampler=flow, environment=environment, decisions=decisions),
        estimator=PerDecision(estimator=LabelledMatching(draws=draws, times=UniformTimes())),
        advantage=DecisionRewards(),
        token_advantage=(EpisodeGAE(gamma, lam, whiten=False), Improved(null)),
        objective=ScoreFunction(),
        regularizers=(ValueLoss(value, clip=math.inf),),
        aggregation=DecisionMean(),
        redraw=True,
        min_group=1,
        families=("control",),
    )
