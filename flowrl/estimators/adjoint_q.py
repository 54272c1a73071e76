"""Adjoint matching of a flow to a critic of actions: Q-learning with adjoint matching (arXiv:2601.14234)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowrl.estimators.q_learning import Decisions, OfTransitions, critics_of
from flowrl.math.flow import interpolate
from flowrl.types import Acting, Beside


@dataclass(frozen=True, kw_only=True)
class AdjointQ(OfTransitions):
    """What two flows and critics say of a decision (s, a, s') (ColinQiyangLi/qam, 30 Jan 2026, agents/qam.py): the
    policy's own, ``fast``, which acts, and one that imitates, ``slow``:

    ``logp``: minus the matching error of the slow flow at a;
    ``adjoint``: ``sum_k |2 (u_fast - u_slow) / sigma_k + sigma_k a_k|^2`` along a path of the fast flow's memoryless
    SDE in ``steps`` steps, u from noise to action and ``sigma_k^2 = 2 (1 - t_k + dt) / (t_k + dt)``; the lean adjoint
    begins with ``-inverse_temperature grad Q`` at the path's end, kept within ``bound``, and is carried back by the
    slow flow; path, adjoint, slow flow and Q are data, the last two of the weight set ``target``;
    ``q/0``, ...: each critic of (s, a);
    ``next_value``: mean less ``pessimism`` times the deviation over the target critics of (s', chunk of the fast flow),
    0 where the episode ended by itself. No gradient.

    As released, the path's last step is one of the slow flow without noise, and the adjoint reads it at ``t_k + dt``.
    """

    steps: int = 10
    inverse_temperature: float = 0.3
    pessimism: float = 0.5
    bound: float = 3.0
    critics: int = 10
    width: int = 512
    depth: int = 4
    target: str = "target"

    def __post_init__(self) -> None:
        if self.steps < 2 or self.inverse_temperature < 0:
            raise ValueError(
                f"steps={self.steps} and inverse_temperature={self.inverse_temperature}: give 2 steps or more, and 0 "
                "or more for how far critics tilt the flow"
            )

    @property
    def noises(self) -> int:
        """Of the matching error and of the next decision; of the path's beginning and all its steps but the last."""
        return 2 + self.steps

    @property
    def beside(self) -> Mapping[str, Beside]:
        """The flow that imitates, and the critics."""
        return {"slow": Beside("flow"), "q": Beside("q", width=self.width, depth=self.depth, copies=self.critics)}

    @property
    def acting(self) -> Acting:
        return Acting(bound=self.bound)

    def measure(self, policy: Any, found: Decisions) -> dict[str, Tensor]:
        noise, next_noise = found.noise[:, 0], found.noise[:, 1]
        with torch.no_grad():
            following = policy.act(found.after, next_noise[:, None])
            path = self.path(policy, found.seen, found.noise[:, 2:])
            with policy.using(self.target) as asked:
                said = asked.ask("q", found.after, following)
                slow = [self._slow(asked, x, k / self.steps, found.seen) for k, x in enumerate(path)]
                end = path[-1] + slow[-1] / self.steps
                adjoint = self.adjoint(asked, found.seen, path, end)
        later = said.mean(dim=0) - self.pessimism * said.std(dim=0, correction=0)
        total = torch.zeros_like(later)
        for k, (x, base, lean) in enumerate(zip(path, slow, adjoint, strict=True)):
            sigma = self.sigma(k)
            fast = -policy.velocity(x, torch.full_like(found.at, 1 - k / self.steps), found.seen)
            total = total + (2 * (fast - base) / sigma + sigma * lean).square().flatten(1).sum(dim=1)
        x = interpolate(found.action, noise, found.at)
        error = policy.velocity_beside("slow", x, found.at, found.seen) - (noise - found.action)
        return {
            "logp": -error.square().flatten(1).mean(dim=1),
            "adjoint": total,
            "next_value": torch.where(found.continues, later, torch.zeros_like(later)),
            **critics_of(policy.ask("q", found.seen, found.action)),
        }

    def sigma(self, k: int) -> float:
        """The deviation of step k's noise per root of time."""
        t, dt = k / self.steps, 1 / self.steps
        return (2 * (1 - t + dt) / (t + dt)) ** 0.5

    def path(self, policy: Any, condition: Any, noise: Tensor) -> list[Tensor]:
        """The states [L, h, d] of the fast flow's SDE before each step, of noise [L, steps, h, d]."""
        states, dt = [noise[:, 0]], 1 / self.steps
        for k in range(self.steps - 1):
            x, t = states[-1], k / self.steps
            fast = -policy.velocity(x, torch.full((len(x),), 1 - t).to(x), condition)
            drift = 2 * fast - x / (t + dt)
            states.append(x + dt * drift + dt**0.5 * self.sigma(k) * noise[:, k + 1])
        return states

    def adjoint(self, policy: Any, condition: Any, path: list[Tensor], end: Tensor) -> list[Tensor]:
        """The lean adjoint [L, h, d] at every state, carried back from the critics at ``end`` by the slow flow."""
        dt = 1 / self.steps
        with torch.enable_grad():
            last = end.detach().requires_grad_()
            liked = policy.ask("q", condition, last.clamp(-self.bound, self.bound), fixed=True).mean(dim=0).sum()
            found = [-self.inverse_temperature * torch.autograd.grad(liked, last)[0]]
            for k in reversed(range(self.steps)):
                x, then = path[k].detach().requires_grad_(), (k + 1) / self.steps
                drift = 2 * self._slow(policy, x, then, condition) - x / then
                found.append(found[-1] + dt * torch.autograd.grad(drift, x, found[-1])[0])
        return found[:0:-1]

    def _slow(self, policy: Any, x: Tensor, t: float, condition: Any) -> Tensor:
        """The slow flow from noise to action, at a time from 0 to 1 on that way."""
        return -policy.velocity_beside("slow", x, torch.full((len(x),), 1 - t).to(x), condition)
