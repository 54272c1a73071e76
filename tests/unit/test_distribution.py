"""Distribution matching: its gradient in closed form, the companion that knows what the policy makes, and runs of both:
on several processes, resumed, with merged adapters, on the shapes world."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import pytest
import torch
from torch import Tensor

from flowrl import composition
from flowrl.companions import build_optimizers, learned_by, train_companions
from flowrl.config import Config
from flowrl.errors import UserError
from flowrl.estimators.distribution import PredictedMatching, ScoreDifference, drawn_steps, predicted_clean
from flowrl.math.flow import CPS, DDIM, ODE, FlowSDE, clean_of
from flowrl.models.tiny_flow import TinyCondition, TinyFlow
from flowrl.parts.companions import Companion
from flowrl.samplers.flow import FlowSampler
from flowrl.samplers.windows import LastSteps
from flowrl.session import Session
from flowrl.startup.preflight import check_run
from flowrl.step import UpdateSettings
from flowrl.types import Dynamics, Rollout, Steps
from tests.contract.toys import disturb, roll, rollout_of, small, start
from tests.training import Work, config_of, train
from tests.unit.test_ranks_iterations import compare, few, weights
from tests.unit.test_rounds import SET, session_of

SPREAD, REAL = 0.7, -0.4


class Gaussians:
    """A one-step generator ``x0 = theta + SPREAD z`` of the noise z it begins with, and scores of normal distributions
    of its width, by their means; the one called ``fake`` is that of the generator."""

    device = torch.device("cpu")

    def __init__(self, theta: float) -> None:
        self.theta = torch.tensor(theta, requires_grad=True)
        self._asked: str | None = None

    @contextmanager
    def using(self, name: str) -> Iterator[Self]:
        self._asked = name
        with torch.no_grad():
            yield self
        self._asked = None

    def snap(self, t: Tensor) -> Tensor:
        return t

    def velocity(self, x: Tensor, t: Tensor, condition: Any, **options: Any) -> Tensor:
        if self._asked is None:
            return x - (self.theta + SPREAD * x)
        mean = {"fake": float(self.theta), "real": REAL}[self._asked]
        t = t.to(x)[:, None]
        variance = (1 - t) ** 2 * SPREAD**2 + t**2
        offset = (x - (1 - t) * mean) / variance
        return t * offset - mean - (1 - t) * SPREAD**2 * offset


def generated(policy: Gaussians, count: int, size: int) -> Rollout:
    """Samples of its one step, recorded."""
    noise = torch.randn(count, size, generator=torch.Generator().manual_seed(1))
    final = policy.theta.detach() + SPREAD * noise
    one = torch.ones(count, 1, dtype=torch.float64)
    trace = Steps(
        torch.stack([noise, final], dim=1), t=one, t_next=0 * one, squared=None, dynamics=ODE(), guidance=None
    )
    return rollout_of(TinyCondition(torch.zeros(count)), final, trace, times=torch.tensor([1.0, 0.0]).double())


def test_the_gradient_is_that_of_the_reverse_kl_in_closed_form() -> None:
    """KL(N((1-s) theta, V) || N((1-s) m, V)) at every noise level s, times ``s^2 / (1-s)^2`` and over the size."""
    policy: Any = Gaussians(0.9)
    rollout, estimator = generated(policy, 64, 3), ScoreDifference(real="real")
    rows = estimator.probe(rollout, policy, rollout.seeds)
    (-estimator(policy, rows, rollout.condition).logp).mean().backward()
    clean, d = estimator.direction(policy, rows, rollout.condition)
    s = rows.noised_to[:, 0]
    theta = torch.tensor(0.9, dtype=torch.float64, requires_grad=True)
    variance = (1 - s) ** 2 * SPREAD**2 + s**2
    kl = (1 - s) ** 2 * (theta - REAL) ** 2 / (2 * variance)
    gap = (0.9 - REAL) * s**2 / variance  # x0_fake - x0_real, which does not depend on x
    size = gap[:, None] / d.double()
    torch.testing.assert_close(clean, rollout.final)
    torch.testing.assert_close(size, size[:, :1].expand_as(size), rtol=1e-4, atol=1e-6)
    (s**2 / (1 - s) ** 2 * kl / size[:, 0]).mean().backward()
    assert theta.grad is not None and float(theta.grad) > 0
    assert float(policy.theta.grad) == pytest.approx(float(theta.grad), rel=1e-5)
    assert 0.02 < float(s.min()) < 0.2 and 0.8 < float(s.max()) < 0.98


def test_the_size_is_how_far_the_real_score_would_move_the_prediction() -> None:
    policy: Any = Gaussians(0.9)
    rollout, estimator = generated(policy, 8, 400), ScoreDifference(real="real")
    rows = estimator.probe(rollout, policy, rollout.seeds)
    clean, d = estimator.direction(policy, rows, rollout.condition)
    t = rows.noised_to[:, 0].float()[:, None]
    variance = (1 - t) ** 2 * SPREAD**2 + t**2
    # x0 - x0_real of x_s = (1 - s) x0 + s e is normal: its mean absolute value over many numbers is known
    gain = (1 - t) * SPREAD**2 / variance
    mean = (clean.mean(dim=1, keepdim=True) - REAL) * (1 - gain * (1 - t))
    std = ((1 - gain * (1 - t)) ** 2 * clean.var(dim=1, keepdim=True) + (gain * t) ** 2).sqrt()
    normal = torch.distributions.Normal(0.0, 1.0)
    size = std * (2 / torch.pi) ** 0.5 * (-(mean**2) / (2 * std**2)).exp() + mean * (1 - 2 * normal.cdf(-mean / std))
    expected = (0.9 - REAL) * t**2 / variance / size
    torch.testing.assert_close(d.mean(dim=1, keepdim=True), expected, rtol=0.1, atol=0)


def test_equal_scores_leave_the_policy_alone() -> None:
    policy: Any = Gaussians(REAL)
    rollout, estimator = generated(policy, 16, 3), ScoreDifference(real="real")
    rows = estimator.probe(rollout, policy, rollout.seeds)
    (-estimator(policy, rows, rollout.condition).logp).mean().backward()
    assert float(policy.theta.grad) == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("dynamics", [CPS(1.0), CPS(0.3), FlowSDE(0.7), DDIM(1.0), ODE()], ids=repr)
def test_what_a_step_predicted_is_read_off_the_record(dynamics: Dynamics) -> None:
    algorithm: Any = small("dmd2", 4)
    sampler = replace(algorithm.sampler, dynamics=dynamics, steps=4)
    policy = start(algorithm)
    it = roll(replace(algorithm, sampler=sampler), policy)
    trace, found = it.rollout.trace, predicted_clean(it.rollout, it.rollout.seeds)
    assert isinstance(trace, Steps)
    event, row = drawn_steps(trace, it.rollout.seeds), torch.arange(len(found))
    assert set(event.tolist()) == {0, 1, 2, 3}
    x, t = trace.states[row, event], trace.t[row, event]
    with torch.no_grad():
        v = policy.velocity(x, t, it.rollout.condition, guidance=1.0)
    torch.testing.assert_close(found, clean_of(x, v, t), rtol=1e-4, atol=1e-4)


def test_the_fake_score_is_asked_at_the_steps_that_it_learned_and_at_other_times() -> None:
    algorithm: Any = small("dmd2", 4)
    policy = start(algorithm)
    it = roll(algorithm, policy)
    asked: Any = algorithm.estimator.probe(it.rollout, policy, it.rollout.seeds)
    learned: Any = algorithm.companions[0].estimator.probe(it.rollout, policy, it.rollout.seeds)
    clean, _ = algorithm.estimator.direction(policy, asked, it.rollout.condition)
    torch.testing.assert_close(learned.clean[:, 0], clean, rtol=1e-4, atol=1e-4)
    correlation = torch.corrcoef(torch.stack([asked.noised_to[:, 0], learned.t[:, 0]]))[0, 1]
    assert abs(float(correlation)) < 0.5


def pull(policy: Any, by: float) -> None:
    """Let what the policy predicts lie elsewhere than the base's."""
    with torch.no_grad():
        policy.last.bias.add_(by)


