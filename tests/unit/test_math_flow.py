"""Kernels against the numbers and identities of the literature, and against analytic Gaussian data (no sampling, no
network)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from flowrl.math.flow import (
    CPS,
    DDIM,
    ODE,
    SDEDPM,
    DanceSDE,
    FlowSDE,
    clean_of,
    dpm_solver_2m,
    interpolate,
    mean_of,
    measure_step,
    negligible,
    noise_of,
)

# SD3.5, ten steps, shift 3 applied twice as diffusers does (Flow-GRPO's grid)
SD3 = torch.tensor([1, 0.9601, 0.9133, 0.8577, 0.7904, 0.7073, 0.6022, 0.4649, 0.2780, 0.0089, 0], dtype=torch.float64)


def sd3_grid(steps: int) -> Tensor:
    def shift(u: Tensor) -> Tensor:
        return 3 * u / (1 + 2 * u)

    low = shift(torch.tensor(0.001, dtype=torch.float64))
    grid = shift(torch.linspace(1, float(low), steps, dtype=torch.float64))
    return torch.cat([grid, torch.zeros(1, dtype=torch.float64)])


@dataclass
class GaussianFlow:
    """Exact flow of data N(m, c^2): ``v* = P x + Q`` and exact mean, variance and parameter derivative through any
    kernel."""

    m: float
    c2: float

    def velocity(self, t: float) -> tuple[float, float]:
        total = (1 - t) ** 2 * self.c2 + t**2
        p = (t - (1 - t) * self.c2) / total
        return p, -self.m - p * (1 - t) * self.m

    def end(self, kernel, grid: Tensor) -> tuple[float, float, list[float]]:
        """Mean and variance of the final sample, and each step's contribution to d mean / d (additive shift of v)."""
        mean, variance, slopes = 0.0, 1.0, []
        for t, t_next in pairwise(grid):
            a, b, s = (float(k) for k in kernel.coefficients(t, t_next))
            p, q = self.velocity(float(t))
            gain = a + b * p
            mean, variance = gain * mean + b * q, gain**2 * variance + s**2
            slopes = [slope * gain for slope in slopes] + [b]
        return mean, variance, slopes


def test_grid_is_the_one_the_table_was_made_with() -> None:
    assert torch.allclose(sd3_grid(10), SD3, atol=5e-5)


@pytest.mark.parametrize(
    ("k", "g", "s", "b", "kl"),
    [
        (0, 3.506, 0.700, -0.0399, 0.0016),
        (1, 3.435, 0.743, -0.0582, 0.0031),
        (4, 1.359, 0.392, -0.1034, 0.0349),
        (7, 0.652, 0.282, -0.2326, 0.3401),
        (8, 0.434, 0.225, -0.3351, 1.105),
        (9, 0.066, 0.0063, -0.0111, 1.568),
    ],
)
def test_flow_sde_matches_the_table_of_flow_grpo(k: int, g: float, s: float, b: float, kl: float) -> None:
    grid = sd3_grid(10)
    _, got_b, got_s = FlowSDE(0.7).coefficients(grid[k], grid[k + 1])
    assert float(got_s) == pytest.approx(s, rel=0.01)
    assert float(got_b) == pytest.approx(b, rel=0.01, abs=6e-5)
    assert float(got_s / (grid[k] - grid[k + 1]).sqrt()) == pytest.approx(g, rel=0.01)
    assert float(got_b**2 / (2 * got_s**2)) == pytest.approx(kl, rel=0.03)


def test_first_step_is_finite_at_pure_noise() -> None:
    a, b, s = FlowSDE(0.7).coefficients(SD3[0], SD3[1])
    assert all(bool(torch.isfinite(value)) for value in (a, b, s))


TIMES = torch.linspace(0.05, 0.95, 40, dtype=torch.float64)


def assert_same(first, second, atol: float = 1e-9) -> None:
    for got, expected in zip(
        first.coefficients(TIMES, 0.6 * TIMES), second.coefficients(TIMES, 0.6 * TIMES), strict=True
    ):
        assert torch.allclose(got, expected, atol=atol, rtol=0)


def test_identities_between_kernels() -> None:
    assert_same(CPS(0.0), ODE())
    assert_same(DDIM(0.0), ODE())
    assert_same(DDIM(1.0), SDEDPM())
    assert_same(FlowSDE(0.0), ODE())


