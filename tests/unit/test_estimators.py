"""Estimators against closed forms, and the identities between methods that hold at the old policy."""

from __future__ import annotations

import math
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from flowrl.estimators.matching import ContrastedMatching, Matching
from flowrl.estimators.times import GridTimes, LogitNormalTimes, UniformTimes
from flowrl.estimators.transitions import Transitions
from flowrl.math.flow import FlowSDE
from flowrl.math.random import seeds
from flowrl.models.tiny_flow import TinyCondition, TinyFlow
from flowrl.models.weights import PointerWeights
from flowrl.parts.ema import Ramp
from flowrl.parts.objectives import Clipped, ImplicitPair, ScoreFunction
from flowrl.samplers.flow import FlowSampler
from flowrl.samplers.windows import EveryStep
from flowrl.types import Batch, Draw, IncompatibleError, Likelihood, Rollout
from tests.contract.toys import matching_rows, rollout_of
from tests.unit.test_math_flow import GaussianFlow, sd3_grid

MODES = torch.tensor([[1.0, 0.0], [-1.0, 0.5]])


class ShiftPolicy:
    """``v = v* + theta`` for data N(m, c^2) in one dimension, on SD3's grid: every gradient is known."""

    latent_shape = (1,)
    device = torch.device("cpu")

    def __init__(self, m: float = 0.5, c2: float = 0.25) -> None:
        self.flow = GaussianFlow(m, c2)
        self.theta = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.weights = PointerWeights({"theta": self.theta})

    @contextmanager
    def using(self, name: str):
        with self.weights.using(name):
            yield self

    def times(self, steps: int) -> Tensor:
        return sd3_grid(steps)

    def snap(self, t: Tensor) -> Tensor:
        return t

    def initial(self, noise: Tensor, times: Tensor) -> Tensor:
        return noise.double()

    def velocity(self, x: Tensor, t: Tensor, condition, *, guidance=None, cfg_grad="cond") -> Tensor:
        t = t.to(x)[:, None]
        total = (1 - t) ** 2 * self.flow.c2 + t**2
        p = (t - (1 - t) * self.flow.c2) / total
        return p * x - self.flow.m - p * (1 - t) * self.flow.m + self.theta


def draw(count: int, seed: int = 0) -> Draw:
    return Draw.of(seeds(seed, "s", count=count), torch.zeros(count, dtype=torch.long), 0, 1)


def condition(count: int) -> TinyCondition:
    return TinyCondition(torch.zeros(count, dtype=torch.long))


@pytest.mark.slow
def test_reinforce_on_the_chain_equals_the_analytic_gradient_step_by_step() -> None:
    """E[x0 * d log p_k / d theta] of every step k must be that step's own share of d E[x0] / d theta.

    An off-by-one among latents, times and densities would leave the total nearly right and the shares wrong.
    """
    policy, count = ShiftPolicy(), 60_000
    sampler = FlowSampler(steps=10, dynamics=FlowSDE(0.7), window=EveryStep(drop=0))
    rollout = sampler(policy, condition(count), draw(count))
    estimator = Transitions(reduction="sum")
    rows = estimator.probe(rollout, policy, draw(count).seeds)
    _, _, shares = policy.flow.end(FlowSDE(0.7), sd3_grid(10))
    final = rollout.final[:, 0] - 0.5  # a baseline: the mean of x0 is known
    for k in range(10):
        # d log p_k / d theta = z B / s for a shift of the velocity
        _, b, s = rows.dynamics.coefficients(rows.t[:1, k], rows.t_next[:1, k])
        logp = estimator(policy, rows.block(torch.arange(count), slice(k, k + 1)), condition(count)).logp[:, 0]
        slope = torch.autograd.grad((logp * final).mean(), policy.theta)[0]
        error = float(b.abs() / s * final.std()) / math.sqrt(count)
        assert float(slope) == pytest.approx(shares[k], abs=4.5 * error + 1e-6), k


