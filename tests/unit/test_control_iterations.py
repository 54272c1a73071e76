"""Whole iterations of control policies: a run that goes on where it ended, several processes, failing episodes."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from flowrl.composition import build
from flowrl.config import Config
from flowrl.data import PromptSet
from flowrl.errors import UserError
from flowrl.runtime.timing import PhaseTimer
from flowrl.score import load_rewards
from flowrl.session import Session
from flowrl.train import iterate
from flowrl.types import Prompt
from tests.contract.toy_environment import toy_policy
from tests.launching import settled
from tests.unit.test_ranks_iterations import compare

TOY = "tests.contract.toy_environment:make"


def session_of(algorithm: Any = None, environment: str = TOY, on_nan: str = "raise", **sampler: Any) -> Session:
    """A run of the toy flow; dppo by default."""
    spec = {**(algorithm or {"use": "dppo", "steps": 3, "clip": 0.2}), "environment": environment, "decisions": 3}
    config = Config.of({
        "name": "toy",
        "model": {"path": "avoid"},
        "algorithm": {**spec, "sampler": sampler} if sampler else spec,
        "data": {"prompts": 3, "group": 4, "test": None},
        "rewards": [{"use": "episode_return"}],
        "optimizer": {"lr": 0.002, "critic_lr": 0.005, "critic_warmup": 1},
        "train": {"iterations": 9, "sample_batch": 5, "updates": 2, "epochs": 2, "micro_batch": 7},
        "eval": {"every": 0, "weights": "live"},
        "monitor": {"samples": 0},
        "on_nan": on_nan,
    })  # fmt: skip
    built, policy = build(config.algorithm), toy_policy(noise=build(config.algorithm).explores)
    critic = policy.critic_parameters()
    groups = [{"params": policy.parameters()[: -len(critic)]}, {"params": critic}]
    optimizer = torch.optim.AdamW(groups, lr=0.002, weight_decay=0.0)
    prompts = PromptSet(tuple(Prompt(f"p{i}", i, {"ends": 2}) for i in range(5)))
    return Session(config, policy, built, prompts, None, load_rewards(config.rewards, config.on_nan), optimizer)


def lines(session: Session, count: int) -> list[dict[str, float]]:
    return [settled(iterate(session, PhaseTimer())[0]) for _ in range(count)]


@pytest.mark.parametrize("algorithm", [{"use": "fpo", "family": "control", "draws": 2, "steps": 3}, None])
def test_a_run_goes_on_where_it_ended_bit_for_bit(algorithm: Any) -> None:
    """Nothing of an environment lives between iterations (T18)."""
    whole = session_of(algorithm)
    wanted = lines(whole, 3)
    first = session_of(algorithm)
    begun = lines(first, 1)
    tensors, values = first.state()
    again = session_of(algorithm)
    again.restore({key: value.clone() for key, value in tensors.items()}, json.loads(json.dumps(values)))
    assert [*begun, *lines(again, 2)] == wanted
    for one, other in zip(whole.policy.parameters(), again.policy.parameters(), strict=True):
        assert torch.equal(one, other)
    assert wanted[0]["episode/decisions"] == 2 and 0 < wanted[0]["episode/success"] < 1
    assert wanted[0]["episode/modes"] == 1 and wanted[0]["episode/mode_entropy"] == 0  # of the successful ones


def test_only_the_critic_learns_at_first() -> None:
    session = session_of()
    before = [parameter.detach().clone() for parameter in session.policy.parameters()]
    iterate(session, PhaseTimer())
    count = len(session.policy.critic_parameters())  # pyright: ignore[reportAttributeAccessIssue]
    same = [torch.equal(a, b) for a, b in zip(before, session.policy.parameters(), strict=True)]
    assert all(same[:-count]) and not any(same[-count:])


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
def test_several_processes_end_where_one_does(size: int) -> None:
    compare(size, session_of, iterations=2)
    compare(size, partial(session_of, {"use": "fpo", "family": "control", "draws": 2, "steps": 3}), iterations=2)


FAILING = """
import numpy as np
from tests.contract.toy_environment import Plane

class Failing(Plane):
    def step(self, actions, rows):
        observed, reward, ended, cut, known = super().step(actions, rows)
        return observed, np.where(self._own[rows] > 0.5, np.nan, reward), ended, cut, known

def make(count):
    return Failing(count)
"""


def test_episodes_whose_environment_fails_follow_on_nan(tmp_path: Path) -> None:
    (tmp_path / "failing.py").write_text(FAILING)
    place = f"{tmp_path / 'failing.py'}:make"
    with pytest.raises(UserError, match="observation or reward that is NaN or infinite, in row"):
        iterate(session_of(environment=place), PhaseTimer())
    with pytest.raises(UserError, match="on_nan"):
        iterate(session_of(environment=place, on_error="drop"), PhaseTimer())
    metrics, made, advantage = iterate(
        session_of(environment=place, on_nan="drop_sample", on_error="drop"), PhaseTimer()
    )
    lost = ~made.scores.valid
    assert 0 < int(lost.sum()) < 12 and bool((advantage[lost] == 0).all()) and bool(torch.isfinite(advantage).all())
    assert metrics["ratio/first_max_deviation"] < 1e-6 and metrics["grad_norm"] > 0
