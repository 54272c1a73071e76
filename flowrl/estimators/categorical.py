"""Likelihood of the actions of a policy that chooses among n."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowrl.estimators.actions import ActionLikelihood


@dataclass(frozen=True, kw_only=True)
class CategoricalActions(ActionLikelihood):
    """``log p(a | s)`` of the choices of a chunk, which are independent given the observation, and their ``entropy``:
    both sums over the chunk (CleanRL's ppo.py for a chunk of 1)."""

    def measure(self, policy: Any, condition: Any, action: Tensor) -> tuple[Tensor, Tensor]:
        odds = policy.choices(condition).double()
        return (odds * action).sum(dim=(1, 2)), torch.special.entr(odds.exp()).sum(dim=(1, 2))
