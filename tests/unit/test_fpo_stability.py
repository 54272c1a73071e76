"""What bounds FPO's updates and what does not: exact statements behind `docs/evidence/fpo_collapse.md`, on a normal
distribution whose velocity is known (`ShiftPolicy`: v = v* + theta)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.evidence.fpo_parts import Chance, OneSign
from flowrl.estimators.matching import Matching
from flowrl.models.tiny_flow import TinyCondition
from flowrl.parts.advantages import GroupCentred
from flowrl.parts.objectives import AsymmetricClip, Clipped, ClippedMean, ScoreFunction
from flowrl.step import UpdateSettings, improve
from flowrl.types import Batch, Likelihood, Rows, Scores
from tests.contract.toys import matching_rows, roll, small, start
from tests.unit.test_estimators import ShiftPolicy, condition

RATE = 0.05


def drawn(count: int, t: float | None = None, c2: float = 0.25, draws: int = 1) -> tuple[ShiftPolicy, Any]:
    """A policy and ``count`` samples of it, each at one (time, noise) pair or more."""
    policy, generator = ShiftPolicy(c2=c2), torch.Generator().manual_seed(0)
    clean = 0.5 + c2**0.5 * torch.randn(count, 1, 1, generator=generator, dtype=torch.float64)
    noise = torch.randn(count, draws, 1, generator=generator, dtype=torch.float64)
    times = (
        torch.rand(count, draws, generator=generator, dtype=torch.float64)
        if t is None
        else torch.full((count, draws), t)
    )
    return policy, matching_rows(clean.expand(-1, draws, -1), noise, times.double())


def log_p(policy: Any, rows: Any, weight: Any = "uniform") -> Tensor:
    return Matching(draws=rows.t.shape[1], weight=weight)(policy, rows, condition(len(rows.t))).logp


def descend(objective: Any, advantage: Tensor, steps: int, count: int = 1, rate: float = RATE) -> list[float]:
    """The shift after every step of gradient descent on samples that stay the same, as in many epochs."""
    policy, rows = drawn(count)
    old = Likelihood(log_p(policy, rows).detach())
    wide = advantage[:, None].expand_as(old.logp)
    batch = Batch(wide, old, torch.full_like(old.logp, 1 / count), torch.zeros(count).long(), Rows())
    found = []
    for _ in range(steps):
        loss = (batch.weight * objective(Likelihood(log_p(policy, rows)), batch)).sum()
        (slope,) = torch.autograd.grad(loss, policy.theta)
        with torch.no_grad():
            policy.theta.sub_(rate * slope)
        found.append(policy.theta.item())
    return found


def residual() -> float:
    """v* - (noise - clean) of the one sample of `descend`."""
    policy, rows = drawn(1)
    x = (1 - rows.t) * rows.clean[..., 0] + rows.t * rows.noise[..., 0]
    v = policy.velocity(x, rows.t[0], condition(1))
    return float((v - (rows.noise - rows.clean)[:, 0]).detach())


def ratio(theta: float, r: float) -> float:
    return float(torch.tensor(r**2 - (theta + r) ** 2).exp())


def test_a_bad_samples_error_grows_geometrically_and_a_good_ones_decays() -> None:
    """-A log p with log p = -(theta + r)^2: a step multiplies theta + r by 1 - 2 rate A."""
    r = residual()
    for a in (-1.0, 1.0):
        for n, theta in enumerate(descend(ScoreFunction(), torch.tensor([a]).double(), 40), start=1):
            assert theta + r == pytest.approx(r * (1 - 2 * RATE * a) ** n)


@pytest.mark.parametrize("rate", [0.02, 0.05])
def test_a_quadratic_pull_ends_at_one_minus_clip_where_ppos_clip_ends_wherever_the_last_step_led(rate: float) -> None:
    r, bad = residual(), -torch.ones(1).double()
    pulled = descend(AsymmetricClip(0.2), bad, 400, rate=rate)
    assert ratio(pulled[-1], r) == pytest.approx(0.8, abs=1e-6)
    for objective in (Clipped(0.2, 0.2), ClippedMean(0.2, 0.2)):
        path = [ratio(theta, r) for theta in descend(objective, bad, 400, rate=rate)]
        crossed = next(i for i, each in enumerate(path) if each < 0.8)
        assert path[-1] == path[crossed] < 0.8 - 1e-3  # beyond the clip there is no gradient, also none back


def test_only_the_mean_advantage_bends_the_objective() -> None:
    """The second derivative by the shift is twice the mean advantage: 0 of centred ones, whose gradient is the same
    however far the velocity is moved; below 0 of bad samples alone, whose objective has no minimum."""
    policy, rows = drawn(64)
    spread = torch.randn(64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    centred = spread - spread.mean()
    for advantage in (centred, centred + 0.5, centred.clamp(min=0), centred.clamp(max=0)):
        batch = Batch(
            advantage[:, None], Likelihood(torch.zeros(64, 1)), torch.ones(64, 1) / 64, torch.zeros(64), Rows()
        )
        loss = (batch.weight * ScoreFunction()(Likelihood(log_p(policy, rows)), batch)).sum()
        (slope,) = torch.autograd.grad(loss, policy.theta, create_graph=True)
        (bend,) = torch.autograd.grad(slope.sum(), policy.theta)
        assert float(bend) == pytest.approx(2 * float(advantage.mean()), abs=1e-12)


@pytest.mark.parametrize(("c", "t"), [(1.0, 0.1), (1.0, 1.0), (0.1, 0.02), (0.1, 0.1), (0.1, 1.0)])
def test_what_a_time_tells_of_a_shift_and_how_noisily(c: float, t: float) -> None:
    """The gradient by theta of A (v - u)^2 with A = (a - m) / c. Given x_t, v - u is normal with variance c^2 / V, V =
    (1 - t)^2 c^2 + t^2, and A has covariance c t / V with it: mean 2 c t / V, variance 4 (c^2 / V) (1 + t^2 / V). So
    the square of signal over noise is p / (1 + p), p = t^2 / V, nearly the same for all t > c, while the noise itself
    goes like c / t: unweighted, the smallest times of a narrow policy make up nearly all of it."""
    policy, rows = drawn(40_000, t, c2=c**2)
    advantage = (rows.clean[:, 0, 0] - 0.5) / c
    found = []
    for theta in (1.0, -1.0):  # the error is quadratic in theta, so that this difference is its derivative
        with torch.no_grad():
            policy.theta.fill_(theta)
            found.append(log_p(policy, rows)[:, 0])
    slopes = -advantage * (found[0] - found[1]) / 2
    v = (1 - t) ** 2 * c**2 + t**2
    variance = 4 * c**2 / v * (1 + t**2 / v)
    assert float(slopes.mean()) == pytest.approx(2 * c * t / v, abs=4 * (variance / 40_000) ** 0.5)
    assert float(slopes.var()) == pytest.approx(variance, rel=0.1)


def moved(clip: float, seed: int) -> float:
    """Mean squared change of a toy's velocities by 20 iterations of four updates on rewards drawn at random."""
    algorithm = replace(small("fpo", draws=2, clip=clip), advantage=Chance())
    memory: dict[str, Any] = {}
    policy = start(algorithm, disturbed=False)
    generator = torch.Generator().manual_seed(3)
    x, t = 1.2 * torch.randn(400, 2, generator=generator), torch.rand(400, generator=generator)
    index = TinyCondition(torch.arange(400) % 2)
    base = policy.velocity(x, t, index).detach()
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.01, betas=(0.9, 0.99))
    for iteration in range(20):
        it = roll(algorithm, policy, iteration, seed)
        advantage = algorithm.advantage(it.scores, memory)
        settings = UpdateSettings(updates=4, seed=iteration)
        improve(policy, optimizer, algorithm, it.rollout, it.scores, advantage, settings)
    return float((policy.velocity(x, t, index) - base).square().mean().detach())


