"""What an update holds on to: penalties per decision [N, D], measured by the estimator against a named weight set."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from flowrl.types import Batch, Likelihood


@dataclass(frozen=True)
class KL:
    """KL divergence of the policy's kernels to those of a weight set (Flow-GRPO's ``beta`` term)."""

    weight: float = 0.04
    to: str = "reference"

    @property
    def name(self) -> str:
        return f"kl/{self.to}"

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        return likelihood.need(self.name)


@dataclass(frozen=True)
class Prediction:
    """Mean squared difference of the predictions, ``mean (v - v_set)^2`` (AWM, DiffusionNFT)."""

    weight: float = 1e-4
    to: str = "reference"

    @property
    def name(self) -> str:
        return f"prediction/{self.to}"

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        return likelihood.need(self.name)
