"""Penalties on how far an update moves from the policy that sampled, in place of a clip."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flowrl.parts.regularizers import ComparedWithOld, not_negative
from flowrl.types import Batch, IncompatibleError, Likelihood

MOST = 20.0
"""Of a log-ratio before it is exponentiated."""


@dataclass(frozen=True)
class RatioVariance(ComparedWithOld):
    """``(rho - 1)^2`` to the policy that sampled: the variance of the ratio, instead of a clip. R2VPO
    (arXiv:2601.03320)."""

    weight: float = 0.04
    to: str = ""

    def __post_init__(self) -> None:
        not_negative(self.weight)

    @property
    def name(self) -> str:
        return "ratio/variance"

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        return ((likelihood.logp - batch.old.logp).clamp(max=MOST).exp() - 1) ** 2


@dataclass(frozen=True)
class ReverseKLToOld(ComparedWithOld):
    """``rho log rho - rho + 1``, whose mean over samples of the old policy is ``KL(policy, old)``, also after updates.
    The proximal term of mirror descent policy optimisation (arXiv:2005.09814)."""

    weight: float = 1.0
    to: str = ""

    def __post_init__(self) -> None:
        not_negative(self.weight)

    @property
    def name(self) -> str:
        return "kl/old"

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        d = (likelihood.logp - batch.old.logp).clamp(max=MOST)
        return d.exp() * (d - 1) + 1


@dataclass(frozen=True)
class LikelihoodDrop(ComparedWithOld):
    """``max(0, log p_old - log p)`` of the decisions of samples that are not bad (``A >= 0``) and that have become less
    likely as a whole: what was good should not be forgotten by the way. LLDS (arXiv:2512.04220). Reads whole samples,
    so a network row has to answer all decisions of one."""

    weight: float = 0.2
    to: str = ""

    def __post_init__(self) -> None:
        not_negative(self.weight)

    @property
    def name(self) -> str:
        return "likelihood_drop"

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        if batch.probe.unit != likelihood.logp.shape[1]:
            raise IncompatibleError("regularizer LikelihoodDrop reads whole samples: use it with the tokens estimator")
        drop = torch.where(batch.weight > 0, batch.old.logp - likelihood.logp, torch.zeros_like(likelihood.logp))
        gate = (drop.detach().sum(dim=1, keepdim=True) > 0) & (batch.advantage >= 0)
        return torch.where(gate, drop.clamp(min=0), torch.zeros_like(drop))