def test_noise_alone_moves_a_policy_as_far_as_the_clip_lets_it() -> None:
    """No advantage means anything here. FPO's clip hardly acts on a mean over draws and elements; one of the size of
    what four updates do holds the policy where it is (measured: .79 and .28 against .12 and .06)."""
    wide, tight = ([moved(clip, seed) for seed in (0, 2)] for clip in (0.05, 0.002))
    assert min(wide) > 0.15 and sum(tight) < 0.4 * sum(wide)


def test_the_parts_of_the_page() -> None:
    group = torch.tensor([0, 0, 0, 1, 1, 1])
    rewards = torch.tensor([[1.0], [0.0], [0.5], [2.0], [2.0], [5.0]]).double()
    scores = Scores(rewards, torch.ones(1).double(), ("r",), group, group, torch.ones(6).bool())
    whole = GroupCentred(ddof=1, eps=1e-8)(scores, {})
    good, bad = OneSign()(scores, {}), OneSign(keep=-1)(scores, {})
    torch.testing.assert_close(good + bad, whole)
    assert bool((good >= 0).all() and (bad <= 0).all()) and float(good.max()) > 0 > float(bad.min())
    memory: dict[str, Any] = {}
    first, second = Chance()(scores, memory), Chance()(scores, memory)
    assert not torch.equal(first, second) and torch.equal(first, Chance()(scores, {}))
    torch.testing.assert_close(first.view(2, 3).mean(dim=1), torch.zeros(2).double(), atol=1e-12, rtol=0)