def test_a_companion_comes_to_know_what_the_policy_makes_and_moves_nothing_else() -> None:
    algorithm: Any = small("dmd2", 4)
    policy = start(algorithm, disturbed=False)
    pull(policy, 1.0)
    live, reference = weights_of(policy), policy.weights.sha256("reference")
    beside = {"fake": torch.optim.Adam(policy.parameters(), lr=0.02)}
    it = roll(algorithm, policy, 1000)
    before, losses = mean_gap(policy, it.rollout), []
    for iteration in range(30):
        it = roll(algorithm, policy, iteration)
        found = train_companions(policy, beside, algorithm, it.rollout, it.scores, {}, UpdateSettings())
        losses.append(found["companion/fake/loss"])
    after = mean_gap(policy, it.rollout)
    assert torch.equal(weights_of(policy), live) and policy.weights.sha256("reference") == reference
    assert policy.weights.active == "live" and all(p.grad is None for p in policy.parameters())
    assert before > 0.3 and after < 0.35 * before, (before, after)
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


def weights_of(policy: Any) -> Tensor:
    return torch.cat([parameter.detach().flatten().clone() for parameter in policy.parameters()])


@torch.no_grad()
def mean_gap(policy: Any, rollout: Rollout, draws: int = 64) -> float:
    """How far the mean of what the fake score predicts clean is from that of what was noised: 0 for the right score."""
    clean = predicted_clean(rollout, rollout.seeds).repeat(draws, 1)
    noise, condition = torch.randn(clean.shape, generator=torch.Generator().manual_seed(2)), rollout.condition
    s = torch.linspace(0.3, 0.9, draws, dtype=torch.float64).repeat_interleave(len(rollout.group))
    noised = (1 - s.float()[:, None]) * clean + s.float()[:, None] * noise
    with policy.using("fake") as asked:
        v = asked.velocity(noised, s, condition.take(torch.arange(len(rollout.group)).repeat(draws)))
    return float((clean_of(noised, v, s) - clean).mean(dim=0).norm())


