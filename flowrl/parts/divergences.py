"""Divergences to a target distribution as rewards of whole samples: spread before the first update."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from flowrl.math.groups import group_count, group_log_mean_exp, group_sum
from flowrl.types import IncompatibleError, Table

Divergence = Literal["reverse_kl", "forward_kl", "total_variation", "jensen_shannon"]


@dataclass(frozen=True)
class FDivergence:
    """``-f'(t)`` less its mean over the group's other samples, ``t = p / target``, as the advantage of a whole sample:
    with `ScoreFunction` the gradient of ``D_f(p, target)``. f-DPG (arXiv:2302.08215), for the target ``reference
    exp(A / temperature) / Z`` of a reward A.

    f' is ``ln t + 1`` (``reverse_kl``, KL(p || target)), ``-1 / t`` (``forward_kl``), ``sign(t - 1) / 2``
    (``total_variation``) or ``ln(2 t / (t + 1))`` (``jensen_shannon``, twice the divergence). Z is the group's mean of
    ``reference exp(A / temperature) / p``, an estimate whose logarithm is low for few samples; it does not matter to
    the reverse KL. ``most`` caps the pseudo-reward of the forward KL, which grows like 1 / t.
    """

    kind: Divergence = "jensen_shannon"
    temperature: float = 0.1
    most: float = 100.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature={self.temperature} divides the reward of the target; give more than 0")

    @property
    def reference(self) -> str:
        return "reference"

    def __call__(self, table: Table) -> Table:
        if table.old is None or table.advantage.dim() != 2:
            raise IncompatibleError("token_advantage FDivergence takes one reward per sample")
        each = torch.where(table.mask, table.old.need("log_ratio/reference").double(), 0.0)
        count = table.mask.sum(dim=1).clamp(min=1)
        ratio = each.sum(dim=1) / (count if table.rows.of_whole else 1)
        reward = torch.where(table.mask, table.advantage.double(), 0.0).sum(dim=1) / count
        group, there = table.group, table.mask.any(dim=1)
        log_weight = reward / self.temperature - ratio
        log_z = group_log_mean_exp(log_weight, group, there)
        pseudo = self._pseudo_reward(torch.where(there, log_z - log_weight, 0.0))
        others = (group_count(group, there) - 1).clamp(min=1)
        baseline = (group_sum(pseudo, group, there) - pseudo) / others
        return replace(table, advantage=torch.where(table.mask, (pseudo - baseline)[:, None], 0.0))

    def _pseudo_reward(self, log_t: Tensor) -> Tensor:
        match self.kind:
            case "reverse_kl":
                return -log_t - 1
            case "forward_kl":
                return (-log_t).exp().clamp(max=self.most)
            case "total_variation":
                return -log_t.sign() / 2
            case "jensen_shannon":
                return torch.nn.functional.softplus(log_t) - log_t - torch.tensor(2.0).double().log()
