"""FPO: PPO on the ratio of exponentiated flow-matching losses (arXiv:2507.21053)."""

import math
from dataclasses import replace
from typing import Literal

from flowrl.estimators.episodes import PerDecision
from flowrl.estimators.matching import Matching
from flowrl.estimators.times import NOISE_TIME, GridTimes
from flowrl.parts.advantages import GroupCentred
from flowrl.parts.aggregations import DecisionMean
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.episodes import DecisionRewards, EpisodeGAE
from flowrl.parts.objectives import Clipped, ClippedMean
from flowrl.parts.regularizers import ValueLoss
from flowrl.samplers.episodes import EpisodeSampler
from flowrl.samplers.flow import FlowSampler

PAPER = "arXiv:2507.21053"


def fpo(
    *,
    clip: float = 0.05,
    draws: int = 8,
    steps: int = 10,
    weight: Literal["uniform", "t", "t2", "noise"] = "noise",
    gamma: float = 0.995,
    lam: float = 0.95,
    value: float = 0.5,
    environment: str = "avoid",
    decisions: int = 40,
    family: Literal["diffusion", "control"] = "diffusion",
) -> Algorithm:
    """The settings of akanazawa/fpo (12 Jan 2026, playground): noise-prediction error (weight ``(1-t)^2``), averaged
    over the draws before the exponential, clip 0.05. On images take ``clip: 0.002``, which holds, or ``weight: t2``,
    which learns faster, or `fpo_pp`: the log-ratio is a mean over latent elements and hardly ever reaches that clip, so
    that nothing holds what noise does to the velocities, and training collapses, on rewards drawn at random as well
    (docs/evidence/fpo_collapse.md). A clip fits where ``clip_fraction`` is some percent from the first iterations on.

    Deviations: the release's tasks are control, whose grid ends at t = 1 / steps; the last time of an image model's
    grid can be 0.001 or 0.009, where the error tells nothing of the policy and has the largest gradient of all, so
    times below ``NOISE_TIME`` are left out. The times of a sample are spread over the grid instead of drawn
    independently. The paper uses a critic; an image is one action with one reward, so the group stands in for it.

    ``family: control`` is the release's own use, on the decisions of episodes: the same ratio of every decision (the
    mean of its draws), a critic (``value`` times half its squared error, .25 times the square there; not clipped) and
    GAE; only there are ``gamma``, ``lam``, ``value``, ``environment`` and
    ``decisions`` read. The ratio depends on the scale of the actions: they are standardised by the demonstrations, and
    a policy narrower than about .2 of those has a far looser trust region than ``clip`` says. Few ``steps`` leave a
    drift that no advantage asked for; take 10 or more. Deviations there: as `ppo_gaussian`, besides gradient clipping.
    """
    images = Algorithm(
        sampler=FlowSampler(steps=steps, guidance=1.0),
        estimator=Matching(
            draws=draws,
            times=GridTimes(fraction=1.0, stratified=True, least=NOISE_TIME),
            weight=weight,
            guidance=1.0,
        ),
        advantage=GroupCentred(scale="group", ddof=1, eps=1e-8),
        objective=ClippedMean(clip, clip),
    )
    if family == "diffusion":
        return images
    return replace(
        images,
        sampler=EpisodeSampler(sampler=images.sampler, environment=environment, decisions=decisions),
        estimator=PerDecision(estimator=images.estimator, average=True),
        advantage=DecisionRewards(),
        token_advantage=(EpisodeGAE(gamma, lam),),
        objective=Clipped(clip, clip),
        regularizers=(ValueLoss(value, clip=math.inf),),
        aggregation=DecisionMean(),
        min_group=1,
        families=("control",),
    )
