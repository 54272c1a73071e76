"""Likelihood of the actions of a Gaussian policy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from flowrl.devices import put
from flowrl.types import Likelihood, Rollout, Rows


@dataclass(frozen=True)
class ActionRows(Rows):
    """One action chunk of every sample."""

    large: ClassVar[frozenset[str]] = frozenset({"action"})

    action: Tensor  # [N, 1, h, d]


@dataclass(frozen=True, kw_only=True)
class GaussianActions:
    """``log p(a | s)`` of a diagonal Gaussian with the policy's mean and deviation, summed over the numbers of a chunk,
    and its ``entropy``; the unclipped action carries the likelihood (CleanRL's ppo_continuous_action)."""

    family: ClassVar[str] = "control"

    @property
    def references(self) -> tuple[str, ...]:
        return ()

    @property
    def has_recorded_logp(self) -> bool:
        return False

    def decisions(self, recorded: int) -> tuple[int, int]:
        return recorded, recorded

    def probe(self, rollout: Rollout, policy: Any, seeds: Tensor) -> ActionRows:
        return ActionRows(rollout.final[:, None].float().cpu())

    def recorded_logp(self, rollout: Rollout, rows: ActionRows) -> None:
        return None

    def __call__(self, policy: Any, rows: ActionRows, condition: Any, references: Sequence[str] = ()) -> Likelihood:
        extra = {}
        action = put(rows.action[:, 0], policy.device)
        for name in references:
            with policy.using(name) as other:
                mean, log_std = self._gaussian(other, condition)
                extra[name] = self._logp(mean, log_std, action)
        mean, log_std = self._gaussian(policy, condition)
        logp = self._logp(mean, log_std, action)
        found = {f"log_ratio/{name}": (logp.detach() - value)[:, None] for name, value in extra.items()}
        entropy = (log_std + 0.5 + 0.5 * math.log(2 * math.pi)).double().sum().expand(len(action), 1)
        return Likelihood(logp[:, None], found | {"entropy": entropy})

    def _gaussian(self, policy: Any, condition: Any) -> tuple[Tensor, Tensor]:
        return policy.gaussian(condition)

    def _logp(self, mean: Tensor, log_std: Tensor, action: Tensor) -> Tensor:
        """[N] float64"""
        z = (action.double() - mean.double()) / log_std.double().exp()
        return (-0.5 * z**2 - log_std.double() - 0.5 * math.log(2 * math.pi)).flatten(1).sum(dim=1)


@dataclass(frozen=True, kw_only=True)
class ResidualActions(GaussianActions):
    """The same of what a residual adds to single actions, before its scale (`flowrl.samplers.residual`)."""

    def _gaussian(self, policy: Any, condition: Any) -> tuple[Tensor, Tensor]:
        return policy.residual_gaussian(condition)
