"""Likelihood of a whole chain of steps whose noise the policy learns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from flowrl.devices import put
from flowrl.math.flow import mean_of
from flowrl.math.gaussians import Reduction, mean_square, reduce_factor
from flowrl.math.learned_noise import LearnedNoise
from flowrl.types import IncompatibleError, Likelihood, Rollout, Rows, Steps

LOG_ROOT = 0.5 * math.log(2 * math.pi)


@dataclass(frozen=True)
class ChainRows(Rows):
    """One chain of K steps of every sample."""

    large: ClassVar[frozenset[str]] = frozenset({"states"})

    states: Tensor  # [N, 1, K + 1, h, d]
    t: Tensor  # [N, 1, K] float64
    t_next: Tensor  # [N, 1, K] float64
    dynamics: LearnedNoise


@dataclass(frozen=True, kw_only=True)
class NoisyChain:
    """``log N(x_0; 0, 1) + sum_k log N(x_{k+1}; x_k + v dt, sigma(s, t_k)^2)``: one number for all steps that led to a
    chunk, so that a decision has one ratio, and its ``entropy``. ReinFlow (arXiv:2505.22094).

    Of every weight set S it is asked for: ``log_ratio/S``, and ``action_shift/S``, the mean squared difference of the
    chunks that the flow makes of z = 0 by the same steps without noise.

    reduction: ``mean`` divides by the K + 1 terms and by the numbers of a chunk, so that the ratio is a geometric mean;
        ``sum`` is the chain's density, ``sqrt`` between them.
    bound: log-probabilities outside ``-bound`` to ``bound`` are moved to it, and have no gradient there; ``None``: none
        are. Of the mean, sigma .1 and a perfect fit give .9 for a step.
    """

    family: ClassVar[str] = "control"
    explores: ClassVar[bool] = True
    reduction: Reduction = "mean"
    bound: float | None = 1.0

    def __post_init__(self) -> None:
        if self.bound is not None and not self.bound > 0:
            raise ValueError(f"bound={self.bound} is the largest log-probability; give more than 0, or null for none")

    @property
    def references(self) -> tuple[str, ...]:
        return ()

    @property
    def has_recorded_logp(self) -> bool:
        return False

    def decisions(self, recorded: int) -> tuple[int, int]:
        return recorded, recorded

    def probe(self, rollout: Rollout, policy: Any, seeds: Tensor) -> ChainRows:
        steps = rollout.trace
        if not isinstance(steps, Steps) or not isinstance(steps.dynamics, LearnedNoise):
            raise IncompatibleError("NoisyChain measures steps of learned noise: sample with NoisyFlowSampler")
        return ChainRows(steps.states[:, None], steps.t[:, None], steps.t_next[:, None], steps.dynamics)

    def recorded_logp(self, rollout: Rollout, rows: ChainRows) -> None:
        return None

    def __call__(self, policy: Any, rows: ChainRows, condition: Any, references: Sequence[str] = ()) -> Likelihood:
        extra, ends = {}, {}
        for name in references:
            with policy.using(name) as other:
                extra[name], ends[name] = self._measure(other, rows, condition)[0], self._end(other, rows, condition)
        logp, entropy = self._measure(policy, rows, condition)
        found = {f"log_ratio/{name}": (logp.detach() - value)[:, None] for name, value in extra.items()}
        if ends:
            end = self._end(policy, rows, condition)
            found |= {f"action_shift/{name}": mean_square(end - other, 1)[:, None] for name, other in ends.items()}
        return Likelihood(logp[:, None], found | {"entropy": entropy[:, None]})

    def _end(self, policy: Any, rows: ChainRows, condition: Any) -> Tensor:
        """[n, h, d]: the chunk that the flow makes of z = 0."""
        x = torch.zeros(len(rows.states), *rows.states.shape[3:], device=policy.device)
        for t, t_next in zip(rows.t[:, 0].unbind(dim=1), rows.t_next[:, 0].unbind(dim=1), strict=True):
            x = mean_of(rows.dynamics, x, policy.velocity(x, t, condition), t, t_next)
        return x

    def _measure(self, policy: Any, rows: ChainRows, condition: Any) -> tuple[Tensor, Tensor]:
        """[n] float64 each: log-probability and entropy, reduced."""
        n, k = len(rows.states), rows.t.shape[2]
        states = put(rows.states[:, 0], policy.device)
        x, x_next = states[:, :-1].flatten(0, 1), states[:, 1:].flatten(0, 1)
        wide = condition.take(torch.arange(n).repeat_interleave(k))
        t, t_next = rows.t.flatten(), rows.t_next.flatten()
        velocity, level = policy.velocity(x, t, wide), policy.noise_level(t, wide)
        mean, std = rows.dynamics.step(x, velocity, level, t, t_next)
        log_std = std.double().log()
        each = -0.5 * ((x_next.double() - mean.double()) / std.double()) ** 2 - log_std - LOG_ROOT
        first = -0.5 * states[:, 0].double() ** 2 - LOG_ROOT
        terms = (k + 1) * first[0].numel()
        factor = reduce_factor(self.reduction, terms)
        logp = (each.reshape(n, -1).sum(dim=1) + first.flatten(1).sum(dim=1)) * factor
        entropy = (log_std.reshape(n, -1).sum(dim=1) + terms * (LOG_ROOT + 0.5)) * factor
        return logp if self.bound is None else logp.clamp(-self.bound, self.bound), entropy
