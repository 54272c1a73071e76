"""Trajectory distribution matching with a learned reward: its points, directions and companions."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flowrl import composition
from flowrl.companions import build_optimizers, train_companions
from flowrl.estimators.trajectory_matching import TrajectoryDifference, TrajectoryMatching, onward
from flowrl.math.flow import CPS
from flowrl.parts.contrasts import GroupPreference
from flowrl.parts.ema import Ema, Ramp
from flowrl.parts.loss_weights import LaterSteps
from flowrl.parts.trust_regions import SquaredGain
from flowrl.samplers.windows import LastSteps
from flowrl.session import Session
from flowrl.step import UpdateSettings
from flowrl.types import Batch, IncompatibleError, Likelihood, Rows, StepRows
from tests.contract.toys import disturb, reward, roll, small, start, table_of
from tests.training import Work, config_of, train
from tests.unit.test_distribution import REAL, Gaussians, generated
from tests.unit.test_ranks_iterations import compare, few
from tests.unit.test_rounds import SET, session_of


def test_the_state_after_a_step_is_noised_on_by_the_forward_process() -> None:
    clean, noise, added = torch.randn(3, 2000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t_next, s = torch.full((2000,), 0.4).double(), torch.full((2000,), 0.7).double()
    at = onward(clean, noise, added, t_next, s)
    after = 0.6 * clean + 0.4 * noise
    kept = 0.3 / 0.6  # of the signal: what a forward process from .4 to .7 leaves
    torch.testing.assert_close(at.x, kept * after + (0.49 - (kept * 0.4) ** 2) ** 0.5 * added)
    torch.testing.assert_close(at.x, 0.3 * clean + 0.7 * at.noise)
    assert float(at.noise.var()) == pytest.approx(1, abs=0.05)
    torch.testing.assert_close(onward(clean, noise, added, t_next, t_next).x, after)
    assert float((at.noise * noise).mean()) == pytest.approx(kept * 0.4 / 0.7, abs=0.05)


@pytest.mark.parametrize("theta", [0.9, REAL])
def test_without_rewards_it_is_the_gradient_of_the_kl(theta: float) -> None:
    """Of one step, whose noise is all added: the closed form of `tests.unit.test_distribution`; 0 for equal scores."""
    policy: Any = Gaussians(theta)
    rollout, estimator = generated(policy, 64, 3), TrajectoryDifference(real="real", rewarded=0.0)
    rows = estimator.probe(rollout, policy, rollout.seeds)
    (-estimator(policy, rows, rollout.condition).logp).mean().backward()
    _, d = estimator.direction(policy, rows, rollout.condition)
    s = rows.noised_to[:, 0]
    gap = (theta - REAL) * s**2 / ((1 - s) ** 2 * 0.49 + s**2)
    size = torch.where(gap == 0, 1.0, gap / d.double()[:, 0])
    assert float(policy.theta.grad) == pytest.approx(float((gap / size).mean()), rel=1e-4, abs=1e-7)
    assert bool((size > 0).all())


def toy(**spec: Any) -> tuple[Any, Any, Any]:
    algorithm = small("tdm_r1", 4, **{"guidance": 1.0, "guided": 0.0, "passes": 1, **spec})
    policy = start(algorithm)
    return algorithm, policy, roll(algorithm, policy)


def direction(algorithm: Any, policy: Any, it: Any, **changes: Any) -> Tensor:
    estimator = replace(algorithm.estimator, **changes)
    rows = estimator.probe(it.rollout, policy, it.rollout.seeds)
    return estimator.direction(policy, rows, it.rollout.condition)[1]


def test_a_surrogate_that_learned_nothing_gives_no_direction() -> None:
    algorithm, policy, it = toy()
    with policy.weights.learning("surrogate"), torch.no_grad():  # it starts where its anchor does
        for parameter, value in zip(policy.parameters(), policy.weights._tensors("reference").values(), strict=True):
            parameter.copy_(value)
    plain = direction(algorithm, policy, it, surrogate="")
    assert torch.equal(direction(algorithm, policy, it), plain) and float(plain.norm()) > 0
    assert not torch.equal(direction(algorithm, policy, it, anchor="slow"), plain)


def test_guidance_is_a_direction_of_its_own() -> None:
    algorithm, policy, it = toy()
    asked = {"surrogate": "", "real": "slow", "guidance": 3.0}
    none, once, twice = (direction(algorithm, policy, it, **asked, guided=g) for g in (0.0, 0.5, 1.0))
    torch.testing.assert_close(twice - none, 2 * (once - none), rtol=1e-3, atol=1e-5)
    assert float((once - none).norm()) > 0


def test_what_the_surrogate_learned_points_to_rewarded_samples() -> None:
    algorithm, policy, it = toy(clip=0.5)
    beside = {each.name: torch.optim.Adam(policy.parameters(), lr=0.02) for each in algorithm.companions}
    live = torch.cat([parameter.detach().flatten().clone() for parameter in policy.parameters()])
    for iteration in range(25):
        it = roll(algorithm, policy, iteration)
        train_companions(policy, beside, algorithm, it.rollout, it.scores, {}, UpdateSettings(), done=iteration)
    assert torch.equal(torch.cat([parameter.detach().flatten() for parameter in policy.parameters()]), live)
    estimator = algorithm.estimator
    rows = estimator.probe(it.rollout, policy, it.rollout.seeds)
    clean, whole = estimator.direction(policy, rows, it.rollout.condition)
    follows = direction(algorithm, policy, it, surrogate="") - whole  # the reward's part of -d
    assert float((reward(policy, clean + 0.1 * follows) - reward(policy, clean)).mean()) > 0.005


def test_a_slow_copy_follows_the_surrogate_and_not_the_policy() -> None:
    algorithm, policy, it = toy()
    averages = (Ema("slow", Ramp(slope=0.0, most=0.25, base=0.25)),)
    fake, surrogate = algorithm.companions
    algorithm = replace(algorithm, companions=(fake, replace(surrogate, ema_weights=averages)))
    before = {key: value.clone() for key, value in policy.weights._tensors("slow").items()}
    beside = {each.name: torch.optim.SGD(policy.parameters(), lr=0.5) for each in algorithm.companions}
    train_companions(policy, beside, algorithm, it.rollout, it.scores, {}, UpdateSettings())
    slow, now = policy.weights._tensors("slow"), policy.weights._tensors("surrogate")
    for key, old in before.items():
        torch.testing.assert_close(slow[key], 0.25 * old + 0.75 * now[key])
    assert any(not torch.equal(now[key], before[key]) for key in before)
    with pytest.raises(ValueError, match="choose another name"):
        policy.weights.update_ema("slow", 0.5, "slow")


def batch_of(advantage: Tensor) -> Batch:
    even = torch.full_like(advantage, 1 / advantage.numel())
    zero = Likelihood(torch.zeros_like(advantage))
    return Batch(advantage, zero, even, torch.zeros(len(advantage), dtype=torch.int64), Rows())


def test_samples_that_moved_far_enough_as_asked_are_left_alone() -> None:
    gain = torch.tensor([[0.3], [0.1], [0.3], [-0.3]], dtype=torch.float64)
    batch = batch_of(torch.tensor([[1.0], [1.0], [-1.0], [-1.0]], dtype=torch.float64))
    slopes = []
    for most in (None, 0.05):
        logp = torch.zeros(4, 1, dtype=torch.float64, requires_grad=True)
        live = Likelihood(logp, {"log_ratio/reference": gain})
        GroupPreference(1.0, most=most)(live, batch).sum().backward()
        assert logp.grad is not None
        slopes.append(logp.grad[:, 0])
    assert (slopes[0] != 0).tolist() == [True] * 4 and (slopes[1] != 0).tolist() == [False, True, True, False]
    torch.testing.assert_close(slopes[1][1:3], slopes[0][1:3])
    with pytest.raises(ValueError, match="most=0"):
        GroupPreference(1.0, most=0.0)


def test_the_further_parts_are_their_formulas() -> None:
    logp = torch.tensor([[0.2, -0.1]], dtype=torch.float64, requires_grad=True)
    live = Likelihood(logp, {"log_ratio/reference": torch.tensor([[0.5, -0.4]]).double()})
    penalty = SquaredGain()(live, batch_of(torch.ones(1, 2).double()))
    assert penalty.tolist() == [[pytest.approx(0.25), pytest.approx(0.16)]]
    assert torch.autograd.grad(penalty.sum(), logp)[0].tolist() == [[pytest.approx(1.0), pytest.approx(-0.8)]]
    steps = StepRows(torch.ones(2, 4), torch.zeros(2, 4))
    table = table_of(torch.ones(2, 4), torch.ones(2, 4, dtype=torch.bool), rows=steps)
    assert LaterSteps()(table).tolist() == [[0.5, 0.75, 1.0, 1.25]] * 2
    for make, message in (
        (lambda: LaterSteps(-1), "less than nothing"),
        (lambda: TrajectoryMatching(importance=0.5), "bound weights"),
        (lambda: TrajectoryDifference(real="fake"), "three weight sets"),
        (lambda: TrajectoryDifference(surrogate="reference"), "three weight sets"),
        (lambda: TrajectoryDifference(guided=1.0), "give its scale"),
    ):
        with pytest.raises(ValueError, match=message):
            make()


def test_the_steps_have_to_be_deterministic() -> None:
    algorithm, policy, it = toy()
    noisy = replace(algorithm.sampler, dynamics=CPS(1.0), window=LastSteps(noise=True))
    it = roll(replace(algorithm, sampler=noisy), policy)
    with pytest.raises(IncompatibleError, match="deterministic steps"):
        algorithm.estimator.probe(it.rollout, policy, it.rollout.seeds)
    with pytest.raises(IncompatibleError, match="recorded states"):
        algorithm.estimator.decisions(0)


def session(where: Path) -> Session:
    spec = {"use": "tdm_r1", "steps": 3, "guidance": 1.0, "guided": 0.0, "passes": 2, "lr": 1e-2}
    made = session_of(["open"] * SET, where, "diffusion", algorithm=spec)
    disturb(made.policy)
    for name in made.algorithm.weight_sets:
        made.policy.update_ema(name, 0.0)
    made.companions = build_optimizers(made.config, made.policy, made.algorithm)
    return made


def test_iterations_are_those_of_one_process(tmp_path: Path) -> None:
    compare(2, lambda: session(tmp_path), iterations=2)


def test_a_resumed_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    whole, part = session(tmp_path), session(tmp_path)
    expected, theta, _ = few(whole, 3)
    few(part, 2)
    tensors, values = part.state()
    again = session(tmp_path)
    again.restore(copy.deepcopy(tensors), json.loads(json.dumps(values)))
    metrics, found, _ = few(again, 1)
    assert torch.equal(found, theta) and metrics[-1] == expected[-1]
    for name in ("fake", "surrogate", "slow"):
        assert whole.policy.weights.sha256(name) == again.policy.weights.sha256(name)


def test_the_preset_has_three_learners() -> None:
    made: Any = composition.build({"use": "tdm_r1", "real": "base"})
    assert set(made.weight_sets) == {"fake", "surrogate", "slow"} and made.teachers == ("base",)
    assert made.estimator.references == ("fake", "base", "surrogate", "reference")
    assert made.companions[1].compared == ("slow", "reference")


@pytest.mark.slow
def test_two_iterations_on_the_shapes_world() -> None:
    spec = {"algorithm__guidance": 1.0, "algorithm__guided": 0.0, "algorithm__passes": 2, "data__group": 4}
    found = train(config_of("tdm_r1", "shapes", **spec), Work(2))
    assert all(bool(torch.isfinite(each).all()) for each in found.weights)
    assert len(found.gradients) == 2 * (2 + 1 + 2)
    assert found.metrics[0]["ratio/first_max_deviation"] < 1e-4
    assert found.metrics[1]["companion/surrogate/grad_norm"] > 0 and found.metrics[1]["companion/fake/loss"] > 0