@pytest.mark.slow
def test_reinforce_of_a_quadratic_reward_on_the_chain() -> None:
    """E[x0^2] changes by 2 mu mu' with the shift (the closed form of the sheet, -.7193, for m = .5)."""
    policy, count = ShiftPolicy(), 60_000
    sampler = FlowSampler(steps=10, dynamics=FlowSDE(0.7), window=EveryStep(drop=0))
    rollout = sampler(policy, condition(count), draw(count, 5))
    estimator = Transitions(reduction="sum")
    rows = estimator.probe(rollout, policy, draw(count).seeds)
    logp = estimator(policy, rows, condition(count)).logp.sum(dim=1)
    reward = rollout.final[:, 0] ** 2
    centred = reward - reward.mean()
    estimate = torch.autograd.grad((logp * centred).mean(), policy.theta)[0]
    assert float(estimate) == pytest.approx(-0.719338, abs=0.03)


@pytest.mark.parametrize("measure", ["gaussian", "unit"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "sqrt"])
def test_old_likelihood_from_the_rollout_equals_a_replay(measure, reduction) -> None:
    policy = TinyFlow(MODES)
    sampler = FlowSampler(steps=6, dynamics=FlowSDE(0.7), window=EveryStep())
    rollout = sampler(policy, condition(8), draw(8))
    estimator = Transitions(measure=measure, reduction=reduction)
    rows = estimator.probe(rollout, policy, draw(8).seeds)
    assert torch.allclose(
        estimator.recorded_logp(rollout, rows).logp, estimator(policy, rows, condition(8)).logp, atol=1e-6
    )
    assert rows.t.shape == (8, 5)


def test_normalised_log_ratio_of_guard() -> None:
    """mean(z shift) == s (l - l_old + shift^2 / 2 s^2), zero mean, spread |shift| / D whatever s is."""
    policy = TinyFlow(torch.zeros(1, 2))
    sampler = FlowSampler(steps=6, dynamics=FlowSDE(0.7), window=EveryStep(), record_mean=True)
    rollout = sampler(policy, condition(4000), draw(4000))
    guard, plain = Transitions(measure="noise"), Transitions(measure="gaussian")
    rows = guard.probe(rollout, policy, draw(4000).seeds)
    with torch.no_grad():
        policy.last.bias += torch.tensor([0.05, -0.03])
    with torch.no_grad():
        normalised = guard(policy, rows, condition(4000)).logp
        log_ratio = plain(policy, rows, condition(4000)).logp - plain.recorded_logp(rollout, rows).logp
    _, b, s = rows.dynamics.coefficients(rows.t, rows.t_next)
    shift_square = b**2 * (0.05**2 + 0.03**2) / 2  # mean over D = 2
    assert torch.allclose(normalised, s * (log_ratio + shift_square / (2 * s**2)), atol=2e-6)
    expected = (b[0].abs() * math.hypot(0.05, 0.03)) / 2
    assert torch.allclose(normalised.std(dim=0), expected, rtol=0.05)
    assert float((normalised.mean(dim=0) / expected).abs().max()) < 0.06


def test_a_subset_of_steps_keeps_latents_and_times_together() -> None:
    policy = TinyFlow(MODES)
    rollout = FlowSampler(steps=9, dynamics=FlowSDE(0.5), window=EveryStep())(policy, condition(6), draw(6))
    whole = Transitions().probe(rollout, policy, draw(6).seeds)
    part = Transitions(fraction=0.6).probe(rollout, policy, draw(6).seeds)
    assert part.t.shape == (6, 4)
    for row in range(6):
        for k in range(4):
            j = int((whole.t[row] == part.t[row, k]).nonzero())
            assert torch.equal(part.x[row, k], whole.x[row, j]) and torch.equal(
                part.x_next[row, k], whole.x_next[row, j]
            )
            assert part.squared[row, k] == whole.squared[row, j] and part.t_next[row, k] == whole.t_next[row, j]
    assert len({tuple(line) for line in part.t.tolist()}) > 1  # drawn per sample


