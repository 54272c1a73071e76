"""The table of affine Gaussian kernels ``x' = A x + B v + s z`` for ``x_t = (1 - t) clean + t noise``, ``v = noise -
clean``.

Every stochastic sampler of a flow or diffusion model is one row: three scalars of ``(t, t')`` with ``t' < t``. Density,
ratio and KL follow from them (`flowrl.math.gaussians`). Variance-preserving models use the same rows, because their
policies convert to these coordinates: DDIM(eta) of a DDPM model is exactly ``DDIM(eta)`` here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flowrl.devices import put
from flowrl.math.gaussians import squared_norm
from flowrl.types import Dynamics

Coefficients = tuple[Tensor, Tensor, Tensor]

LEAST_STD = 0.01
"""A step with less noise (in units of the latent, whose noise has standard deviation 1) is negligible: it explores
nothing."""
MOST_PUSH = 10.0
"""A step is also negligible if a velocity changed by 1 everywhere moves its mean by more than so many standard
deviations: its log-ratio then drowns those of the others, which move by 0.05 to 2."""


def clean_of(x: Tensor, v: Tensor, t: Tensor) -> Tensor:
    """Predicted clean latent ``x - t v``."""
    return x - _like(t, x) * v


def noise_of(x: Tensor, v: Tensor, t: Tensor) -> Tensor:
    """Predicted noise ``x + (1 - t) v``."""
    return x + (1 - _like(t, x)) * v


def interpolate(clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """``x_t = (1 - t) clean + t noise``."""
    t = _like(t, clean)
    return (1 - t) * clean + t * noise


def mean_of(dynamics: Dynamics, x: Tensor, v: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
    """Mean ``A x + B v`` of the next state, in the dtype of ``x``; ``t``, ``t_next`` lead the axes of ``x``."""
    return moments(dynamics, x, v, t, t_next)[0]


def measure_step(
    dynamics: Dynamics, x: Tensor, v: Tensor, x_next: Tensor, t: Tensor, t_next: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """``(squared, mean, s)`` of a recorded step: ``squared = sum (x_next - mean)^2 / s^2`` in float64.

    Sampler and estimator both measure by `moments` and `squared_distance`, so the ratio of an unchanged policy is
    exactly 1.
    """
    mean, s = moments(dynamics, x, v, t, t_next)
    squared, s = squared_distance(x_next, mean, s)
    return squared, mean, s


def moments(dynamics: Dynamics, x: Tensor, v: Tensor, t: Tensor, t_next: Tensor) -> tuple[Tensor, Tensor]:
    """`mean_of` a step, and its deviation s in float64 where the times are."""
    a, b, s = dynamics.coefficients(t, t_next)
    return _like(a, x) * x + _like(b, x) * v, s


def squared_distance(x_next: Tensor, mean: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """``sum (x_next - mean)^2 / s^2`` in float64, of as many leading axes as ``s`` has, and ``s`` where that is."""
    squared = squared_norm(x_next - mean, s.ndim)
    s = put(s, squared.device)
    return squared / s**2, s


def negligible(dynamics: Dynamics, times: Tensor) -> Tensor:
    """[T] bool: the steps of a grid [T + 1] whose noise is too small to learn from, ``s < LEAST_STD`` or
    ``|B| > MOST_PUSH s``. Deterministic steps are among them."""
    _, b, s = dynamics.coefficients(times[:-1], times[1:])
    return (s < LEAST_STD) | (b.abs() > MOST_PUSH * s)


def _like(scalar: Tensor, x: Tensor) -> Tensor:
    """``scalar`` in the dtype and device of ``x``, with trailing axes to broadcast."""
    return put(scalar, x).reshape(scalar.shape + (1,) * (x.ndim - scalar.ndim))


def _from_prediction(clean: Tensor, noise: Tensor, t: Tensor, s: Tensor) -> Coefficients:
    """Coefficients of ``mean = clean * x0^ + noise * e^``: with x0^ = x - t v and e^ = x + (1 - t) v."""
    return clean + noise, -clean * t + noise * (1 - t), s


@dataclass(frozen=True)
class ODE:
    """Euler step of the probability-flow ODE: ``x + (t' - t) v``. Deterministic."""

    def coefficients(self, t: Tensor, t_next: Tensor) -> Coefficients:
        """``(1, t' - t, 0)``."""
        t, t_next = t.double(), t_next.double()
        return torch.ones_like(t), t_next - t, torch.zeros_like(t)


@dataclass(frozen=True)
class FlowSDE:
    """SDE with the flow's marginals, ``g = noise_level * sqrt(t / (1 - t))``. Flow-GRPO (arXiv:2505.05470).

    ``x + v dt + (g^2 / 2t) e^ dt + g sqrt(-dt) z``. At t = 1 the denominator uses t' instead (the second time of the
    grid), as the released code does; otherwise g would be infinite. Converges to the right marginals as the grid is
    refined.
    """

    noise_level: float = 0.7

    def coefficients(self, t: Tensor, t_next: Tensor) -> Coefficients:
        """``(1 + d h, h (1 + d (1 - t)), g sqrt(-h))`` with ``h = t' - t`` and ``d = g^2 / 2t``."""
        t, t_next = t.double(), t_next.double()
        g = self.noise_level * (t / (1 - torch.where(t >= 1, t_next, t))).sqrt()
        return _sde(g, t, t_next)


@dataclass(frozen=True)
class DanceSDE:
    """The same SDE with constant ``g = noise``. DanceGRPO (arXiv:2505.07818).

    The drift explodes as t -> 0 and the last step leaves residual noise: decode the predicted clean latent of the
    last step (`FlowSampler.decode_clean`) and do not train it.
    """

    noise: float = 0.3

    def coefficients(self, t: Tensor, t_next: Tensor) -> Coefficients:
        """As those of `FlowSDE`, with constant ``g``."""
        t, t_next = t.double(), t_next.double()
        return _sde(torch.full_like(t, self.noise), t, t_next)


@dataclass(frozen=True)
class LinearSDE:
    """The same SDE with ``g = low + (high - low) t``, which dies out towards the picture. Flow-GRPO's and Flash-GRPO's
    for Wan (arXiv:2605.15980), where ``high`` is the second time of the grid and ``low`` the last, 0."""

    low: float = 0.0
    high: float = 1.0

    def coefficients(self, t: Tensor, t_next: Tensor) -> Coefficients:
        """As those of `FlowSDE`, with linear ``g``."""
        t, t_next = t.double(), t_next.double()
        return _sde(self.low + (self.high - self.low) * t, t, t_next)


def _sde(g: Tensor, t: Tensor, t_next: Tensor) -> Coefficients:
    dt = t_next - t
    drift = g**2 / (2 * t)  # times the predicted noise e^ = x + (1 - t) v, i.e. minus t times the score
    return 1 + drift * dt, dt * (1 + drift * (1 - t)), g * (-dt).sqrt()


@dataclass(frozen=True)
class CPS:
    """Coefficients-preserving sampling: ``(1-t') x0^ + t' cos(noise pi/2) e^ + t' sin(noise pi/2) z``. FlowCPS
    (arXiv:2509.05952).

    ``noise = 0`` is Euler. NOT marginal preserving: the per-step noise is O(1), so variance is lost at any number of
    steps unless the conditional is a point mass (`tests/unit/test_math_flow.py` records by how much).
    """

    noise: float = 0.8

    def coefficients(self, t: Tensor, t_next: Tensor) -> Coefficients:
        """Those of ``(1 - t') x0^ + t' cos(a) e^`` with ``s = t' sin(a)``, ``a = noise pi / 2``."""
        t, t_next = t.double(), t_next.double()
        angle = torch.tensor(self.noise * torch.pi / 2, dtype=torch.float64)
        return _from_prediction(1 - t_next, t_next * angle.cos(), t, t_next * angle.sin())


@dataclass(frozen=True)
class DDIM:
    """DDIM(eta) in flow coordinates: eta = 0 is Euler, eta = 1 the DDPM posterior. DDIM (arXiv:2010.02502) eq. 12, 16.

    ``s = eta t' sqrt(1 - (t'(1-t) / (t(1-t')))^2)``, ``mean = (1-t') x0^ + sqrt(t'^2 - s^2) e^``. The last step (t' =
    0) is deterministic.
    """

    eta: float = 1.0

    def coefficients(self, t: Tensor, t_next: Tensor) -> Coefficients:
        """Those of ``(1 - t') x0^ + sqrt(t'^2 - s^2) e^``, with ``s`` as above."""
        t, t_next = t.double(), t_next.double()
        odds_ratio = t_next * (1 - t) / (t * (1 - t_next))
        s = self.eta * t_next * (1 - odds_ratio**2).clamp(min=0).sqrt()
        return _from_prediction(1 - t_next, (t_next**2 - s**2).clamp(min=0).sqrt(), t, s)


@dataclass(frozen=True)
class Floored:
    """Another kernel's steps with a deviation of at least ``least``, around the same mean; also where that kernel has
    no noise. The same deviation samples and is in the density. DPPO (arXiv:2409.00588): 0.1.

    ``least`` is in the units of a DDPM, whose states are ``x / scale(t)`` of variance 1, so that the floor is
    ``least * scale(t')`` here; of the last step, to t' = 0, both are the same."""

    dynamics: Dynamics = DDIM(1.0)
    least: float = 0.1

    def __post_init__(self) -> None:
        if not self.least >= 0:
            raise ValueError(f"least={self.least} is the smallest deviation of a step; give 0 or more")

    def coefficients(self, t: Tensor, t_next: Tensor) -> Coefficients:
        """Those of the kernel, with ``max(s, least scale(t'))``."""
        a, b, s = self.dynamics.coefficients(t, t_next)
        return a, b, torch.maximum(s, self.least * self.scale(t_next))

    def scale(self, t: Tensor) -> Tensor:
        """``sqrt((1 - t)^2 + t^2)`` float64, by which a state here is larger than a DDPM's."""
        t = t.double()
        return ((1 - t) ** 2 + t**2).sqrt()


@dataclass(frozen=True)
class SDEDPM:
    """First-order SDE-DPM-Solver++ (arXiv:2211.01095, SDE variant); identical to ``DDIM(1)``.

    ``lambda = log((1-t)/t)``, ``h = lambda' - lambda``: ``(t'/t) e^{-h} x + (1-t')(1-e^{-2h}) x0^ + t'
    sqrt(1-e^{-2h}) z``.
    """

    def coefficients(self, t: Tensor, t_next: Tensor) -> Coefficients:
        """``((t'/t) e^{-h} + c, -c t, t' sqrt(1 - e^{-2h}))`` with ``c = (1 - t') (1 - e^{-2h})``."""
        t, t_next = t.double(), t_next.double()
        decay = t_next * (1 - t) / (t * (1 - t_next))  # e^{-h}
        kept = (t_next / t) * decay
        clean = (1 - t_next) * (1 - decay**2)
        return kept + clean, -clean * t, t_next * (1 - decay**2).clamp(min=0).sqrt()


def dpm_solver_2m(
    x: Tensor, clean: Tensor, previous: Tensor | None, t: Tensor, t_next: Tensor, t_previous: Tensor
) -> Tensor:
    """One step of DPM-Solver++(2M) (arXiv:2211.01095, algorithm 2) in flow coordinates. Times are scalars.

    ``clean`` is the prediction at ``t``, ``previous`` that at ``t_previous`` (``None`` on the first step). First
    order (DDIM) on the first step, the last (t' = 0, infinite log-SNR), and wherever ``t_previous = 1`` has log-SNR
    minus infinity.
    """
    ratio, decay = float(t_next / t), float(t_next * (1 - t) / (t * (1 - t_next)))
    if previous is not None and float(t_previous) < 1 and float(t_next) > 0:
        log_snr = [float(torch.log((1 - u) / u)) for u in (t_previous.double(), t.double(), t_next.double())]
        r = (log_snr[1] - log_snr[0]) / (log_snr[2] - log_snr[1])
        clean = clean + (clean - previous) / (2 * r)
    return ratio * x + float(1 - t_next) * (1 - decay) * clean
