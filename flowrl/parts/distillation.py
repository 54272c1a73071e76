"""Learning from a teacher: a frozen policy that the config names under ``teachers`` and that answers, here, to
``teacher``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from flowrl.parts.objectives import ObjectiveDefaults
from flowrl.types import Batch, IncompatibleError, Likelihood, Table

TEACHER = "teacher"
"""What the presets call it. Several teachers, one for each domain of the prompts, are one teacher with members."""


@dataclass(frozen=True)
class TeacherReward:
    """``A_t = task A + weight (r_t + gamma r_{t+1} + gamma^2 r_{t+2} + ...)`` with the reward ``r = log p_teacher - log
    p`` of each decision under the policy before the update: on-policy distillation as reinforcement learning.

    gamma: 0 rewards a token for itself: the expected gradient is that of the token-wise reverse KL at the states the
        policy visits, as practitioners have it. 1 sums what follows: that of the reverse KL of whole completions.
    normalised: divide the sum by that of its discounts, ``1 + gamma + ...`` to the end (MiniLLM).
    baseline: subtract the expected reward of each decision, ``-KL(policy || teacher)`` over the vocabulary, which
        ``estimator.divergence=1`` measures: the same expected gradient, by less noise in most cases (vOPD). Of gamma 0.
    decay: multiply by ``1 + decay (1 - sum_{i < t} |A_i| / sum_i |A_i|)``: more weight to decisions before the first
        disagreements (IW-OPD).
    task: weight of the advantage that rewards give; 0: none.
    clip: largest size of the result; ``None``: any.
    """

    gamma: float = 0.0
    weight: float = 1.0
    task: float = 0.0
    normalised: bool = False
    baseline: bool = False
    decay: float = 0.0
    clip: float | None = None
    to: str = TEACHER

    def __post_init__(self) -> None:
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"gamma={self.gamma} discounts later rewards: give 0 (none of them) to 1 (all)")
        if self.baseline and self.gamma:
            raise ValueError(
                f"baseline is the expected reward of one decision, and gamma={self.gamma} adds later ones; set gamma=0"
            )
        if self.decay < 0:
            raise ValueError(f"decay={self.decay} would weigh late decisions more; give 0 (even) or more")

    @property
    def reference(self) -> str:
        return self.to

    def __call__(self, table: Table) -> Table:
        assert table.old is not None, "an algorithm with a token advantage measures the old policy"
        mask = table.mask
        reward = torch.where(mask, -table.old.need(f"log_ratio/{self.to}").double(), 0.0)
        if self.baseline:
            kl = table.old.extra.get(f"divergence/{self.to}")
            if kl is None:
                raise IncompatibleError("baseline needs the KL over the vocabulary: set estimator.divergence=1")
            reward = reward + torch.where(mask, kl.double(), 0.0)
        gain = discounted(reward, self.gamma)
        if self.normalised:
            gain = gain / discounted(mask.double(), self.gamma).clamp(min=1e-12)
        if self.decay:
            size = gain.abs()
            before = size.cumsum(dim=1) - size
            gain = gain * (1 + self.decay * (1 - before / size.sum(dim=1, keepdim=True).clamp(min=1e-12)))
        advantage = self.weight * gain + (self.task * table.advantage.double() if self.task else 0.0)
        return replace(table, advantage=advantage if self.clip is None else advantage.clamp(-self.clip, self.clip))


def discounted(values: Tensor, gamma: float) -> Tensor:
    """[N, D] ``sum_{i >= t} gamma^(i - t) values_i``."""
    if gamma == 0:
        return values
    found, running = torch.empty_like(values), torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        running = values[:, t] + gamma * running
        found[:, t] = running
    return found


@dataclass(frozen=True)
class Distil(ObjectiveDefaults):
    """The distance to the teacher itself, ``scale`` times, at the policy's own samples, which are data to it: no
    gradient passes through what was drawn. Reads no advantage.

    of: ``divergence`` of the distributions over the vocabulary (`Tokens.divergence`), ``kl`` of the kernels of a step
        or of tokens, ``prediction`` the mean squared difference of predictions.
    """

    of: Literal["divergence", "kl", "prediction"] = "divergence"
    scale: float = 1.0
    reference: ClassVar[str] = TEACHER
    skips_zero_advantage: ClassVar[bool] = False
    needs_old_logp: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise ValueError(f"scale={self.scale} multiplies the loss; give more than 0")

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        return self.scale * likelihood.need(f"{self.of}/{self.reference}")


@dataclass(frozen=True)
class ClippedDistance(ObjectiveDefaults):
    """PPO's clip on steps whose advantage is minus their KL to the teacher: ``max(-A rho, -A clip(rho))`` with ``A =
    clamp(task advantage - kl, -bound, bound)``. Flow-OPD (arXiv:2605.08063).

    The KL is the live policy's, and its gradient is not stopped, as in the release: ``-rho grad A`` is that of the KL
    itself, and all there is to learn from, because a step's own KL does not depend on what was drawn: as a constant
    (``detach``) its expected gradient is exactly 0. The rest is noise. Where the bound holds A there is no gradient.

    task: weight of the advantage that rewards give.
    """

    low: float = 1e-4
    high: float = 1e-4
    bound: float = 5.0
    task: float = 0.0
    detach: bool = False
    reference: ClassVar[str] = TEACHER
    skips_zero_advantage: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not (0 <= self.low < 1 and self.high >= 0):
            raise ValueError(f"low={self.low}, high={self.high} bound the ratio: give 0 to 1, and 0 or more")
        if not self.bound > 0:
            raise ValueError(f"bound={self.bound} clamps the advantage; give more than 0")

    @property
    def clip_range(self) -> tuple[float, float]:
        return self.low, self.high

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        kl = likelihood.need(f"kl/{self.reference}")
        advantage = (self.task * batch.advantage - (kl.detach() if self.detach else kl)).clamp(-self.bound, self.bound)
        ratio = (likelihood.logp - batch.old.logp).exp()
        return torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - self.low, 1 + self.high))


@dataclass(frozen=True)
class Divergence:
    """The divergence to a weight set's or teacher's whole distribution over the vocabulary (`Tokens.divergence`) as a
    penalty."""

    weight: float = 1.0
    to: str = TEACHER

    def __post_init__(self) -> None:
        if not self.weight >= 0:
            raise ValueError(f"a divergence of weight {self.weight} would be rewarded; use 0 for none, or more")

    @property
    def name(self) -> str:
        return f"divergence/{self.to}"

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        return likelihood.need(self.name)