def matching_rollout(policy, clean: Tensor) -> Rollout:
    return rollout_of(condition(len(clean)), clean, times=policy.times(10))


@pytest.mark.parametrize(("t", "expected"), [(0.2, 0.4994), (0.5, 0.7996), (0.9, 0.5540)])
def test_awm_gradient_in_closed_form(t: float, expected: float) -> None:
    """Data N(m, c^2), A = x0 - m, v = v* + theta: E[A dq/dtheta] = 2 t c^2 / ((1-t)^2 c^2 + t^2)."""
    c2 = 0.25
    predicted = 2 * t * c2 / ((1 - t) ** 2 * c2 + t**2)
    assert predicted == pytest.approx(expected, abs=1e-3)  # the values measured in the sheet
    policy, count = ShiftPolicy(1.0, c2), 200_000
    generator = torch.Generator().manual_seed(0)
    clean = 1.0 + 0.5 * torch.randn(count, 1, generator=generator)
    noise = torch.randn(count, 1, 1, generator=generator)
    rows = matching_rows(clean[:, None], noise, torch.full((count, 1), t, dtype=torch.float64))
    q = -Matching(weight="uniform")(policy, rows, condition(count)).logp[:, 0]
    slope = torch.autograd.grad(((clean[:, 0].double() - 1.0) * q).mean(), policy.theta)[0]
    assert float(slope) == pytest.approx(predicted, abs=0.01)


def test_links_agree_where_they_must() -> None:
    q = torch.tensor([0.01, 0.3, 2.0], dtype=torch.float64)
    t = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    link = {w: Matching(weight=w).link(q, t) for w in ("uniform", "t", "t2", "noise", "huber")}  # type: ignore[arg-type]
    assert torch.allclose(Matching(weight="ghuber", power=1.0).link(q, t), link["t"], atol=1e-12)
    assert torch.allclose(Matching(weight="ghuber", power=0.5).link(q, t) / 2, link["huber"], atol=1e-12)
    assert torch.allclose(link["t2"], t**2 * q) and torch.allclose(link["noise"], (1 - t) ** 2 * q)


def test_noise_weight_is_the_error_of_the_predicted_noise() -> None:
    policy = TinyFlow(MODES)
    clean = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    estimator = Matching(draws=3, weight="noise")
    rows = estimator.probe(matching_rollout(policy, clean), policy, draw(5).seeds)
    got = -estimator(policy, rows, condition(5)).logp
    for n in range(5):
        for m in range(3):
            t, e = rows.t[n, m], rows.noise[n, m]
            x = ((1 - t) * clean[n] + t * e).float()[None]
            predicted = x + (1 - t.float()) * policy.velocity(x, t[None], condition(1))
            assert got[n, m].item() == pytest.approx(((predicted - e) ** 2).mean().item(), rel=1e-4)


def grads(policy: TinyFlow, loss: Tensor) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, policy.parameters())])


def batch(advantage: Tensor, live: Likelihood, rows) -> Batch:
    old = Likelihood(live.logp.detach())
    return Batch(advantage, old, torch.ones_like(live.logp), torch.zeros(len(live.logp)), rows)


def setup_matching(estimator) -> tuple:
    policy = TinyFlow(MODES)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    policy.update_ema("old", 0.0)
    clean = torch.randn(6, 2, generator=torch.Generator().manual_seed(2))
    rows = estimator.probe(matching_rollout(policy, clean), policy, draw(6).seeds)
    advantage = torch.tensor([1.5, -0.5, 3.0, 0.0, -4.0, 0.7], dtype=torch.float64)[:, None].expand(rows.t.shape)
    return policy, rows, advantage


