"""Likelihood of the noise that was added to a flow's actions, around how far the flow has moved since."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from flowrl.devices import put
from flowrl.math.flow import interpolate, noise_of
from flowrl.math.gaussians import mean_square
from flowrl.math.random import uniform
from flowrl.types import IncompatibleError, Likelihood, Rollout, Rows, Steps

TIME = 1003  # stream of a decision's seed


@dataclass(frozen=True)
class PerturbedRows(Rows):
    """Where on the straight path of every sample the velocity is compared, and what it was when the rows were drawn."""

    large: ClassVar[frozenset[str]] = frozenset({"x", "velocity", "shift"})

    t: Tensor  # [N, 1] float64
    x: Tensor  # [N, 1, h, d]: (1 - t) end + t noise
    velocity: Tensor  # [N, 1, h, d]: of the policy that sampled
    shift: Tensor  # [N, 1, h, d]: the noise that was added


@dataclass(frozen=True, kw_only=True)
class Perturbation:
    """``log N(n; D, sigma^2)``, summed over a chunk, with ``D = -(v - v_old)(x_t, t)`` for the shift of the flow's end:
    exact where the change of the velocity is the same all along the path and the old velocity does not depend on x,
    a surrogate otherwise. PolicyFlow (arXiv:2602.01156); one of the rollout's times for each decision.

    ``entropy`` is that of n. ``brownian`` is the mean of ``(t v + beta e_old)^2`` with the old prediction of the noise
    ``e_old = x_t + (1 - t) v_old``: zero at ``v = -beta e / t``, which spreads samples as heat does.
    """

    family: ClassVar[str] = "control"
    beta: float = 1.0

    @property
    def references(self) -> tuple[str, ...]:
        return ()

    @property
    def has_recorded_logp(self) -> bool:
        return False

    def decisions(self, recorded: int) -> tuple[int, int]:
        return recorded, recorded

    @torch.no_grad()
    def probe(self, rollout: Rollout, policy: Any, seeds: Tensor) -> PerturbedRows:
        steps = rollout.trace
        if not isinstance(steps, Steps) or steps.states.shape[1] != 3 or rollout.times is None:
            raise IncompatibleError("Perturbation measures what was added to a flow: sample with PerturbedFlowSampler")
        start, end, action = steps.states.unbind(dim=1)
        grid = rollout.times.cpu()
        t = grid[(uniform(seeds, (), stream=TIME) * len(grid)).long()]
        x = put(interpolate(end, start, t), policy.device)
        velocity = policy.velocity(x, t, rollout.condition).cpu()
        return PerturbedRows(t[:, None], x.cpu()[:, None], velocity[:, None], (action - end)[:, None])

    def recorded_logp(self, rollout: Rollout, rows: PerturbedRows) -> None:
        return None

    def __call__(self, policy: Any, rows: PerturbedRows, condition: Any, references: Sequence[str] = ()) -> Likelihood:
        extra = {}
        for name in references:
            with policy.using(name) as other:
                extra[name] = self._logp(other, rows, self._velocity(other, rows, condition))
        v, t = self._velocity(policy, rows, condition), rows.t[:, 0]
        logp = self._logp(policy, rows, v)
        x, old = (put(value[:, 0], v) for value in (rows.x, rows.velocity))
        heat = put(t, v)[:, None, None] * v + self.beta * noise_of(x, old, t)
        found = {f"log_ratio/{name}": (logp.detach() - value)[:, None] for name, value in extra.items()}
        log_std = policy.network.log_std.double()
        entropy = (log_std + 0.5 + 0.5 * math.log(2 * math.pi)).sum().expand(len(v), 1)
        return Likelihood(logp[:, None], found | {"entropy": entropy, "brownian": mean_square(heat, 1)[:, None]})

    def _velocity(self, policy: Any, rows: PerturbedRows, condition: Any) -> Tensor:
        return policy.velocity(put(rows.x[:, 0], policy.device), rows.t[:, 0], condition)

    def _logp(self, policy: Any, rows: PerturbedRows, v: Tensor) -> Tensor:
        """[n] float64"""
        log_std = policy.network.log_std.double()
        moved = put(rows.velocity[:, 0], v).double() - v.double()
        z = (put(rows.shift[:, 0], v).double() - moved) / log_std.exp()
        return (-0.5 * z**2 - log_std - 0.5 * math.log(2 * math.pi)).flatten(1).sum(dim=1)
