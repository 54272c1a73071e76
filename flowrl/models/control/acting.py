"""How a control policy acts with networks beside its own (`flowrl.types.Acting`)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from flowrl.models.control.condition import ControlCondition
from flowrl.types import Acting, IncompatibleError, aggregated

LOG_STD = (-20.0, 2.0)
"""Between these is the logarithm of an editor's deviation, as in RLPD's."""


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
        """Standardised chunks [n, h, d] as `Acting` says, of noise [n, ``Acting.noises``, h, d]."""
        found = self.climbed(condition, self.kept(condition, self.proposed(condition, noise)))
        if found.shape[1] == 1:
            return found[:, 0]
        best = self.liked(condition, found).argmax(dim=1)
        return found[torch.arange(len(found), device=best.device), best]

    def proposed(self, condition: ControlCondition, noise: Tensor) -> Tensor:
        """[n, c, h, d]: the chunks that `act` chooses from, before it looks at what they are worth."""
        acting = self.config.acting or Acting()
        wide, z = repeated(condition, acting.candidates), noise.to(self.device)
        own = z[:, : acting.candidates].flatten(0, 1)
        chunk = self.ask(acting.actor, wide, own) if acting.actor else self.integrate(own, wide)
        found = self._bounded(chunk).unflatten(0, (len(noise), acting.candidates))
        if not acting.edits:
            return found
        first = found[:, : acting.edits].flatten(0, 1)
        added, _ = self.edit(repeated(condition, acting.edits), first, z[:, acting.candidates :].flatten(0, 1))
        return torch.cat([found, self._bounded(first + added).unflatten(0, (len(noise), acting.edits))], dim=1)

    def edit(self, condition: ControlCondition, chunk: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """What the editor adds to chunks [n, h, d], ``e = scale tanh(m + s z)`` [n, h, d], and the logarithm of its
        density [n], ``sum log N(m + s z; m, s^2) - log(1 - tanh^2) - log scale``."""
        acting = self.config.acting or Acting()
        mean, log_std = self.ask(acting.editor, condition, chunk).unbind(dim=1)
        log_std = log_std.clamp(*LOG_STD)
        z = noise.to(mean)
        raw = mean + log_std.exp() * z
        squashed = 2 * (math.log(2) - raw - functional.softplus(-2 * raw))  # log(1 - tanh(raw)^2), without cancelling
        log = -0.5 * z**2 - log_std - 0.5 * math.log(2 * math.pi) - squashed - math.log(acting.edit_scale)
        return acting.edit_scale * raw.tanh(), log.flatten(1).sum(dim=1)

    def liked(self, condition: ControlCondition, chunks: Tensor) -> Tensor:
        """[n, c] what the critic that chooses says of chunks [n, c, h, d]."""
        acting, (n, c) = self.config.acting or Acting(), chunks.shape[:2]
        said = self.ask(acting.critic, repeated(condition, c), chunks.flatten(0, 1), fixed=True)
        return aggregated(said, acting.aggregate).unflatten(0, (n, c))

    def kept(self, condition: ControlCondition, chunks: Tensor) -> Tensor:
        """[n, m, h, d] those of proposed ones [n, c, h, d] that go on, the best last; all, as they were, where all
        do."""
        acting = self.config.acting or Acting()
        if acting.keep is None or acting.keep == chunks.shape[1]:
            return chunks
        order = self.liked(condition, chunks).argsort(dim=1, stable=True)[:, -acting.keep :]
        return chunks[torch.arange(len(chunks), device=order.device)[:, None], order]

    def climbed(self, condition: ControlCondition, chunks: Tensor) -> Tensor:
        """Chunks [n, m, h, d] after ``climb`` steps up the critic; of all on its way that of the highest value."""
        acting = self.config.acting or Acting()
        if not acting.climb:
            return chunks
        now, best = chunks.detach(), chunks
        highest = torch.full(chunks.shape[:2], -torch.inf, device=chunks.device)
        for _ in range(acting.climb):
            with torch.enable_grad():
                value = self.liked(condition, now.requires_grad_())
                (slope,) = torch.autograd.grad(value.sum(), now)
            now = now.detach()
            best, highest = higher(best, highest, now, value.detach())
            now = self._bounded(now + acting.rate * slope)
        return higher(best, highest, now, self.liked(condition, now))[0]

    def _bounded(self, chunk: Tensor) -> Tensor:
        bound = (self.config.acting or Acting()).bound
        return chunk if bound is None else chunk.clamp(-bound, bound)


def higher(best: Tensor, highest: Tensor, now: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Of two chunks at each place [n, m, h, d] the one of the higher value, and that value [n, m]."""
    return torch.where((value > highest)[:, :, None, None], now, best), torch.maximum(value, highest)


def repeated(condition: ControlCondition, count: int) -> ControlCondition:
    """Every observation so many times, one after another."""
    return condition if count == 1 else condition.take(torch.arange(len(condition)).repeat_interleave(count))
