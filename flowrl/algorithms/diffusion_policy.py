"""Diffusion Policy: imitate demonstrations by denoising chunks of actions (arXiv:2303.04137)."""

from flowrl.estimators.episodes import PerDecision
from flowrl.estimators.matching import Matching
from flowrl.estimators.times import UniformTimes
from flowrl.parts.aggregations import DecisionMean
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.objectives import ScoreFunction
from flowrl.parts.records import Imitate
from flowrl.samplers.demonstrations import Demonstrations
from flowrl.samplers.episodes import EpisodeSampler
from flowrl.samplers.flow import FlowSampler

PAPER = "arXiv:2303.04137"


def diffusion_policy(
    *, draws: int = 1, steps: int = 10, environment: str = "avoid", decisions: int = 40, length: int = 200
) -> Algorithm:
    """`sft` on chunks: the mean squared error of the predicted velocity at uniform times (of a DDPM, whose times the
    model snaps to, weighted by its coordinates), over all steps of the demonstrations. Data are prompts with the
    columns ``observed`` and ``action``; evaluation acts in ``environment``. The average that the paper deploys is
    ``train.ema``.

    The paper looks at 2 observations, predicts 16 actions and executes 8: a model's ``history``, ``chunk`` and
    ``execute``. Its code was not compared: formula and padding are the paper's.
    """
    flow = FlowSampler(steps=steps, guidance=1.0)
    acting = EpisodeSampler(sampler=flow, environment=environment, decisions=decisions)
    return Algorithm(
        sampler=Demonstrations(sampler=acting, length=length),
        estimator=PerDecision(estimator=Matching(draws=draws, times=UniformTimes(), guidance=1.0)),
        advantage=Imitate(),
        objective=ScoreFunction(),
        aggregation=DecisionMean(),
        redraw=True,
        min_group=1,
        families=("control",),
    )
