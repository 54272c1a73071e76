"""Penalties on how far an update moves from the policy that sampled, in place of a clip."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flowrl.parts.evidence import gain_over
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
class SquaredLogRatio(ComparedWithOld):
    """``(sum of d)^2 / 2`` of whole samples, ``d = log p - log p_old``: the consistency term of online policy mirror
    descent (Kimi k1.5, arXiv:2501.12599, equation 3)."""

    weight: float = 0.1
    to: str = ""
    coupled: ClassVar[bool] = True

    def __post_init__(self) -> None:
        not_negative(self.weight)

    @property
    def name(self) -> str:
        return "log_ratio/squared"

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        d = torch.where(batch.weight > 0, likelihood.logp - batch.old.logp, torch.zeros_like(likelihood.logp))
        whole = d.sum(dim=1, keepdim=True) ** 2 / 2
        # its decisions share it, so that they sum to it
        count = (batch.weight > 0).sum(dim=1, keepdim=True).clamp(min=1)
        return (whole / count).expand_as(d)


@dataclass(frozen=True)
class WeightedKL(ComparedWithOld):
    """``rho (exp(q) - 1 - q)`` with ``q = log p_set - log p``: the estimate k3 weighted by the ratio to the policy that
    sampled, whose mean over its samples is ``KL(policy, set)``, and so is its gradient, also after updates; k3 alone
    has the gradient of neither direction there. DeepSeek-V3.2 (arXiv:2512.02556) section 3.1, TRL's
    ``use_bias_correction_kl``."""

    weight: float = 1e-3
    to: str = "reference"

    def __post_init__(self) -> None:
        not_negative(self.weight)

    @property
    def name(self) -> str:
        return f"kl/{self.to}"

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        live = likelihood.logp
        q = (live.detach() - live - likelihood.need(f"log_ratio/{self.to}")).clamp(max=MOST)
        return (live - batch.old.logp).clamp(max=MOST).exp() * (q.exp() - 1 - q)


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


@dataclass(frozen=True)
class SquaredGain:
    """``l^2`` at every decision, l the log-ratio to a weight set as the estimator measures it (`Matching`): holds
    errors of denoising to those of the reference, whichever way they moved. TDM-R1 (arXiv:2603.07700)."""

    weight: float = 0.001
    to: str = "reference"

    def __post_init__(self) -> None:
        not_negative(self.weight)

    @property
    def name(self) -> str:
        return f"gain/{self.to}"

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        return gain_over(likelihood, self.to) ** 2