def test_dance_is_flow_sde_with_constant_g() -> None:
    eta = 0.3
    for t in TIMES:
        level = eta / math.sqrt(float(t / (1 - t)))
        for got, expected in zip(
            DanceSDE(eta).coefficients(t, 0.6 * t), FlowSDE(level).coefficients(t, 0.6 * t), strict=True
        ):
            assert float(got) == pytest.approx(float(expected), abs=1e-12)


def test_cps_preserves_the_noise_coefficient() -> None:
    for noise in (0.1, 0.5, 0.9):
        t_next = 0.6 * TIMES
        a, b, s = CPS(noise).coefficients(TIMES, t_next)
        # mean = p x0^ + q e^ has A = p + q and B = -p t + q (1 - t), so q = A t + B
        q = a * TIMES + b
        assert torch.allclose(q**2 + s**2, t_next**2, atol=1e-12)


def test_ddim_eta_one_is_the_ddpm_posterior() -> None:
    """In the variance-preserving scale: posterior mean and variance of x' given x and x0 (DDPM, arXiv:2006.11239 eq.
    6-7)."""
    alpha, alpha_next = torch.tensor(0.3, dtype=torch.float64), torch.tensor(0.55, dtype=torch.float64)

    def to_flow(a: Tensor) -> tuple[Tensor, Tensor]:
        scale = a.sqrt() + (1 - a).sqrt()
        return (1 - a).sqrt() / scale, scale

    (t, scale), (t_next, scale_next) = to_flow(alpha), to_flow(alpha_next)
    x, x0 = torch.tensor(0.7, dtype=torch.float64), torch.tensor(-0.4, dtype=torch.float64)
    noise = (x - alpha.sqrt() * x0) / (1 - alpha).sqrt()
    a, b, s = DDIM(1.0).coefficients(t, t_next)
    mean = (a * (x / scale) + b * (noise - x0)) * scale_next
    step = alpha / alpha_next
    posterior_mean = (alpha_next.sqrt() * (1 - step) * x0 + step.sqrt() * (1 - alpha_next) * x) / (1 - alpha)
    posterior_variance = (1 - alpha_next) / (1 - alpha) * (1 - step)
    assert float(mean) == pytest.approx(float(posterior_mean), abs=1e-12)
    assert float((s * scale_next) ** 2) == pytest.approx(float(posterior_variance), abs=1e-12)


@pytest.mark.parametrize(
    ("kernel", "mean", "variance", "slope"),
    [
        (ODE(), 0.5, 0.128996, -0.728669),
        (FlowSDE(0.7), 0.5, 0.177256, -0.719338),
        (DanceSDE(0.3), 0.5, 0.142078, -0.771103),
        (CPS(0.7), 0.5, 0.102266, -0.695305),
        (DDIM(1.0), 0.5, 0.101924, -0.698440),
    ],
)
def test_gaussian_flow_ends_where_it_must(kernel, mean: float, variance: float, slope: float) -> None:
    got_mean, got_variance, slopes = GaussianFlow(0.5, 0.25).end(kernel, sd3_grid(10))
    assert got_mean == pytest.approx(mean, abs=1e-6)
    assert got_variance == pytest.approx(variance, abs=1e-6)
    assert sum(slopes) == pytest.approx(slope, abs=1e-6)


def test_per_step_shares_of_the_gradient() -> None:
    _, _, slopes = GaussianFlow(0.5, 0.25).end(FlowSDE(0.7), sd3_grid(10))
    expected = [-0.00321, -0.00718, -0.01111, -0.01699, -0.02679, -0.04502, -0.08375, -0.17624, -0.33794, -0.01112]
    assert slopes == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("c2", "steps", "kernel", "variance"),
    [
        (0.0, 10, ODE(), 0.0),
        (0.0, 10, FlowSDE(0.7), 0.0038),
        (0.0, 10, DanceSDE(0.3), 0.650),
        (0.0, 10, CPS(0.7), 0.0),
        (0.25, 40, ODE(), 0.2158),
        (0.25, 40, FlowSDE(0.7), 0.2298),
        (0.25, 2000, FlowSDE(0.7), 0.2500),
        (0.25, 2000, DanceSDE(0.3), 0.2493),
        (0.25, 2000, CPS(0.7), 0.1798),  # the documented bias: it does not vanish with the number of steps
        (1.0, 2000, CPS(0.7), 0.7221),
        (0.25, 2000, DDIM(1.0), 0.2480),
    ],
)
def test_terminal_variance(c2: float, steps: int, kernel, variance: float) -> None:
    assert GaussianFlow(0.0, c2).end(kernel, sd3_grid(steps))[1] == pytest.approx(variance, abs=6e-4)


