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
    """``null |v_0 - u|^2 + 1[A > 0] |v_1 - u|^2`` at the same noise for every decision: u is the velocity to its chunk,
    v_1 the network's with the label and v_0 without. It acts by ``v_0 + w (v_1 - v_0)``: w is ``guidance``, in
    evaluation ``eval.guidance``, which an export remembers. As in kvfrans/cfgrl (rlbase/algs_offline/iql_diffusion.py,
    read in the fork mhyatt000/cfgrl at 6b95e5a): both errors of every sample, the plain one times .1, 32 steps, w 1
    unless one of 1 to 100 is asked for; rate 3e-4.

    Deviations: A is `EpisodeGAE` with a critic of the mean return, there IQL's Q - V (two Q, expectile .9). Data are
    the policy's own episodes, made with ``guidance``, there a fixed set: ``sampler: {use: demonstrations, executed:
    true}`` reads one, with the column ``reward``. Times are any, there multiples of 1/32. The label adds a vector to
    the first layer, there an embedding of 32 numbers is one of its inputs. The release's form for single tasks of
    OGBench (ogbench/agents/flowiql.py) has a label for A < 0 too, and leaves the label out of a tenth of the samples;
    that for goals leaves out the goal. Neither is here.
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
