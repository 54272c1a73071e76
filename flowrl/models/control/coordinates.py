"""Times and predictions of other policies in the coordinates of flows, where ``x = (1 - t) clean + t noise``."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flowrl.errors import UserError

MOST_BETA = 0.999
REFINED = 0.9
"""tau* of MIP (arXiv:2512.01809): its second evaluation is trained at ``clean + (1 - tau*) noise``."""


def cosine_levels(steps: int) -> Tensor:
    """[steps] float64: the cumulative products ``a`` of the cosine schedule (arXiv:2102.09672), the cleanest first."""
    edges = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    bar = torch.cos((edges + 0.008) / 1.008 * math.pi / 2) ** 2
    beta = (1 - bar[1:] / bar[:-1]).clamp(max=MOST_BETA)
    return (1 - beta).cumprod(dim=0)


def mip_times() -> Tensor:
    """[3] float64: 1, where a MIP begins with nothing, the time at which ``x / (1 - t)`` is what its second evaluation
    sees, ``t / (1 - t) = 1 - tau*``, and 0."""
    return torch.tensor([1, (1 - REFINED) / (2 - REFINED), 0], dtype=torch.float64)


def mip_input(x: Tensor, t: Tensor) -> Tensor:
    """What the network of a MIP sees of the state: ``x / (1 - t)``, and the state itself at time 1, where it is 0."""
    left = 1 - t.reshape(-1, *[1] * (x.dim() - 1))
    return x / torch.where(left > 0, left, torch.ones_like(left))


def times_of(levels: Tensor) -> Tensor:
    """``t = sqrt(1 - a) / (sqrt(a) + sqrt(1 - a))`` of every level."""
    return (1 - levels).sqrt() / (levels.sqrt() + (1 - levels).sqrt())


def time_grid(kind: str, own: int, steps: int) -> Tensor:
    """[steps + 1] float64 descending to 0 of a flow, a MIP, or a DDPM with ``own`` times: `ControlPolicy.times`."""
    if steps < 1:
        raise UserError(f"a sampler needs at least 1 step, got {steps}")
    if kind == "mip":
        if steps != 2:
            raise UserError(f"a MIP acts in 2 steps, and sampler.steps={steps}; set 2")
        return mip_times()
    if kind == "flow":
        return torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    levels = times_of(cosine_levels(own))
    if steps > len(levels):
        raise UserError(f"this DDPM has {len(levels)} times, and sampler.steps={steps}; take at most as many")
    chosen = torch.linspace(len(levels) - 1, 0, steps).round().long()
    return torch.cat([levels[chosen], torch.zeros(1, dtype=torch.float64)])


def to_network(x: Tensor, t: Tensor) -> Tensor:
    """The state as the DDPM has it, of variance ``a + (1 - a)``: ``x (sqrt(a) + sqrt(1 - a))``, which is
    ``x / sqrt((1 - t)^2 + t^2)``."""
    scale = ((1 - t) ** 2 + t**2).rsqrt()
    return x * scale.to(x).reshape(-1, *[1] * (x.dim() - 1))


def velocity_of(noise: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """``v = noise - clean`` with ``clean = (x - t noise) / (1 - t)``: ``(noise - x) / (1 - t)``."""
    return (noise - x) / (1 - t).clamp(min=1e-6).to(x).reshape(-1, *[1] * (x.dim() - 1))
