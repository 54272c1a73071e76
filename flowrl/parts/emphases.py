"""How much each decision matters: factors [N, D] on the loss, known before any forward."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flowrl.types import Rows, StepRows


@dataclass(frozen=True)
class Uniform:
    """Factor 1."""

    def __call__(self, rows: Rows, shape: tuple[int, int]) -> Tensor:
        return torch.ones(shape, dtype=torch.float64)


@dataclass(frozen=True)
class InverseStep:
    """``1 / |t' - t|``: balances the gradient over denoising steps. GRPO-Guard (arXiv:2510.22319).

    ``normalise`` divides by the sample's mean factor, so that the learning rate keeps its meaning on other grids
    (the paper's
    code does not).
    """

    normalise: bool = False

    def __call__(self, rows: Rows, shape: tuple[int, int]) -> Tensor:
        if not isinstance(rows, StepRows):
            raise ValueError("emphasis InverseStep needs recorded steps: use it with the transitions estimator")
        factor = 1 / (rows.t - rows.t_next).double()
        return factor / factor.mean(dim=1, keepdim=True) if self.normalise else factor
