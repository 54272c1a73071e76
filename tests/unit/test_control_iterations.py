"""Whole iterations of control policies: a run that goes on where it ended, several processes, failing episodes."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from flowrl.checks import judge, measure
from flowrl.checks.registry import SPREAD
from flowrl.composition import build
from flowrl.config import Config
from flowrl.data import PromptSet
from flowrl.errors import UserError
from flowrl.runtime.timing import PhaseTimer
from flowrl.score import load_rewards
from flowrl.session import Session
from flowrl.startup.doubts import doubts
from flowrl.startup.preflight import check_run
from flowrl.train import iterate
from flowrl.types import Prompt
from flowrl.update_checks import DRIFT
from tests.contract.toy_environment import toy_policy
from tests.launching import settled
from tests.unit.test_ranks_iterations import compare

TOY = "tests.contract.toy_environment:make"


def session_of(
    algorithm: Any = None, environment: str = TOY, on_nan: str = "raise", group: int = 4, **sampler: Any
) -> Session:
    """A run of the toy flow; dppo by default."""
    spec = {**(algorithm or {"use": "dppo", "steps": 3, "clip": 0.2}), "environment": environment, "decisions": 3}
    built = build({**spec, "sampler": sampler} if sampler else spec)
    critic = {"critic_lr": 0.005, "critic_warmup": 1} if built.valued or built.judges else {}
    config = Config.of({
        "name": "toy",
        "model": {"path": "avoid"},
        "algorithm": {**spec, "sampler": sampler} if sampler else spec,
        "data": {"prompts": 3, "group": group, "test": None},
        "rewards": [{"use": "episode_return"}],
        "optimizer": {"lr": 0.002, **critic},
        "train": {"iterations": 9, "sample_batch": 5, "updates": 2, "epochs": 2, "micro_batch": 7},
        "eval": {"every": 0, "weights": "live"},
        "on_nan": on_nan,
    })  # fmt: skip
    start = None if built.tuned is None else built.tuned[1] / built.tuned[0]  # of a flow's even times
    needed: dict[str, Any] = {name: getattr(built, name) for name in ("residual", "beside", "acting")}
    policy = toy_policy(critic=built.valued, noise=built.explores, tuned_from=start, **needed)
    for name in built.weight_sets:
        policy.update_ema(name, 0.0)
    valued = policy.critic_parameters()
    groups = [{"params": policy.parameters()[: len(policy.parameters()) - len(valued)]}]
    groups += [{"params": valued}] if valued else []
    optimizer = torch.optim.AdamW(groups, lr=0.002, weight_decay=0.0)
    prompts = PromptSet(tuple(Prompt(f"p{i}", i, {"ends": 2}) for i in range(5)))
    return Session(config, policy, built, prompts, None, load_rewards(config.rewards, config.on_nan), optimizer)


def lines(session: Session, count: int) -> list[dict[str, float]]:
    return [settled(iterate(session, PhaseTimer())[0]) for _ in range(count)]


FPO = {"use": "fpo", "family": "control", "draws": 2, "steps": 3}
NOISY = ({"use": "reinflow", "steps": 2}, {"use": "policy_flow", "steps": 3}, {"use": "resip", "steps": 3})
LAST = {"use": "dppo", "steps": 4, "tuned": 2, "clip": 0.2}
GROUPED = (
    {"use": "awm", "family": "control", "steps": 3},
    {"use": "diffusion_nft", "family": "control", "steps": 3},
    {"use": "raft", "family": "control", "steps": 3},
    {"use": "flow_grpo", "family": "control", "steps": 3, "clip": 0.2, "noise_level": 0.3},
)
"""Presets for images; groups of episodes stand in for a critic."""


@pytest.mark.parametrize("algorithm", [FPO, None, *NOISY, LAST, *GROUPED])
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


def test_checks_leave_a_run_as_it_is() -> None:
    ends = []
    for every in (0, 1):
        session = session_of(FPO)
        object.__setattr__(session.config.monitor, "checks", every)
        metrics = lines(session, 2)
        kept = [{k: v for k, v in line.items() if not k.startswith("check/")} for line in metrics]
        weights = torch.cat([parameter.detach().flatten() for parameter in session.policy.parameters()])
        ends.append((kept, weights, vars(session.progress)))
        assert (DRIFT in metrics[0]) == bool(every)
    assert ends[0][0] == ends[1][0] and torch.equal(ends[0][1], ends[1][1]) and ends[0][2] == ends[1][2]


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
    for algorithm in (FPO, *NOISY, *GROUPED, LAST):
        compare(size, partial(session_of, algorithm), iterations=2)


@pytest.mark.parametrize(("pull", "healthy"), [(1.0, True), (2.0, False)])
def test_narrow_policies_are_told_of_where_the_clip_is_one_of_matching_errors(pull: float, healthy: bool) -> None:
    """With v = c x three steps from z end at ``(1 - c / 3)^3 z``: .296 and .037 of a standard normal variable (T15)."""
    session = session_of(FPO)
    policy: Any = session.policy
    _, batch, _ = iterate(session, PhaseTimer())
    policy.velocity = lambda x, t, condition, **_: pull * x
    calls = policy.network_calls
    metrics = measure(session, batch, PhaseTimer())
    assert metrics[SPREAD] == pytest.approx((1 - pull / 3) ** 3, rel=0.15) and policy.network_calls == calls
    found = {verdict.check.name: verdict for verdict in judge(session, metrics)}["action_spread"]
    assert found.healthy == healthy and (healthy or "standardise actions" in found.sentence())
    other = session_of()  # a ratio of densities does not depend on the scale
    _, batch, _ = iterate(other, PhaseTimer())
    assert SPREAD not in measure(other, batch, PhaseTimer())


def coarse(steps: int) -> dict[str, Any]:
    return {"use": "fpo", "family": "control", "draws": 4, "steps": steps}


def test_drift_is_the_gradient_for_equal_advantages_over_its_error() -> None:
    """By autograd of the mean log-probability of the decisions in each of 24 parts; the first iteration trains the
    critic alone, so that the policy is still the one that sampled."""
    session = session_of(coarse(2), group=10)
    metrics, batch, _ = iterate(session, PhaseTimer())
    policy: Any = session.policy
    estimator, rollout = session.algorithm.estimator, batch.rollout
    rows: Any = estimator.probe(rollout, policy, rollout.seeds)
    gradients = []
    for part in range(24):
        some = torch.arange(part, 30, 24)
        block = rows.block(some, slice(None))
        logp = estimator(policy, block, rollout.condition.take(some)).logp[block.alive]
        found = torch.autograd.grad(logp.mean(), list(policy.network.body.parameters()))
        gradients.append(torch.cat([gradient.flatten() for gradient in found]).double())
    every = torch.stack(gradients)
    error = (every.var(dim=0).sum() / 24).sqrt()
    assert metrics[DRIFT] == pytest.approx(float(every.mean(dim=0).norm() / error), rel=1e-3)


@pytest.mark.parametrize(("steps", "healthy"), [(2, False), (20, True)])
def test_a_coarse_sampler_drifts(steps: int, healthy: bool) -> None:
    """Sheet 4: matching errors of a coarse sampler's own actions have no gradient of mean zero (T14)."""
    session = session_of(coarse(steps), group=60)
    metrics = iterate(session, PhaseTimer())[0]
    found = {verdict.check.name: verdict for verdict in judge(session, metrics)}["drift"]
    assert found.healthy == healthy and (healthy or "10 or more" in found.sentence())
    assert DRIFT not in iterate(session, PhaseTimer())[0]  # of the first iteration alone
    assert DRIFT not in iterate(session_of(group=60), PhaseTimer())[0]  # densities do not drift


