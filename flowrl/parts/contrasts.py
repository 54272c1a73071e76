"""Objectives on the denoising errors, or steps, of the samples of a group at the same place: the decisions d of all
samples of a group are compared with each other, d by d. `Matching` with ``share="group"`` gives them equal times and
noises, so that they differ by the samples alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from flowrl.math.groups import group_index
from flowrl.parts.evidence import AgainstOld, gain_over
from flowrl.parts.objectives import ObjectiveDefaults
from flowrl.parts.preferences import pairs_of
from flowrl.types import Batch, IncompatibleError, Likelihood


class AgainstReference(ObjectiveDefaults):
    """Comparisons of samples by their log-ratios to the reference."""

    reference: ClassVar[str] = "reference"
    coupled: ClassVar[bool] = True
    needs_old_logp: ClassVar[bool] = False


def _positive(**options: float) -> None:
    for name, value in options.items():
        if not value > 0:
            raise ValueError(f"{name}={value} should be above 0")


def group_mean(values: Tensor, group: Tensor, counted: Tensor) -> Tensor:
    """[N, D] mean over the counted entries [N, D] of each group and decision, with gradient; 0 where there is none."""
    index, count = group_index(group.to(values.device))
    kept = torch.where(counted, values, torch.zeros_like(values))
    sums, sizes = (values.new_zeros(count, values.shape[1]).index_add(0, index, x.to(values)) for x in (kept, counted))
    return (sums / sizes.clamp(min=1))[index]


def at_both(loss: Tensor, i: Tensor, j: Tensor, count: int) -> Tensor:
    """[count, D] at each sample the mean of the losses [K, D] of its pairs, so that the mean over a pair's samples is
    the pair's loss; 0 for a sample without one."""
    ends = torch.cat([i, j])
    total = loss.new_zeros(count, loss.shape[1]).index_add(0, ends, torch.cat([loss, loss]))
    return total / ends.bincount(minlength=count).clamp(min=1)[:, None].to(total)


@dataclass(frozen=True)
class DecisionPair(AgainstReference):
    """``-log sigmoid(beta (l_w - l_l))`` at every decision, l the log-ratio to the reference, of a sample of positive
    and one of negative advantage in each group: on denoising errors Diffusion-DPO (arXiv:2311.12908), whose code has
    ``beta / 2`` here; on the steps of two trajectories D3PO (arXiv:2311.13231).

    clip: the ratio is cut to ``1 -+ clip`` before its logarithm is taken. Outside, the gradient is 0 in both
    directions (nothing pulls back), and ``beta log((1 + clip) / (1 - clip))`` bounds the logit: .0201 for D3PO's .1
    and .1, whose loss therefore stays between .683 and .703. ``None``: no cut.
    anchor: the second sample is taken for another good one, ``l_w + l_l``, where the policy fits the first one worse
    than the reference does (SePPO, arXiv:2410.05255, whose second sample the reference made).
    """

    beta: float = 1000.0
    clip: float | None = None
    anchor: bool = False

    def __post_init__(self) -> None:
        _positive(beta=self.beta)
        if self.clip is not None and not 0 < self.clip < 1:
            raise ValueError(f"clip={self.clip} cuts a ratio to 1 -+ clip: give one between 0 and 1, or null")

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        gain = gain_over(likelihood, self.reference)
        if self.clip is not None:
            gain = gain.clamp(math.log(1 - self.clip), math.log(1 + self.clip))
        i, j = pairs_of(batch)
        sign = torch.where(gain[i].detach() < 0, -1.0, 1.0).to(gain) if self.anchor else 1.0
        return at_both(-logsigmoid(self.beta * (gain[i] - sign * gain[j])), i, j, len(gain))


@dataclass(frozen=True)
class GroupPreference(AgainstReference):
    """``softplus(z) / beta`` at every decision, ``z = -(beta / G) sum_i A_i l_i`` over the G samples of a group, l the
    log-ratio to the reference. DGPO (arXiv:2510.08425); with two samples and advantages +-1 it is Diffusion-DPO's loss,
    over beta.

    The division is the released code's, ``mean_i sg(sigmoid(z)) A_i err_i``, which learning rates are tuned for. A is
    centred in the group here, whatever was clipped before: z then does not see a drift that all samples share (in the
    release a clip leaves a sum, and the drift moves z).

    clip: a sample whose ratio to the set ``trust`` is above 1 + clip (below 1 - clip for A < 0) has no gradient;
    ``None`` for none. Name ``trust`` in ``estimator.compare``.
    most: nor has one whose ``l^2`` is above this, where l is of the advantage's sign (TDM-R1, arXiv:2603.07700).
    """

    beta: float = 100.0
    clip: float | None = None
    trust: str = "old"
    most: float | None = None
    skips_zero_advantage: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _positive(beta=self.beta)
        _positive(**{key: value for key, value in (("clip", self.clip), ("most", self.most)) if value is not None})

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        counted = batch.weight > 0
        advantage = batch.advantage - group_mean(batch.advantage, batch.group, counted)
        gain = gain_over(likelihood, self.reference)
        if self.clip is not None:
            ratio = likelihood.need(f"log_ratio/{self.trust}").detach().exp()
            gone = torch.where(advantage > 0, ratio > 1 + self.clip, ratio < 1 - self.clip)
            gain = torch.where(gone, gain.detach(), gain)
        if self.most is not None:
            gone = (advantage * gain.detach() > 0) & (gain.detach() ** 2 > self.most)
            gain = torch.where(gone, gain.detach(), gain)
        z = -self.beta * group_mean(advantage * gain, batch.group, counted)
        return softplus(z) / self.beta