@pytest.mark.parametrize("strength", [0.1, 0.5, 1.0])
def test_nft_gradient_at_the_old_policy_is_weighted_matching(strength: float) -> None:
    """A (t^2 / w) grad mean |v - v*|^2 for every strength, with w = mean |x0^ - x0| of the old policy."""
    estimator = ContrastedMatching(draws=4, times=UniformTimes(0.1, 0.9), strength=strength)
    policy, rows, advantage = setup_matching(estimator)
    live = estimator(policy, rows, condition(6))
    nft = grads(policy, ImplicitPair(strength, 5.0)(live, batch(advantage, live, rows)).mean())

    n, m = rows.t.shape
    t = rows.t.reshape(-1)
    clean, noise = rows.clean.reshape(n * m, -1), rows.noise.reshape(n * m, -1)
    x = (1 - t[:, None]).float() * clean + t[:, None].float() * noise
    v = policy.velocity(x, t, condition(n * m))
    error = (v - (noise - clean)).double()
    weight = (t[:, None] * error.detach()).abs().mean(dim=1)
    expected = grads(policy, (advantage.reshape(-1) * t**2 / weight * (error**2).mean(dim=1)).mean())
    assert torch.allclose(nft, expected, rtol=1e-3, atol=1e-5 * float(expected.norm()))


def test_nft_decomposes_into_matching_and_a_trust_region_and_its_optimum() -> None:
    """With equal weights: L / a = t^2 [|v_old - v*|^2 / b + 2 (2r - 1) (v_old - v*) . d + b |d|^2], minimal at
    d = ((2r - 1) / b) (v* - v_old)."""
    b, a, t = 0.5, 5.0, 0.6
    old, target = torch.tensor([0.3, -0.2]).double(), torch.tensor([-0.4, 0.9]).double()
    advantage = torch.tensor(2.0).double()
    r = float(advantage / a) / 2 + 0.5

    def loss(d: Tensor) -> Tensor:
        plus, minus = (old + b * d - target), (old - b * d - target)
        live = Likelihood(
            -(t**2 * (plus**2).mean())[None, None], {"logp_negative": -(t**2 * (minus**2).mean())[None, None]}
        )
        return ImplicitPair(b, a)(live, Batch(advantage[None, None], live, torch.ones(1, 1), torch.zeros(1), None))[
            0, 0
        ]  # type: ignore[arg-type]

    d = torch.tensor([0.25, 0.7]).double()
    inner = ((old - target) ** 2).mean() / b + 2 * (2 * r - 1) * ((old - target) * d).mean() + b * (d**2).mean()
    assert float(loss(d)) == pytest.approx(float(a * t**2 * inner), rel=1e-12)
    best = ((2 * r - 1) / b * (target - old)).requires_grad_()
    assert float(torch.autograd.grad(loss(best), best)[0].abs().max()) < 1e-12


def test_nft_half_has_no_gradient_at_old() -> None:
    estimator = ContrastedMatching(draws=3)
    policy, rows, advantage = setup_matching(estimator)
    live = estimator(policy, rows, condition(6))
    flat = grads(policy, ImplicitPair()(live, batch(torch.zeros_like(advantage), live, rows)).mean())
    assert float(flat.abs().max()) < 1e-7


@pytest.mark.parametrize("weight", ["uniform", "t", "noise", "ghuber"])
def test_on_policy_clipped_matching_is_weighted_matching(weight) -> None:
    """AWM and FPO at the old policy: the gradient of the clipped ratio is A grad (weighted error)."""
    estimator = Matching(draws=4, weight=weight)
    policy, rows, advantage = setup_matching(estimator)
    live = estimator(policy, rows, condition(6))
    clipped = grads(policy, Clipped(0.2, 0.2)(live, batch(advantage, live, rows)).mean())
    live = estimator(policy, rows, condition(6))
    plain = grads(policy, ScoreFunction()(live, batch(advantage, live, rows)).mean())
    assert torch.allclose(clipped, plain, rtol=1e-5, atol=1e-8)


