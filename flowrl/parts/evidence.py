"""Objectives on denoising errors as evidence: how likely a named weight set would have found the same sample at the
same times and noises (`Matching.compare`, or a set that the objective itself names)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from flowrl.parts.objectives import ObjectiveDefaults
from flowrl.types import Batch, Likelihood


def gain_over(likelihood: Likelihood, name: str) -> Tensor:
    """[N, D] log-ratio of the live policy to a weight set, with the live one's gradient: what was measured of the
    ratio is data."""
    return likelihood.need(f"log_ratio/{name}").detach() + likelihood.logp - likelihood.logp.detach()


class AgainstOld(ObjectiveDefaults):
    """Objectives that compare with the weight set ``old`` instead of with the policy before the first update."""

    reference: ClassVar[str] = "old"
    skips_zero_advantage: ClassVar[bool] = False
    needs_old_logp: ClassVar[bool] = False


@dataclass(frozen=True)
class EvidenceGradient(AgainstOld):
    """Policy gradients whose log-likelihood is a denoising error (Choi et al., arXiv:2602.04663), with ``d = log p -
    log p_old`` of the weight set ``old`` and ``rho = exp(d)``, both data where a form says sg.

    ``epg``: ``-sg(rho) A log p``. ``pepg``: ``-sg(rho) (A - sg(d)) log p``, the reward less its KL. ``par``: ``sg(rho)
    (A - d)^2 / 2``, a regression whose gradient is that of ``pepg`` everywhere. At the old policy all are REINFORCE.

    ratio: whether the sampler's rho weighs the decisions; without it the advantage alone does.
    most: cap of d in the exponential, so that rho stays finite.
    """

    form: Literal["epg", "pepg", "par"] = "epg"
    ratio: bool = True
    most: float = 10.0

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        d = gain_over(likelihood, self.reference)
        weight = d.detach().clamp(max=self.most).exp() if self.ratio else torch.ones_like(d)
        match self.form:
            case "epg":
                return -weight * batch.advantage * likelihood.logp
            case "pepg":
                return -weight * (batch.advantage - d.detach()) * likelihood.logp
            case "par":
                return weight * (batch.advantage - d) ** 2 / 2


@dataclass(frozen=True)
class LinearisedScore(AgainstOld):
    """``A (q - mean (v - v_old)^2)`` of the plain error q and the weight set ``old``: the error without its curvature,
    so that its gradient is ``2 A (v_old - u) dv``, whatever the live v.

    Together with ``Prediction(1, S)`` it is a regression on ``v_S + A (u - v_old)``, but for a constant: Reinforce
    Adjoint Matching (arXiv:2605.10759). Unlike the error itself, a negative advantage cannot repel without bound: the
    regression target is finite. Needs ``Matching`` with the weight ``uniform``.
    """

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        return -batch.advantage * (likelihood.logp + likelihood.need(f"prediction/{self.reference}"))