@dataclass(frozen=True)
class CentredReward(AgainstOld):
    """``(most / beta) (beta (l - mean l) - (a - mean a))^2``, ``a = clip(A, -most, most) / (2 most)``, l the log-ratio
    to the weight set ``old``: what a sample's likelihood has gained is made proportional to its reward, and what all
    samples share, a prompt's unknown normaliser, falls out. Centred reward distillation (CRD, arXiv:2603.14128).

    pool: what is centred: ``group`` the samples of a prompt, whose normaliser is one; ``batch`` all samples of the
    optimiser batch, as X-GenGroup/Flow-Factory does it, where those of other prompts are mixed in.
    """

    beta: float = 1.0
    most: float = 5.0
    pool: Literal["group", "batch"] = "group"
    coupled: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _positive(beta=self.beta, most=self.most)

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        counted = batch.weight > 0
        pool = batch.group if self.pool == "group" else torch.zeros_like(batch.group)
        wanted = batch.advantage.clamp(-self.most, self.most) / (2 * self.most)
        residual = self.beta * gain_over(likelihood, self.reference) - wanted
        return self.most / self.beta * (residual - group_mean(residual, pool, counted)) ** 2


@dataclass(frozen=True)
class LabelledUtility(AgainstReference):
    """``1 - U(s beta (l - z0))`` for samples that are good (A > 0, s = 1) or bad (A < 0, s = -1), no pairs needed;
    l the log-ratio to the reference, ``z0 = max(0, mean l)`` over the decisions of the optimiser batch, without
    gradient. Diffusion-KTO (arXiv:2404.04465).

    utility: ``kahneman`` the sigmoid; ``loss_averse`` its logarithm (the loss is ``-log sigmoid``); ``risk_seeking``
        ``-log sigmoid(-x)``.

    The mean is that of all samples of the batch, whatever the micro-batch and the number of processes: of the few
    samples of one it would be noise. It is cut at 0, so that a batch that got worse as a whole does not show.
    """

    beta: float = 1000.0
    utility: Literal["kahneman", "loss_averse", "risk_seeking"] = "kahneman"

    def __post_init__(self) -> None:
        _positive(beta=self.beta)

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        gain = gain_over(likelihood, self.reference)
        counted = (batch.weight > 0) & (batch.advantage != 0)
        zero = (torch.where(counted, gain.detach(), 0.0).sum() / counted.sum().clamp(min=1)).clamp(min=0)
        x = batch.advantage.sign() * self.beta * (gain - zero)
        match self.utility:
            case "kahneman":
                loss = (-x).sigmoid()
            case "loss_averse":
                loss = -logsigmoid(x)
            case "risk_seeking":
                loss = logsigmoid(-x)
        return torch.where(counted, loss, torch.zeros_like(loss))


@dataclass(frozen=True)
class ScorePreference(AgainstReference):
    """``mean ((e^ - e) - k (e^ - e^_to))^2`` of the noise predictions of the preferred sample of each pair, ``k = beta
    (1 - sigmoid((beta / 2) (l_w - l_l)))`` with its gradient: noise prediction on winners whose target is moved along
    what the policy has left of the reference. DSPO (Zhu et al., ICLR 2025; the SD1.5 branch of its code).

    At the reference its gradient is ``1 - beta / 2`` times that of plain training on the winners: nothing at 2, and
    with Diffusion-DPO's 5000 it unlearns them 2499-fold, so that a beta of 2 or more is refused. Needs ``Matching``
    with the weight ``noise``.
    """

    beta: float = 0.001

    def __post_init__(self) -> None:
        if not 0 < self.beta < 2:
            raise ValueError(
                f"beta={self.beta}: at the reference DSPO trains on winners (1 - beta / 2) times, so that 2 or more "
                "unlearns them; give a value between 0 and 2 (the release has .001), not Diffusion-DPO's"
            )

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        times = getattr(batch.probe, "t", None)
        if times is None:
            raise IncompatibleError("objective ScorePreference needs errors at times: use the matching estimator")
        gain = gain_over(likelihood, self.reference)
        # of the predicted noise: (1 - t)^2 times that of the velocity
        apart = (1 - times.to(gain)) ** 2 * likelihood.need(f"prediction/{self.reference}")
        i, j = pairs_of(batch)
        k = self.beta * (-self.beta / 2 * (gain[i] - gain[j])).sigmoid()
        # |a - k b|^2 with a = e^ - e, b = e^ - e^_to, and 2 a.b = |a|^2 + |b|^2 - |a - b|^2
        loss = -likelihood.logp[i] - k * (apart[i] - gain[i]) + k**2 * apart[i]
        return at_both(loss, i, j, len(gain))