def test_conversions_round_trip() -> None:
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 5, 3, dtype=torch.float64, generator=generator)
    t = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    x, v = interpolate(clean, noise, t), noise - clean
    assert torch.allclose(clean_of(x, v, t), clean, atol=1e-14)
    assert torch.allclose(noise_of(x, v, t), noise, atol=1e-14)


def solve(flow: GaussianFlow, grid: Tensor, start: float, order: int) -> float:
    x, previous = torch.tensor(start, dtype=torch.float64), None
    for k in range(len(grid) - 1):
        p, q = flow.velocity(float(grid[k]))
        v = p * x + q
        if order == 1:
            x = x + (grid[k + 1] - grid[k]) * v
            continue
        clean = x - grid[k] * v
        x, previous = dpm_solver_2m(x, clean, previous, grid[k], grid[k + 1], grid[max(k - 1, 0)]), clean
    return float(x)


def test_solver_orders_on_a_uniform_grid() -> None:
    flow, start = GaussianFlow(0.5, 0.25), 1.3
    exact = flow.m + math.sqrt(flow.c2) * start
    errors = {
        order: [abs(solve(flow, torch.linspace(1, 0, n + 1).double(), start, order) - exact) for n in (80, 160, 320)]
        for order in (1, 2)
    }
    assert errors[1][1] / errors[1][2] == pytest.approx(2, rel=0.1)
    assert errors[2][1] / errors[2][2] == pytest.approx(4, rel=0.35)
    assert errors[2][0] < errors[1][0] / 5


def multistep(x: float, clean: float, previous: float, t: float, t_next: float, t_previous: float) -> float:
    """DPM-Solver++(2M) as algorithm 2 of arXiv:2211.01095 writes it, with alpha = 1 - t, sigma = t, lambda = log
    (alpha / sigma): ``sigma' / sigma x - alpha' (exp(-h) - 1) D``, ``D = (1 + 1 / 2r) x0 - x0_previous / 2r``."""
    before, now, after = (math.log((1 - u) / u) for u in (t_previous, t, t_next))
    h, r = after - now, (now - before) / (after - now)
    d = (1 + 1 / (2 * r)) * clean - previous / (2 * r)
    return t_next / t * x - (1 - t_next) * (math.exp(-h) - 1) * d


def solver(x: float, clean: float, previous: float | None, t: float, t_next: float, t_previous: float) -> float:
    numbers = [torch.tensor(value, dtype=torch.float64) for value in (x, clean, t, t_next, t_previous)]
    earlier = None if previous is None else torch.tensor(previous, dtype=torch.float64)
    return float(dpm_solver_2m(numbers[0], numbers[1], earlier, *numbers[2:]))


@pytest.mark.parametrize("times", [(0.6, 0.3, 0.8), (0.6, 0.55, 0.95), (0.2, 0.01, 0.5)])
def test_the_second_order_step_is_that_of_the_paper(times: tuple[float, float, float]) -> None:
    """Uneven steps, so that r is not 1."""
    assert solver(0.7, -0.4, 0.9, *times) == pytest.approx(multistep(0.7, -0.4, 0.9, *times), rel=1e-12)


def test_the_solver_is_first_order_where_there_is_no_second() -> None:
    """Euler in the predicted clean latent and noise: ``(1 - t') x0 + t' e``."""
    x, clean, t, t_next = 0.7, -0.4, 0.6, 0.3
    euler = (1 - t_next) * clean + t_next * (x - (1 - t) * clean) / t
    assert solver(x, clean, None, t, t_next, 0.6) == pytest.approx(euler, rel=1e-12)  # the first step
    assert solver(x, clean, 0.9, t, t_next, 1.0) == pytest.approx(euler, rel=1e-12)  # before it, log-SNR -infinity
    assert solver(x, clean, 0.9, t, 0.0, 0.8) == pytest.approx(clean, rel=1e-12)  # the last step ends at x0