def test_fpo_with_few_steps_or_an_untaught_critic_is_doubted() -> None:
    values: dict[str, Any] = {
        "name": "doubted",
        "model": {"path": "avoid"},
        "algorithm": {**FPO, "environment": "avoid"},
        "data": {"train": "avoid:train", "test": "avoid:test", "prompts": 2, "group": 2},
        "rewards": [{"use": "episode_return"}],
        "train": {"iterations": 2, "updates": 2},
    }

    def said(**changes: Any) -> str:
        return " ".join(s for s in doubts(check_run(Config.of({**values, **changes}))) if "matching errors" in s)

    assert "steps=3, and 10 or more" in said() and "optimizer.critic_warmup=0" in said()
    taught = {"optimizer": {"critic_warmup": 1}}
    assert "critic_warmup" not in said(**taught)
    assert not said(**taught, algorithm={**FPO, "steps": 10}) and not said(algorithm={"use": "dppo", "steps": 3})


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


@pytest.mark.parametrize("algorithm", [None, {"use": "resip", "steps": 3}])
def test_episodes_whose_environment_fails_follow_on_nan(algorithm: Any, tmp_path: Path) -> None:
    (tmp_path / "failing.py").write_text(FAILING)
    place = f"{tmp_path / 'failing.py'}:make"
    with pytest.raises(UserError, match="observation or reward that is NaN or infinite, in row"):
        iterate(session_of(algorithm, environment=place), PhaseTimer())
    with pytest.raises(UserError, match="on_nan"):
        iterate(session_of(algorithm, environment=place, on_error="drop"), PhaseTimer())
    metrics, made, advantage = iterate(
        session_of(algorithm, environment=place, on_nan="drop_sample", on_error="drop"), PhaseTimer()
    )
    lost = ~made.scores.valid
    assert 0 < int(lost.sum()) < 12 and bool((advantage[lost] == 0).all()) and bool(torch.isfinite(advantage).all())
    assert metrics["ratio/first_max_deviation"] < 1e-6 and metrics["grad_norm"] > 0


def test_lines_that_tell_of_episodes_are_not_watched_as_answers() -> None:
    session = session_of()
    assert session.config.monitor.samples > 0
    assert not [key for key in lines(session, 1)[0] if key.startswith(("monitor/", "alarm/"))]
