"""How a control policy acts with networks beside its own (`flowrl.types.Acting`)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flowrl.models.control.condition import ControlCondition
from flowrl.types import Acting, IncompatibleError


class ActsWithNetworks:
    """What `flowrl.models.control.policy.ControlPolicy` does with them, in training, in evaluation and deployed."""

    network: Any
    config: Any
    device: torch.device
    network_calls: int

    def integrate(self, x: Tensor, condition: ControlCondition, steps: int | None = None) -> Tensor:
        """Where the flow comes to from noise [n, h, d]."""
        raise NotImplementedError

    def ask(
        self, name: str, condition: ControlCondition, chunk: Tensor | None = None, *, fixed: bool = False
    ) -> Tensor:
        """What the network beside called ``name`` says of observations and chunks [n, ...]: chunks [n, h, d] of an
        actor, [K, n] of a critic. ``fixed`` weights get no gradient, and what is asked about does. Raises
        `IncompatibleError` where there is no such network."""
        if name not in self.network.beside:
            raise IncompatibleError(f"this policy has no network {name!r} beside its own; the estimator declares it")
        features = self.network.features(condition.need().to(self.device))
        if not self.config.beside[name].judges:
            self.network_calls += len(features)
        return self.network.beside[name](features, chunk, fixed)

    def velocity_beside(self, name: str, x: Tensor, t: Tensor, condition: ControlCondition) -> Tensor:
        """Velocity [n, h, d] of the flow beside called ``name`` at ``x`` [n, h, d] and ``t`` [n]."""
        self.network_calls += len(x)
        return self.network.beside[name](condition.need().to(self.device), x, t.to(x))

    def act(self, condition: ControlCondition, noise: Tensor) -> Tensor:
        """Standardised chunks [n, h, d] as `Acting` says, of noise [n, candidates, h, d]."""
        acting = self.config.acting or Acting()
        n, count = noise.shape[:2]
        wide = condition if count == 1 else condition.take(torch.arange(n).repeat_interleave(count))
        z = noise.to(self.device).flatten(0, 1)
        chunk = self.ask(acting.actor, wide, z) if acting.actor else self.integrate(z, wide)
        if acting.bound is not None:
            chunk = chunk.clamp(-acting.bound, acting.bound)
        if count == 1:
            return chunk
        best = self.ask(acting.critic, wide, chunk).mean(dim=0).unflatten(0, (n, count)).argmax(dim=1)
        return chunk.unflatten(0, (n, count))[torch.arange(n, device=best.device), best]