def test_nft_decay_schedules() -> None:
    steps = (0, 75, 100, 209, 500)
    one = [Ramp(0.001, 0.5)(n) for n in steps]
    two = [Ramp(0.0075, 0.999, 75)(n) for n in steps]
    assert one == pytest.approx([0, 0.075, 0.1, 0.209, 0.5])
    assert two == pytest.approx([0, 0, 0.1875, 0.999, 0.999])
    assert [Ramp(0, 0)(n) for n in steps] == [0] * 5


def test_times_cover_what_they_promise() -> None:
    grid = torch.linspace(1, 0, 11).double()
    keys = seeds(0, "t", count=500)
    distinct = GridTimes(fraction=0.99)(9, grid, keys)
    assert all(len(set(line)) == 9 for line in distinct.tolist())
    assert float(distinct.min()) == pytest.approx(0.2)  # the first int(10 * .99) = 9 times: 1.0 ... 0.2
    strata = GridTimes(fraction=0.9, stratified=True)(3, grid, keys)
    assert ((strata[:, 0] > 0.75) & (strata[:, 1] <= 0.75) & (strata[:, 2] < 0.5)).all()
    assert float(GridTimes(skip=1)(4, grid, keys).max()) == pytest.approx(0.9)
    flat = UniformTimes(0.2, 1.0)(4, grid, keys)
    assert ((flat >= 0.2) & (flat <= 1)).all() and float(flat.mean()) == pytest.approx(0.6, abs=0.01)
    assert float(UniformTimes(0, 1, shift=3)(4, grid, keys).mean()) > 0.6  # a shift above 1 looks at noisier times
    assert float(LogitNormalTimes()(8, grid, keys).mean()) == pytest.approx(0.5, abs=0.01)
    fine = torch.cat([torch.linspace(1, 0.001, 10).double(), torch.zeros(1).double()])
    kept = GridTimes(fraction=1.0, stratified=True, least=0.02)(8, fine, keys)
    assert set(kept.flatten().tolist()) == set(fine[:9].tolist())  # all but 0.001
    with pytest.raises(IncompatibleError, match=r"lower times\.least=0\.5"):
        GridTimes(least=0.5, skip=8)(2, fine, keys)


@pytest.mark.parametrize(
    "times",
    [UniformTimes(), UniformTimes(0.01, 0.9, shift=3), LogitNormalTimes(low=0.0), LogitNormalTimes(-1.0, 2.0, 3.0)],
)
def test_the_share_of_small_times_is_what_is_drawn(times) -> None:
    grid = torch.linspace(1, 0, 11).double()
    drawn = times(4, grid, seeds(0, "t", count=3000))
    for limit in (0.02, 0.1, 0.4):
        assert float((drawn < limit).double().mean()) == pytest.approx(times.share_below(limit, grid), abs=0.012)


def test_guidance_gradient_through_one_branch_or_both() -> None:
    """``cond`` is the gradient with the unconditional branch detached; ``both`` is the gradient of what was sampled."""
    policy = TinyFlow(MODES, prompts=("p",))
    with torch.no_grad():
        policy.last.weight.add_(torch.randn(2, 32, generator=torch.Generator().manual_seed(0)))
    x, t = torch.randn(4, 2, generator=torch.Generator().manual_seed(1)), torch.full((4,), 0.5).double()
    target = torch.ones(4, 2)

    def gradient(cfg_grad) -> Tensor:
        v = policy.velocity(x, t, condition(4), guidance=3.0, cfg_grad=cfg_grad)
        return grads(policy, ((v - target) ** 2).mean())

    conditional = policy.velocity(x, t, condition(4), guidance=1.0)
    with torch.no_grad():
        unconditional = policy.velocity(x, t, TinyCondition(torch.full((4,), -1)), guidance=1.0)
    detached = grads(policy, ((unconditional + 3.0 * (conditional - unconditional) - target) ** 2).mean())
    assert torch.allclose(gradient("cond"), detached, atol=1e-7)
    assert float((gradient("both") - detached).norm()) > 0.05 * float(detached.norm())