def test_two_time_scales() -> None:
    """A companion makes its own number of updates, each on other samples, at its own rate."""
    algorithm: Any = small("dmd2", 4, updates=3)
    policy = start(algorithm)
    it = roll(algorithm, policy)

    class Counting(torch.optim.SGD):
        steps = 0

        def step(self, closure: Any = None) -> Any:
            self.steps += 1

    counting = Counting(policy.parameters(), lr=0.0)
    train_companions(policy, {"fake": counting}, algorithm, it.rollout, it.scores, {}, UpdateSettings(updates=7))
    assert counting.steps == 3
    for wrong, message in (({"updates": 0}, "never train"), ({"lr": 0.0}, "would not move"), ({"name": "ema"}, "ema")):
        with pytest.raises(ValueError, match=message):
            Companion(**{"name": "fake", "estimator": PredictedMatching(), **wrong})


def toy(where: Path, **algorithm: Any) -> Session:
    spec = {"use": "dmd2", "steps": 3, "guidance": 1.0, "updates": 2, **algorithm}
    session = session_of(["open"] * SET, where, "diffusion", algorithm=spec)
    disturb(session.policy)
    session.policy.update_ema("fake", 0.0)
    session.companions = build_optimizers(session.config, session.policy, session.algorithm)
    return session


def test_iterations_are_those_of_one_process(tmp_path: Path) -> None:
    compare(3, lambda: toy(tmp_path), iterations=2)


def test_a_resumed_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    whole, part = toy(tmp_path, lr=2e-3), toy(tmp_path, lr=2e-3)
    expected, theta, _ = few(whole, 3)
    few(part, 2)
    tensors, values = part.state()
    assert {"companions/fake/0/exp_avg", "weights/fake/0.weight"} <= set(tensors)
    again = toy(tmp_path, lr=2e-3)
    again.restore(copy.deepcopy(tensors), json.loads(json.dumps(values)))
    metrics, found, _ = few(again, 1)
    assert torch.equal(found, theta) and metrics[-1] == expected[-1]
    assert whole.policy.weights.sha256("fake") == again.policy.weights.sha256("fake")
    assert again.companions["fake"].param_groups[0]["lr"] == 2e-3 != again.optimizer.param_groups[0]["lr"]
    assert metrics[-1]["companion/fake/loss"] > 0 and not torch.equal(weights(part), theta)