@dataclass(frozen=True)
class Fixed:
    """The same kernel at every step: ``2 x + b v + s z``."""

    b: tuple[float, ...]
    s: tuple[float, ...]

    def coefficients(self, t: Tensor, t_next: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        b, s = (torch.tensor(values, dtype=torch.float64).expand(t.shape) for values in (self.b, self.s))
        return torch.full_like(t, 2.0), b, s


def test_which_noise_is_negligible() -> None:
    """Less than .01, or moved by more than ten times itself by a velocity of 1, whichever way."""
    kernel = Fixed(b=(0.0, 0.0, 0.1, 1.0, -1.0, 10.001, -10.001, 10.0, 0.2), s=(0.009, 0.01, 0.01, 1, 1, 1, 1, 1, 0.0))
    found = negligible(kernel, torch.linspace(1, 0, 10).double())
    assert found.tolist() == [True, False, False, False, False, True, True, False, True]
    assert negligible(ODE(), torch.linspace(1, 0, 5).double()).all()
    # of Flow-GRPO's grid the last step, whose s is .0063
    assert negligible(FlowSDE(0.7), sd3_grid(10)).tolist() == [False] * 9 + [True]


def test_a_recorded_step_by_hand() -> None:
    """mean = 2 x - v / 2 = [1.5, 4], squared = (.5^2 + 1^2) / .25^2 for latents of two numbers."""
    x, v = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.0]])
    t, t_next = torch.tensor([0.5]).double(), torch.tensor([0.4]).double()
    kernel = Fixed(b=(-0.5,), s=(0.25,))
    squared, mean, s = measure_step(kernel, x, v, torch.tensor([[2.0, 3.0]]), t, t_next)
    assert mean.tolist() == [[1.5, 4.0]] and mean.dtype == torch.float32
    assert squared.tolist() == [20.0] and squared.dtype == torch.float64 and s.tolist() == [0.25]
    steps = mean_of(
        kernel, x[:, None].expand(1, 3, 2), v[:, None].expand(1, 3, 2), t[:, None].expand(1, 3), t_next[:, None]
    )
    assert steps.tolist() == [[[1.5, 4.0]] * 3]  # times lead the axes of the latent, however many they are


def test_kernels_have_the_noise_of_their_papers() -> None:
    """By default Flow-GRPO's level .7, DanceGRPO's .3, FlowCPS's .8 and the DDPM posterior."""
    t, t_next = torch.tensor(0.5, dtype=torch.float64), torch.tensor(0.4, dtype=torch.float64)
    assert float(FlowSDE().coefficients(t, t_next)[2]) == pytest.approx(0.7 * math.sqrt(0.1))
    assert float(DanceSDE().coefficients(t, t_next)[2]) == pytest.approx(0.3 * math.sqrt(0.1))
    assert float(CPS().coefficients(t, t_next)[2]) == pytest.approx(0.4 * math.sin(0.4 * math.pi))
    # posterior std of DDPM in these coordinates: t' sqrt(1 - (t' (1 - t) / (t (1 - t')))^2)
    assert float(DDIM().coefficients(t, t_next)[2]) == pytest.approx(0.4 * math.sqrt(1 - (0.4 / 0.6) ** 2))


def test_the_first_step_of_flow_grpo_takes_the_second_time() -> None:
    """At t = 1 the released code's g is noise_level sqrt(1 / (1 - t')); just below 1 the plain formula."""
    t_next = torch.tensor(0.9, dtype=torch.float64)
    for t, below in ((1.0, 0.9), (0.95, 0.95)):
        s = float(FlowSDE(0.7).coefficients(torch.tensor(t, dtype=torch.float64), t_next)[2])
        assert s == pytest.approx(0.7 * math.sqrt(t / (1 - below)) * math.sqrt(t - 0.9))


def test_a_kernel_that_does_not_move_adds_no_noise() -> None:
    t = torch.tensor([0.3, 0.7, 0.1 + 0.2], dtype=torch.float64)
    for kernel in (DDIM(1.0), SDEDPM()):
        a, b, s = kernel.coefficients(t, t)
        assert torch.allclose(a, torch.ones_like(a)) and b.abs().max() < 1e-7 and s.abs().max() < 1e-7
        assert not s.isnan().any()
