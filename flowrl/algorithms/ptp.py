"""PTP: a diffusion policy that also predicts the actions before, and is held to them (arXiv:2505.09561)."""

from flowrl.estimators.episodes import PerDecision
from flowrl.estimators.imitation import ChunkMatching
from flowrl.estimators.times import UniformTimes
from flowrl.parts.aggregations import DecisionMean
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.objectives import ScoreFunction
from flowrl.parts.records import Imitate
from flowrl.samplers.demonstrations import Demonstrations
from flowrl.samplers.episodes import EpisodeSampler
from flowrl.samplers.flow import FlowSampler
from flowrl.samplers.verified import PastVerified

PAPER = "arXiv:2505.09561"


def ptp(
    *,
    past_weight: float = 1.0,
    candidates: int = 1,
    draws: int = 1,
    steps: int = 10,
    environment: str = "avoid",
    decisions: int = 40,
    length: int = 200,
) -> Algorithm:
    """`diffusion_policy` on chunks whose first actions are those before the present one: the model's ``past``, one less
    than its ``history`` in the release, where 16 observations go with 15 actions before and 17 from the present one on,
    of which 8 or 1 are executed. Acting, of ``candidates`` chunks the one is executed whose past is nearest to what was
    executed. As long-context-dp/ldp (17 May 2025): every action of a chunk counts the same (``past_action_pred``;
    ``past_weight`` 0 is its ``false``), one candidate unless asked for more; rate 1e-4, average of power .75.

    Deviations: a flow instead of 100 steps of a DDPM, unless the model is one; observations are numbers, so that the
    encoder of pictures that the paper trains first and then caches is not there; without ``past`` or with candidates 1
    and ``past_weight`` 1 it is `diffusion_policy` itself.
    """
    flow = FlowSampler(steps=steps, guidance=1.0)
    verified = PastVerified(sampler=flow, candidates=candidates)
    acting = EpisodeSampler(sampler=verified, environment=environment, decisions=decisions)
    matching = ChunkMatching(draws=draws, times=UniformTimes(), guidance=1.0, past_weight=past_weight)
    return Algorithm(
        sampler=Demonstrations(sampler=acting, length=length),
        estimator=PerDecision(estimator=matching),
        advantage=Imitate(),
        objective=ScoreFunction(),
        aggregation=DecisionMean(),
        redraw=True,
        min_group=1,
        families=("control",),
    )
