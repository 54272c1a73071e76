"""Q-learning with adjoint matching: the lean adjoint by Jacobians and by finite differences, its limits, its target."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from flowrl.estimators.adjoint_q import AdjointQ
from flowrl.models.control.policy import ControlPolicy
from tests.contract.toy_environment import toy_policy
from tests.contract.toys import disturb, gradients, roll, small, start
from tests.unit.test_off_policy import parts_of


def asked(estimator: AdjointQ) -> tuple[ControlPolicy, Any, list[Tensor], Tensor]:
    """A policy in double precision, the condition of two decisions, a path, and its end."""
    policy = toy_policy(beside=estimator.beside, acting=estimator.acting)
    disturb(policy, 0.1)
    policy.network.double()
    condition = policy.condition([]).seeing(torch.randn(2, 1, 2, dtype=torch.float64))
    generator = torch.Generator().manual_seed(1)
    noise = 0.3 * torch.randn(2, estimator.steps, 1, 2, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        path = [noise[:, k] for k in range(estimator.steps)]
        end = path[-1] - policy.velocity_beside("slow", path[-1], torch.full((2,), 0.5), condition)
    return policy, condition, path, end.detach()


def test_the_lean_adjoint_is_the_product_of_the_slow_flows_jacobians() -> None:
    """And by finite differences: how Q at the end answers to every number of a state, if the slow flow's steps are
    replaced by their tangents there."""
    estimator = AdjointQ(steps=4, inverse_temperature=0.7, width=16, depth=2, critics=3, bound=50.0)
    policy, condition, path, end = asked(estimator)
    found = estimator.adjoint(policy, condition, path, end)

    def liked(x: Tensor) -> Tensor:
        return policy.ask("q", condition, x).mean(dim=0)

    def step(k: int, x: Tensor) -> Tensor:
        """Theirs: `x + h fn(x)` with the slow flow at t + h."""
        then = (k + 1) / 4
        u = -policy.velocity_beside("slow", x, torch.full((2,), 1 - then, dtype=torch.float64), condition)
        return x + (2 * u - x / then) / 4

    small_step = 1e-5
    for row in range(2):
        carried = torch.zeros(2, dtype=torch.float64)
        for number in range(2):
            shift = torch.zeros_like(end)
            shift[row, 0, number] = small_step
            carried[number] = (liked(end + shift) - liked(end - shift))[row] / (2 * small_step)
        for k in reversed(range(4)):
            jacobian = torch.zeros(2, 2, dtype=torch.float64)  # [of the next state, to this one]
            for number in range(2):
                shift = torch.zeros_like(end)
                shift[row, 0, number] = small_step
                jacobian[:, number] = (step(k, path[k] + shift) - step(k, path[k] - shift))[row, 0] / (2 * small_step)
            carried = carried @ jacobian
            assert torch.allclose(found[k][row, 0], -0.7 * carried, rtol=1e-4, atol=1e-7)


def test_actions_beyond_the_bound_pull_at_nothing() -> None:
    estimator = AdjointQ(steps=4, width=16, depth=2, critics=3, bound=0.01)
    policy, condition, path, _ = asked(estimator)
    far = torch.ones(2, 1, 2, dtype=torch.float64)
    assert all(bool((part == 0).all()) for part in estimator.adjoint(policy, condition, path, far))


def test_a_temperature_without_end_leaves_the_imitating_flow() -> None:
    """At 0 the fast flow learns to be the slow one, whatever the critics say; where it is, nothing."""
    algorithm = small("qam", inverse_temperature=0.0)
    policy = start(algorithm, disturbed=False)
    it = roll(algorithm, policy)
    same = parts_of(policy, gradients(algorithm, it)[0])
    assert float(same["flow"].abs().max()) == 0 and float(same["slow"].norm()) > 0  # both begin alike
    tilted = parts_of(policy, gradients(small("qam", inverse_temperature=1.0), it)[0])
    assert float(tilted["flow"].norm()) > 0 and torch.equal(tilted["slow"], same["slow"])
    with torch.no_grad():
        for parameter in policy.network.body.parameters():
            parameter.add_(0.1)
    away = parts_of(policy, gradients(algorithm, it)[0])
    estimator: Any = algorithm.estimator
    rows: Any = estimator.probe(it.rollout, policy, it.rollout.seeds)
    made = rows.alive.nonzero(as_tuple=True)
    condition: Any = it.rollout.condition
    seen = condition.seeing(rows.observed[made])
    loss = torch.zeros(())
    with torch.no_grad():
        path = estimator.path(policy, seen, rows.noise[made][:, 2:])
    for k, x in enumerate(path):
        t = torch.full((len(x),), 1 - k / estimator.steps)
        with torch.no_grad():
            slow = policy.velocity_beside("slow", x, t, seen)
        loss = loss + (4 / estimator.sigma(k) ** 2) * (policy.velocity(x, t, seen) - slow).square().sum() / len(x)
    wanted = torch.autograd.grad(loss, list(policy.network.body.parameters()))
    assert torch.allclose(away["flow"], torch.cat([g.flatten() for g in wanted]), rtol=1e-3, atol=1e-5)


def test_the_next_value_is_pessimistic() -> None:
    found = {}
    for pessimism in (0.0, 0.5):
        algorithm = small("qam", pessimism=pessimism)
        policy = start(algorithm)
        it = roll(algorithm, policy)
        rows: Any = algorithm.estimator.probe(it.rollout, policy, it.rollout.seeds)
        found[pessimism] = algorithm.estimator(policy, rows, it.rollout.condition).extra["next_value"][rows.continues]
    assert bool((found[0.5] < found[0.0]).all())


@pytest.mark.parametrize("options", [{"steps": 1}, {"inverse_temperature": -1.0}])
def test_options_without_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="give 2 steps or more"):
        AdjointQ(**options)
