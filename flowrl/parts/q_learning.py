"""Losses of off-policy methods, of what critics say of decisions (`flowrl.estimators.q_learning`). The advantage of a
decision is its reward here (`flowrl.parts.episodes.DecisionRewards`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flowrl.parts.objectives import ObjectiveDefaults, sample_mean
from flowrl.types import Batch, IncompatibleError, Likelihood

Q = "q/"


class OffPolicyDefaults(ObjectiveDefaults):
    """What the trainer must know of an objective that learns from decisions whoever made them: no ratio is taken, and a
    decision that paid nothing teaches as well."""

    skips_zero_advantage: ClassVar[bool] = False
    needs_old_logp: ClassVar[bool] = False
    off_policy: ClassVar[bool] = True


def critics(likelihood: Likelihood) -> Tensor:
    """[K, N, D] what each critic says of the decisions. Raises `IncompatibleError` where there is none."""
    found = [value for name, value in likelihood.extra.items() if name.startswith(Q)]
    if not found:
        raise IncompatibleError(
            "this objective needs critics of actions, which the estimator does not ask; take one of "
            "flowrl.estimators.q_learning"
        )
    return torch.stack(found)


def target_of(likelihood: Likelihood, batch: Batch, gamma: float) -> Tensor:
    """[N, D] ``r + gamma V'(s')`` without gradient; the estimator says 0 of V' where an episode ended by itself."""
    return (batch.advantage + gamma * likelihood.need("next_value")).detach()


def temporal_difference(likelihood: Likelihood, batch: Batch, gamma: float) -> Tensor:
    """[N, D] ``mean over critics of (Q(s, a) - r - gamma V'(s'))^2``."""
    return (critics(likelihood) - target_of(likelihood, batch, gamma)).square().mean(dim=0)


def told(likelihood: Likelihood, batch: Batch, gamma: float, *names: str) -> dict[str, Tensor]:
    """For the log, means [N] over a sample's decisions: what critics say, their error, and numbers by ``names``."""
    counts = batch.weight > 0
    found = {"q/mean": critics(likelihood).mean(dim=0), "q/error": temporal_difference(likelihood, batch, gamma)}
    found |= {f"q/{name}": likelihood.need(name) for name in names}
    there = counts.any(dim=1)
    return {key: torch.where(there, sample_mean(value.detach(), counts), torch.nan) for key, value in found.items()}


def check_discount(gamma: float) -> None:
    """Raise `ValueError` for a discount outside 0 to 1."""
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma={gamma} discounts what comes later: give one from 0 to 1")


@dataclass(frozen=True)
class FlowQLearning(OffPolicyDefaults):
    """``L_flow + alpha L_distill - Q(s, mu(s, z)) + mean (Q(s, a) - r - gamma Q'(s', mu(s', z')))^2`` of what
    `OneStepQ` measures; each term trains its own network alone. FQL (arXiv:2502.02538; seohongpark/fql, 11 Mar 2025).

    gamma: per decision, so of a whole chunk.
    """

    alpha: float = 10.0
    gamma: float = 0.99

    def __post_init__(self) -> None:
        check_discount(self.gamma)
        if self.alpha < 0:
            raise ValueError(f"alpha={self.alpha} holds the actor to the flow; give 0 or more")

    def measures(self, likelihood: Likelihood, batch: Batch) -> Mapping[str, Tensor]:
        return told(likelihood, batch, self.gamma, "distillation", "q_own")

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        actor = self.alpha * likelihood.need("distillation") - self._gain(likelihood.need("q_own"), batch)
        return actor - likelihood.logp + temporal_difference(likelihood, batch, self.gamma)

    def _gain(self, own: Tensor, batch: Batch) -> Tensor:
        return own


@dataclass(frozen=True)
class NormalizedFlowQLearning(FlowQLearning):
    """`FlowQLearning` whose Q term is divided by the mean of ``|Q(s, mu)|`` over the optimiser batch, the release's
    ``normalize_q_loss``."""

    coupled: ClassVar[bool] = True

    def _gain(self, own: Tensor, batch: Batch) -> Tensor:
        share = batch.weight / batch.weight.sum()
        return own / (share * own.abs()).sum().detach()


@dataclass(frozen=True)
class AdjointQLearning(OffPolicyDefaults):
    """``L_flow + L_adjoint + mean (Q(s, a) - r - gamma V'(s'))^2`` of what `flowrl.estimators.adjoint_q.AdjointQ`
    measures; each term trains its own network alone. QAM (arXiv:2601.14234; ColinQiyangLi/qam, 30 Jan 2026).

    gamma: per decision, so of a whole chunk.
    """

    gamma: float = 0.99

    def __post_init__(self) -> None:
        check_discount(self.gamma)

    def measures(self, likelihood: Likelihood, batch: Batch) -> Mapping[str, Tensor]:
        return told(likelihood, batch, self.gamma, "adjoint")

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        imitates = likelihood.need("adjoint") - likelihood.logp
        return imitates + temporal_difference(likelihood, batch, self.gamma)
