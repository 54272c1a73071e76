"""From a scheduler's coordinates to the canonical ones: ``x_t = (1 - t) clean + t noise``, ``v = noise - clean``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from flowrl.devices import put
from flowrl.errors import UserError

Prediction = Literal["epsilon", "v_prediction", "sample"]


class Coordinates(Protocol):
    """``native`` is what the scheduler calls the prediction; ``network time`` what its timesteps count."""

    def levels(self, timesteps: Tensor, sigmas: Tensor | None) -> Tensor:
        """[T] float64 canonical times of a schedule's T timesteps."""
        ...

    def snap(self, t: Tensor) -> Tensor:
        """The nearest times [N] that the network was trained on."""
        ...

    def network_time(self, t: Tensor) -> Tensor:
        """[N] float64: the scheduler's timestep at canonical ``t`` [N]."""
        ...

    def to_network(self, x: Tensor, t: Tensor) -> Tensor:
        """What the network reads, for canonical ``x`` [N, ...] at ``t`` [N]."""
        ...

    def from_network(self, x: Tensor, t: Tensor) -> Tensor:
        """The inverse of `to_network`."""
        ...

    def velocity(self, native: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Canonical velocity [N, ...] from the native prediction at canonical ``x``."""
        ...

    def initial(self, noise: Tensor, t: Tensor, init_noise_sigma: float) -> Tensor:
        """The canonical point that the pipeline makes of standard normal ``noise`` [N, ...] at its first time ``t``."""
        ...

    def predicted(self, output: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The denoiser's prediction, of what the scheduler receives at canonical ``x`` [N, ...] and ``t`` [N]."""
        ...

    def ticks(self, timesteps: Sequence[float]) -> Sequence[float]:
        """What network times are affine functions of, for a schedule's timesteps."""
        ...

    def to_sample(self, x: Tensor, t: Tensor) -> Tensor:
        """What the scheduler holds, for canonical ``x`` [N, ...] at ``t`` [N]."""
        ...

    def from_sample(self, x: Tensor, t: Tensor) -> Tensor:
        """The inverse of `to_sample`."""
        ...


class _Plain:
    """Coordinates of pipelines that hand the denoiser's prediction, and the scheduler's timesteps, on as they are."""

    def predicted(self, output: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The same."""
        return output

    def ticks(self, timesteps: Sequence[float]) -> Sequence[float]:
        """The same."""
        return timesteps


@dataclass(frozen=True)
class FlowCoordinates(_Plain):
    """Rectified flow: the scheduler's sigma is ``t`` (``1 - t`` if ``reversed_``), its prediction is ``v`` (``-v``)."""

    train_steps: int = 1000
    reversed_: bool = False
    truncate: bool = False
    """Whether the scheduler rounds its timesteps down to integers (UniPC and DPM-Solver in flow mode do)."""
    shift: float = 1.0
    """Odds ``sigma / (1 - sigma)`` over those of the timestep; not 1 where sigmas are shifted and timesteps are not."""

    def levels(self, timesteps: Tensor, sigmas: Tensor | None) -> Tensor:
        """[T] float64: sigmas are times, or timesteps where there are none."""
        t = (timesteps / self.train_steps if sigmas is None else sigmas[: len(timesteps)]).double()
        return 1 - t if self.reversed_ else t

    def snap(self, t: Tensor) -> Tensor:
        """Any time is allowed."""
        return t

    def network_time(self, t: Tensor) -> Tensor:
        """[N]: the timestep of a sigma, after undoing the shift of sigmas."""
        sigma = 1 - t if self.reversed_ else t
        level = sigma / (sigma + self.shift * (1 - sigma)) * self.train_steps
        # sigmas are float32: 0.9999999 of a step is that step
        return (level + 1e-4).floor() if self.truncate else level

    def to_network(self, x: Tensor, t: Tensor) -> Tensor:
        """The same point."""
        return x

    def from_network(self, x: Tensor, t: Tensor) -> Tensor:
        """The same point."""
        return x

    def to_sample(self, x: Tensor, t: Tensor) -> Tensor:
        """The same point."""
        return x

    def from_sample(self, x: Tensor, t: Tensor) -> Tensor:
        """The same point."""
        return x

    def velocity(self, native: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The prediction is the velocity, or its negative."""
        return -native if self.reversed_ else native

    def initial(self, noise: Tensor, t: Tensor, init_noise_sigma: float) -> Tensor:
        """The noise itself."""
        return noise


@dataclass(frozen=True)
class DDPMCoordinates(_Plain):
    """DDPM models. The network reads ``x_vp = sqrt(a) clean + sqrt(1 - a) noise``; with ``m = sqrt(a) + sqrt(1 - a)``
    the canonical point is ``x = x_vp / m`` at ``t = sqrt(1 - a) / m``; so ``t / (1 - t)`` is the noise-to-signal ratio.
    """

    times: Tensor
    """[1000] float64 ascending: canonical time of every discrete timestep."""
    prediction: Prediction = "epsilon"
    variance_exploding: bool = False
    """Whether the pipeline's latents are ``clean + ratio * noise`` (Euler schedulers), else ``x_vp``."""

    def levels(self, timesteps: Tensor, sigmas: Tensor | None) -> Tensor:
        """[T] float64, from the noise-to-signal ratios of the timesteps."""
        ratios = _ratio(self.times.cpu())
        # Euler schedulers interpolate the ratio between the discrete times
        ratio = _interpolate(torch.arange(len(ratios), dtype=torch.float64), ratios, timesteps.double())
        return ratio / (1 + ratio)

    def snap(self, t: Tensor) -> Tensor:
        """[N]: the canonical times of the nearest discrete timesteps."""
        times = self.times.to(t.device)
        return times[self.network_time(t).round().long()].to(t.dtype)

    def network_time(self, t: Tensor) -> Tensor:
        """[N] float64, between the discrete timesteps by their noise-to-signal ratios."""
        ratios = _ratio(self.times.to(t.device))
        steps = torch.arange(len(ratios), dtype=torch.float64, device=t.device)
        return _interpolate(ratios, steps, _ratio(t.double()))

    def to_network(self, x: Tensor, t: Tensor) -> Tensor:
        """``x / n``, which is ``x_vp``."""
        return x * _like(1 / _norm(t), x)

    def from_network(self, x: Tensor, t: Tensor) -> Tensor:
        """``n x_vp``."""
        return x * _like(_norm(t), x)

    def to_sample(self, x: Tensor, t: Tensor) -> Tensor:
        """What the network reads; compared are schedulers that hold it alone."""
        return self.to_network(x, t)

    def from_sample(self, x: Tensor, t: Tensor) -> Tensor:
        """The inverse."""
        return self.from_network(x, t)

    def velocity(self, native: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """With ``p = 1 - t`` and ``n = sqrt(p^2 + t^2)`` (so ``x_vp = x / n``): epsilon: ``v = (eps - x) / p``;
        v-prediction ``u``: ``n u = p eps - t clean`` and ``x = p clean + t eps``, so ``v = ((t - p) x + n u) / n^2``;
        sample: ``v = (x - clean) / t``."""
        p = 1 - t
        if self.prediction == "epsilon":
            return (native - x) * _like(1 / p, x)
        if self.prediction == "sample":
            return (x - native) * _like(1 / t, x)
        norm = _norm(t)
        return x * _like((t - p) / norm**2, x) + native * _like(1 / norm, x)

    def initial(self, noise: Tensor, t: Tensor, init_noise_sigma: float) -> Tensor:
        """The pipeline starts at ``init_noise_sigma * noise`` in its own scale."""
        return noise * (init_noise_sigma * float((1 - t) if self.variance_exploding else _norm(t)))


@dataclass(frozen=True)
class TrigFlowCoordinates:
    """TrigFlow (arXiv:2410.11081) around a network of a flow, as in SANA-Sprint (arXiv:2503.09641, section 3.1). At the
    angle a the scheduler holds ``sigma_data (cos(a) clean + sin(a) noise)`` and receives ``sigma_data (cos(a) noise -
    sin(a) clean)``; the network reads what it holds over ``sigma_data (cos(a) + sin(a))``, the canonical point at
    ``t = sin(a) / (cos(a) + sin(a))``, is told t, and predicts the velocity there.
    """

    sigma_data: float = 0.5

    def levels(self, timesteps: Tensor, sigmas: Tensor | None) -> Tensor:
        """[T] float64, of angles; the last one, 0, is none of a step."""
        angle = timesteps[timesteps > 0].double()
        return angle.sin() / (angle.sin() + angle.cos())

    def snap(self, t: Tensor) -> Tensor:
        """Any time is allowed."""
        return t

    def network_time(self, t: Tensor) -> Tensor:
        """The same time."""
        return t

    def to_network(self, x: Tensor, t: Tensor) -> Tensor:
        """The same point."""
        return x

    def from_network(self, x: Tensor, t: Tensor) -> Tensor:
        """The same point."""
        return x

    def velocity(self, native: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The prediction is the velocity."""
        return native

    def initial(self, noise: Tensor, t: Tensor, init_noise_sigma: float) -> Tensor:
        """The noise itself."""
        return noise

    def predicted(self, output: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """With ``n = sqrt((1 - t)^2 + t^2)``: the pipeline hands ``sigma_data ((1 - 2 t) x + n^2 v) / n`` on."""
        norm = _norm(t)
        return output * _like(1 / (self.sigma_data * norm), x) - x * _like((1 - 2 * t) / norm**2, x)

    def ticks(self, timesteps: Sequence[float]) -> Sequence[float]:
        """Canonical times."""
        return [math.sin(angle) / (math.sin(angle) + math.cos(angle)) for angle in timesteps]

    def to_sample(self, x: Tensor, t: Tensor) -> Tensor:
        """``sigma_data x / n``."""
        return x * _like(self.sigma_data / _norm(t), x)

    def from_sample(self, x: Tensor, t: Tensor) -> Tensor:
        """``n x / sigma_data``."""
        return x * _like(_norm(t) / self.sigma_data, x)


def time_grid(levels: Tensor) -> Tensor:
    """[T + 1] descending times ending with 0: solvers of higher order list some of the T ``levels`` twice."""
    return torch.cat([torch.unique_consecutive(levels), torch.zeros(1, dtype=torch.float64)])


def scheduler_coordinates(scheduler: Any, variance_exploding: bool) -> Coordinates:
    """The coordinates a scheduler works in, told from its configuration;
    ``variance_exploding`` is measured by the caller."""
    config = scheduler.config
    name = type(scheduler).__name__
    kind = config.get("prediction_type", None)
    if name.startswith("FlowMatchEuler") or name.startswith("FlowMatchHeun") or has_flow_sigmas(config):
        return FlowCoordinates(
            train_steps=int(config.get("num_train_timesteps", 1000)),
            reversed_=bool(config.get("invert_sigmas", False)),
            truncate=not name.startswith("FlowMatch"),
        )
    if kind == "trigflow":
        return TrigFlowCoordinates(float(config.get("sigma_data", 0.5)))
    alphas = getattr(scheduler, "alphas_cumprod", None)
    if alphas is None or kind not in ("epsilon", "v_prediction", "sample"):
        raise UserError(
            f"{name} with prediction_type={kind!r} is neither a flow nor a DDPM scheduler; it is not supported"
        )
    signal = torch.as_tensor(alphas).double().sqrt()
    noise = (1 - torch.as_tensor(alphas).double()).sqrt()
    return DDPMCoordinates((noise / (signal + noise)).cpu(), kind, variance_exploding)


def measured_shift(coordinates: FlowCoordinates, timesteps: Tensor, sigmas: Tensor | None) -> FlowCoordinates:
    """``coordinates`` with the shift between a schedule's sigmas and timesteps (CogView4 shifts sigmas only)."""
    if sigmas is None or coordinates.truncate:
        return coordinates
    sigma, base = sigmas[: len(timesteps)].double(), timesteps.double() / coordinates.train_steps
    inner = (sigma > 1e-6) & (sigma < 1 - 1e-6) & (base < 1 - 1e-6)
    if not inner.any() or torch.allclose(sigma, base, atol=2e-3):
        return coordinates
    shifts = (sigma / (1 - sigma))[inner] / (base / (1 - base))[inner]
    if (shifts.max() - shifts.min()) > 1e-3 * shifts.max():
        raise UserError("the scheduler's timesteps do not follow from its sigmas; unsupported")
    return replace(coordinates, shift=float(shifts.mean()))


def has_flow_sigmas(config: Mapping[str, Any]) -> bool:
    """Whether a scheduler of another kind is configured for rectified flow."""
    return config.get("prediction_type", None) == "flow_prediction" or bool(config.get("use_flow_sigmas", False))


def _norm(t: Tensor) -> Tensor:
    """``n``: the length of ``(1 - t, t)``."""
    return ((1 - t) ** 2 + t**2).sqrt()


def _ratio(t: Tensor) -> Tensor:
    """Noise over signal; finite where a schedule ends without signal."""
    return t / (1 - t).clamp(min=1e-8)


def _interpolate(xs: Tensor, ys: Tensor, at: Tensor) -> Tensor:
    """Piecewise linear through ``(xs, ys)``, constant outside."""
    right = torch.searchsorted(xs, at.contiguous()).clamp(1, len(xs) - 1)
    low, high = xs[right - 1], xs[right]
    share = ((at - low) / (high - low)).clamp(0, 1)
    return ys[right - 1] + share * (ys[right] - ys[right - 1])


def _like(values: Tensor, x: Tensor) -> Tensor:
    """[N] -> [N, 1, ...] in ``x``'s type and on its device."""
    return put(values, x).reshape(-1, *[1] * (x.ndim - 1))
