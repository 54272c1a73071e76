"""The loss of Decoupled Q-chunking, of what `flowrl.estimators.decoupled_q` measures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from flowrl.parts.objectives import sample_mean
from flowrl.parts.q_learning import OffPolicyDefaults, check_discount, critics
from flowrl.types import Batch, Likelihood

Regression = Literal["expectile", "quantile"]
EDGE = 1e-5
"""Values are kept so far from 0 and 1 where their logit is taken."""


@dataclass(frozen=True)
class DecoupledQLearning(OffPolicyDefaults):
    """``L_flow + L_chunk + L_partial + L_value`` (ColinQiyangLi/dqc, 9 Jan 2026; arXiv:2512.10926). Of values in 0 to
    1, whose logits the critics learn:

    ``L_chunk``: binary cross-entropy of each chunk critic to ``R + gamma^steps V(s')``, kept in 0 to 1;
    ``L_partial``: of each partial critic to what the chunk critic of its number says, weighted ``distill`` where that
    is at least the partial critic's own value and ``1 - distill`` elsewhere: above .5, the better ones of the chunks
    that begin with the action count more;
    ``L_value``: of V to the target partial critics at the data's action, weighted by ``backup`` in the same way, which
    stands for a maximum over actions.

    by: the loss of the last two: ``expectile`` the cross-entropy, ``quantile`` the distance of the logits.
    """

    distill: float = 0.5
    backup: float = 0.9
    gamma: float = 0.999
    distill_by: Regression = "expectile"
    backup_by: Regression = "quantile"

    def __post_init__(self) -> None:
        check_discount(self.gamma)
        for name in ("distill", "backup"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} weighs what is above; give a number between 0 and 1")

    def target(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        """[N, D] of the chunk critics."""
        discount = self.gamma ** likelihood.need("steps")
        return (batch.advantage + discount * likelihood.need("next_value")).clamp(0, 1).detach()

    def measures(self, likelihood: Likelihood, batch: Batch) -> Mapping[str, Tensor]:
        counts = batch.weight > 0
        values = {"chunk": critics(likelihood).mean(dim=0).sigmoid(), "value": likelihood.need("value").sigmoid()}
        values |= {"partial": likelihood.need("liked"), "target": self.target(likelihood, batch)}
        there = counts.any(dim=1)
        return {
            f"q/{name}": torch.where(there, sample_mean(value.detach(), counts), torch.nan)
            for name, value in values.items()
        }

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        target = self.target(likelihood, batch)
        chunk = torch.stack([cross_entropy(logit, target) for logit in critics(likelihood)]).mean(dim=0)
        partial = [
            asymmetric(logit, likelihood.need(f"taught/{name.removeprefix('partial/')}"), self.distill, self.distill_by)
            for name, logit in likelihood.extra.items()
            if name.startswith("partial/")
        ]
        value = asymmetric(likelihood.need("value"), likelihood.need("liked"), self.backup, self.backup_by)
        return chunk + torch.stack(partial).mean(dim=0) + value - likelihood.logp


def cross_entropy(logit: Tensor, target: Tensor) -> Tensor:
    """Of a value in 0 to 1."""
    return functional.softplus(logit) - target * logit


def asymmetric(logit: Tensor, target: Tensor, above: float, by: Regression) -> Tensor:
    """A regression on values in 0 to 1 that counts ``above`` where the target is at least the value and ``1 - above``
    where it is below: at its minimum over many targets the value is their expectile or quantile."""
    target = target.detach()
    weight = torch.where(target >= logit.detach().sigmoid(), above, 1 - above)
    if by == "expectile":
        return weight * cross_entropy(logit, target)
    return weight * (logit - target.clamp(EDGE, 1 - EDGE).logit()).abs()