def test_a_companion_stays_out_of_the_policys_optimiser_and_of_exports() -> None:
    policy = TinyFlow(torch.zeros(1, 2))
    with pytest.raises(ValueError, match="no companion's"), policy.weights.learning("reference"):
        pass
    with pytest.raises(UserError, match="no weights called"), policy.weights.learning("fake"):
        pass
    policy.update_ema("fake", 0.0)
    assert policy.weights.learns("live") and not policy.weights.learns("reference")
    with torch.no_grad(), policy.weights.learning("fake"):
        assert torch.is_grad_enabled() and policy.weights.active == "fake"
        with policy.using("reference"):
            assert not torch.is_grad_enabled()
        with torch.no_grad():
            policy.last.bias.add_(1.0)
    assert policy.weights.active == "live" and not policy.last.bias.any() and policy.weights.learns("fake")
    with policy.using("fake"):
        assert bool((policy.last.bias == 1).all())


def test_evaluation_samples_as_the_few_steps_are_used() -> None:
    made: Any = composition.build("dmd2").sampler
    heldout = made.heldout(3, None, None)
    assert (heldout.steps, heldout.dynamics, heldout.guidance) == (3, CPS(1.0), 1.0)
    assert heldout.heldout(None, 2.0, None).dynamics == CPS(1.0)
    policy, draw = TinyFlow(torch.tensor([[2.0, 0.0], [-2.0, 0.0]])), roll(small("dmd2", 3), start(small("dmd2"))).draw
    condition = TinyCondition(torch.zeros(len(draw), dtype=torch.int64))
    final = heldout(policy, condition, draw).final
    assert torch.equal(final, replace(heldout, window=LastSteps(noise=True))(policy, condition, draw).final)
    assert not torch.equal(final, FlowSampler(steps=3, guidance=1.0)(policy, condition, draw).final)


OWN: dict[str, Any] = {"use": "companion", "name": "fake", "estimator": "matching"}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model__shard": "fsdp"}, "algorithm.companions"),
        ({"algorithm__real": "many_steps"}, "learns from a policy called 'many_steps'"),
        ({"teachers": {"fake": {"path": "shapes"}}}, "'fake' cannot be a teacher's name"),
        ({"algorithm__companions": [{"use": "companion", "name": "fake"}]}, "needs estimator"),
        ({"algorithm__estimator": {"real": "fake"}}, "have no difference"),
        ({"algorithm__sampler__window": None}, "window last_steps"),
        ({"algorithm__companions": [OWN, OWN]}, "two weight sets are called 'fake'"),
        ({"algorithm__companions": [{**OWN, "estimator": "tokens"}]}, "Tokens is for causal models"),
        (
            {"algorithm__estimator": "matching", "algorithm__sampler__window": None},
            "algorithm.companions, fake: distribution matching needs recorded states",
        ),
    ],
)
def test_a_run_is_refused_before_its_model_is_loaded(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        check_run(Config.of(config_of("dmd2", "shapes", **changes)))


def test_companions_can_be_set_in_a_config() -> None:
    own = {"use": "companion", "name": "other", "estimator": {"use": "matching", "draws": 2}, "updates": 3}
    made: Any = composition.build({"use": "dmd2", "companions": [own], "estimator": {"fake": "other"}})
    assert made.companions[0].updates == 3 and made.companions[0].estimator.draws == 2
    assert "other" in made.weight_sets and "fake" not in made.weight_sets
    learned = learned_by(made.companions[0], made)
    assert learned.estimator is made.companions[0].estimator and not learned.companions


@pytest.mark.slow
def test_two_iterations_on_the_shapes_world() -> None:
    found = train(config_of("dmd2", "shapes", algorithm__guidance=1.0, optimizer__lr=1e-3), Work(2))
    assert all(bool(torch.isfinite(each).all()) for each in found.weights)
    assert len(found.gradients) == 2 * (5 + 2)
    first, second = found.metrics
    assert first["ratio/first_max_deviation"] < 1e-4 and second["companion/fake/grad_norm"] > 0
    assert all(float(gradient.norm()) > 0 for gradient in found.gradients[5:])
