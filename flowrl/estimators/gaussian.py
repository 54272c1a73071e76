"""Likelihood of the actions of a Gaussian policy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from flowrl.estimators.actions import ActionLikelihood


@dataclass(frozen=True, kw_only=True)
class GaussianActions(ActionLikelihood):
    """``log p(a | s)`` of a diagonal Gaussian with the policy's mean and deviation, summed over the numbers of a chunk,
    and its ``entropy``; the unclipped action carries the likelihood (CleanRL's ppo_continuous_action)."""

    def measure(self, policy: Any, condition: Any, action: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = self._gaussian(policy, condition)
        z = (action.double() - mean.double()) / log_std.double().exp()
        logp = (-0.5 * z**2 - log_std.double() - 0.5 * math.log(2 * math.pi)).flatten(1).sum(dim=1)
        entropy = (log_std + 0.5 + 0.5 * math.log(2 * math.pi)).double().sum()
        return logp, entropy.expand(len(action))

    def _gaussian(self, policy: Any, condition: Any) -> tuple[Tensor, Tensor]:
        return policy.gaussian(condition)


@dataclass(frozen=True, kw_only=True)
class ResidualActions(GaussianActions):
    """The same of what a residual adds to single actions, before its scale (`flowrl.samplers.residual`)."""

    def _gaussian(self, policy: Any, condition: Any) -> tuple[Tensor, Tensor]:
        return policy.residual_gaussian(condition)
