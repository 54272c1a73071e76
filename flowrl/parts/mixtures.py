"""Learning from demonstrations beside the policy's own samples: an objective for each, and those of demonstrations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from flowrl.devices import put
from flowrl.parts.objectives import ObjectiveDefaults, sample_mean
from flowrl.parts.sample_scores import gains
from flowrl.types import DATA, Batch, Likelihood, Objective


@dataclass(frozen=True)
class Demonstrated(ObjectiveDefaults):
    """``-weight w log p`` of every decision, whatever its advantage, w a number of the live policy without gradient.

    tokens: ``even`` w = 1, maximum likelihood; ``uncertain`` p (1 - p), which leaves out what the policy says anyway
        and what it never would (CHORD's phi, arXiv:2508.11408); ``likely`` p, the gradient of p itself: the expectation
        of rewarding one sampled token for being the demonstration's (one-token rollouts, arXiv:2509.26313; DFT).
    """

    weight: float = 1.0
    tokens: Literal["even", "uncertain", "likely"] = "even"
    skips_zero_advantage: ClassVar[bool] = False
    needs_old_logp: ClassVar[bool] = False

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        p = likelihood.logp.detach().exp()
        match self.tokens:
            case "even":
                return -self.weight * likelihood.logp
            case "uncertain":
                return -self.weight * p * (1 - p) * likelihood.logp
            case "likely":
                return -self.weight * p * likelihood.logp


@dataclass(frozen=True)
class ShapedProbability(ObjectiveDefaults):
    """``-A f(p)``, ``f(p) = p / (p + gamma)``: the policy gradient of demonstrations whose own probability is taken
    as 1, shaped so that unlikely tokens have more of it. LUFFY (arXiv:2504.14945); no clip."""

    gamma: float = 0.1
    needs_old_logp: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.gamma > 0:
            raise ValueError(f"gamma={self.gamma} is where the shape has half of its value; give more than 0")

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        p = likelihood.logp.exp()
        return -batch.advantage * p / (p + self.gamma)


@dataclass(frozen=True)
class Denoised(ObjectiveDefaults):
    """The denoising error of a picture of a data set on its straight path, ``path_error`` of `Transitions`, whatever
    its advantage: DDRL's data term, by which the forward KL from the data to the policy is held (arXiv:2512.04332)."""

    skips_zero_advantage: ClassVar[bool] = False
    needs_old_logp: ClassVar[bool] = False

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        return likelihood.need("path_error")


@dataclass(frozen=True)
class BySource(ObjectiveDefaults):
    """One objective for samples of the policy, another for those of a data set (`Rollout.source`)."""

    objective: Objective
    demonstrations: Objective = Demonstrated()

    def __post_init__(self) -> None:
        compared = {part.reference for part in (self.objective, self.demonstrations)} - {""}
        if len(compared) > 1:
            raise ValueError(f"objective and demonstrations compare with {' and '.join(sorted(compared))}; take one")

    # The protocol has constants of a class here; those of a mixture depend on its parts.
    @property
    def reference(self) -> str:  # type: ignore[override]
        return self.objective.reference or self.demonstrations.reference

    @property
    def coupled(self) -> bool:  # type: ignore[override]
        return self.objective.coupled or self.demonstrations.coupled

    @property
    def skips_zero_advantage(self) -> bool:  # type: ignore[override]
        return self.objective.skips_zero_advantage and self.demonstrations.skips_zero_advantage

    @property
    def needs_old_logp(self) -> bool:  # type: ignore[override]
        return self.objective.needs_old_logp or self.demonstrations.needs_old_logp

    @property
    def clip_range(self) -> tuple[float, float] | None:
        return self.objective.clip_range

    def log_ratio(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        return self.objective.log_ratio(likelihood, batch)

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        data = recorded(batch, likelihood.logp.device)[:, None]
        if not bool(data.any()):
            return self.objective(likelihood, batch)
        if bool(data.all()):
            return self.demonstrations(likelihood, batch)
        return torch.where(data, self.demonstrations(likelihood, batch), self.objective(likelihood, batch))


@dataclass(frozen=True)
class GroupAlignment(ObjectiveDefaults):
    """``alpha`` of another objective, and ``1 - alpha`` of ``-ln sigmoid(beta (s_i - s_j))``, mean over the pairs of a
    right and a wrong sample of a group (by the sign of their advantage), s the log-ratio of a completion to the
    reference. DYPO's group alignment loss (arXiv:2604.08926)."""

    objective: Objective
    alpha: float = 0.5
    beta: float = 1.0
    reference: ClassVar[str] = "reference"
    coupled: ClassVar[bool] = True
    skips_zero_advantage: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha={self.alpha} is a share of the loss: give one from 0 to 1")

    @property
    def clip_range(self) -> tuple[float, float] | None:
        return self.objective.clip_range

    def log_ratio(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        return self.objective.log_ratio(likelihood, batch)

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        s, a = gains(likelihood, batch, 1.0), sample_mean(batch.advantage, batch.weight > 0)
        group, own = put(batch.group, s.device), ~recorded(batch, s.device)
        aligned = torch.zeros_like(s)
        for key in group.unique():
            rows = (group == key) & own
            gaps = s[rows & (a > 0), None] - s[rows & (a < 0)]
            if gaps.numel():
                aligned = torch.where(rows, aligned - logsigmoid(self.beta * gaps).mean(), aligned)
        return self.alpha * self.objective(likelihood, batch) + (1 - self.alpha) * aligned[:, None]


def recorded(batch: Batch, device: torch.device) -> Tensor:
    """[N] bool: samples of a data set."""
    if batch.source is None:
        return torch.zeros(len(batch.group), dtype=torch.bool, device=device)
    return put(batch.source == DATA, device)
