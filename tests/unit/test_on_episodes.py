"""Presets for images on the decisions of episodes: what they are there, and which cannot be."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

from flowrl import composition
from flowrl.composition.episodes import on_episodes
from flowrl.errors import UserError
from flowrl.math.random import each
from flowrl.parts.aggregations import DecisionMean, SampleSum
from flowrl.parts.algorithm import Algorithm
from flowrl.types import Draw, Rollout
from tests.contract.toys import SIZES, Iteration, disturb, gradients, roll, small, start, thorough

OWN = ("fpo", "fpo_pp")
"""Have a critic and a loss of their own on episodes."""
ACTING = [
    name
    for name in composition.preset_names()
    if composition.families(name) == ("diffusion", "control") and name not in OWN
]


@pytest.mark.parametrize("name", thorough(ACTING, quick=("awm", "diffusion_nft", "flow_grpo", "raft")))
def test_an_episode_of_one_decision_is_a_picture(name: str) -> None:
    """The same chunks bit for bit, and on the same numbers the same gradients in all updates, of one decision each."""
    images = small(name)
    acting: Any = on_episodes(images, SIZES["control"]["environment"], decisions=1)
    policy = start(acting)
    it = roll(acting, policy)
    episodes: Any = it.rollout.trace
    assert episodes.alive.all() and episodes.actions.shape[1:] == (1, 1, 2)
    seen = policy.condition(it.draw.prompts).seeing(episodes.observed[:, 0])
    draw = Draw(each(it.draw.seeds, "decision", 0), it.draw.group, 0, it.draw.shared_seed, it.draw.place)
    with policy.using(images.behaviour):
        made = images.sampler(policy, seen, draw)
    assert torch.equal(made.final, episodes.actions[:, 0])
    picture = Iteration(
        policy, Rollout.of(draw, seen, made.final, made.trace, times=made.times), it.scores, it.advantage, draw
    )
    rows = acting.estimator.probe(it.rollout, policy, it.rollout.seeds)
    disturb(policy, 0.002)  # off policy, so that clips and penalties take part
    wanted = gradients(_asking(acting, rows), it, updates=2, micro_batch=7)
    found = gradients(_asking(images, rows.inner), picture, updates=2, micro_batch=7)
    assert len(wanted) == len(found) == 2 and all(float(gradient.norm()) > 0 for gradient in wanted)
    for mine, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6 * float(other.norm()))


def _asking(algorithm: Algorithm, rows: Any) -> Algorithm:
    """The algorithm, with an estimator that asks at these points."""
    estimator = copy(algorithm.estimator)
    object.__setattr__(estimator, "probe", lambda *_: rows)
    return replace(algorithm, estimator=estimator)


def test_decisions_of_long_and_short_episodes_count_alike() -> None:
    """The gradient of a return is a sum over decisions; an aggregation that is no mean over samples stays."""
    assert composition.build({"use": "rwr", "family": "control"}).aggregation == DecisionMean()
    summed = replace(composition.build("rwr"), aggregation=SampleSum())
    assert on_episodes(summed).aggregation == SampleSum()


def test_options_are_those_of_an_episode() -> None:
    found: Any = composition.build({
        "use": "awm",
        "family": "control",
        "environment": "two_walls",
        "decisions": 7,
        "steps": 3,
        "sampler": {"on_error": "drop"},
        "estimator": {"estimator": {"draws": 2}},
    })  # fmt: skip
    sampler = found.sampler
    assert (sampler.environment, sampler.decisions, sampler.on_error, sampler.sampler.steps) == (
        "two_walls",
        7,
        "drop",
        3,
    )
    assert found.estimator.estimator.draws == 2 and found.families == ("control",)
    assert composition.build({"use": "awm", "family": "diffusion"}) == composition.build("awm")


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"use": "dgpo", "family": "control"}, "dgpo: it does not act: .*shares times and noises in a group"),
        ({"use": "tree_grpo", "family": "control"}, "TreeSampler makes more than single samples"),
        ({"use": "refl", "family": "control"}, "Replay needs the gradient of a reward"),
        ({"use": "grpo_guard", "family": "control"}, "records means"),
        ({"use": "d3po", "family": "control"}, "DecisionPair compares samples decision by decision"),
        ({"use": "diverse_grpo", "family": "control"}, "statistics of pictures"),
        ({"use": "grpo", "family": "control"}, "trains causal models"),
        ({"use": "awm", "family": "causal"}, "awm trains diffusion models, and with family: control in an env"),
        ({"use": "awm", "family": "controls"}, "algorithm.family: 'controls' will not do"),
        ({"use": "awm", "decisions": 3}, "algorithm.decisions: awm acts in an environment with family: control"),
        ({"use": "awm", "family": "control", "decisions": "many"}, "algorithm.decisions: 'many' will not do"),
        ({"use": "awm", "family": "control", "decisions": 0}, "decisions=0 makes no step"),
    ],
)
def test_what_does_not_act_says_why(spec: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        composition.build(spec)
