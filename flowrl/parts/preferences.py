"""Objectives on pairs and labels: DPO and its relatives, on the likelihood of whole samples, whatever estimates it.

A pair is the sample of positive and the one of negative advantage in a group. Its loss stands at the preferred one,
twice, so that a mean over the samples of pairs is the mean over pairs. All of them see the whole optimiser batch, so
results do not depend on which samples share a micro-batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from flowrl.devices import put
from flowrl.parts.objectives import ObjectiveDefaults, sample_mean
from flowrl.parts.sample_scores import of_samples
from flowrl.types import Batch, IncompatibleError, Likelihood, ViewRows

PairLoss = Literal[
    "sigmoid",
    "hinge",
    "ipo",
    "robust",
    "exo_pair",
    "nca_pair",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
]
SMOOTHED = ("sigmoid", "robust", "exo_pair", "aot", "aot_unpaired")
"""Losses that read ``label_smoothing``."""
TEMPERATURE = 0.05
"""Of DiscoPOP's gate."""


def pairs_of(batch: Batch) -> tuple[Tensor, Tensor]:
    """[P] rows of the preferred and of the other sample of every pair: all of positive with all of negative advantage
    in a group."""
    advantage = batch.advantage[:, 0]
    group = put(batch.group, advantage.device)
    found = ((group[:, None] == group) & (advantage[:, None] > 0) & (advantage < 0)).nonzero()
    return found[:, 0], found[:, 1]


def _of_samples(values: Tensor, batch: Batch) -> Tensor:
    """[N] as `of_samples`; refuses cells, which are terms of several bounds."""
    if isinstance(batch.probe, ViewRows) and batch.probe.per == "cell":
        raise IncompatibleError("this objective compares whole samples: set estimator.per=view on MaskedViews")
    return of_samples(values, batch)


def _placed(loss: Tensor, winners: Tensor, like: Tensor) -> Tensor:
    """[N, D] the losses [P] of pairs at their preferred samples."""
    rows = torch.zeros(len(like), dtype=loss.dtype, device=loss.device).index_add(0, winners, 2 * loss)
    return rows[:, None].expand_as(like)


def _exo(w: Tensor, x: Tensor, beta: float, smoothing: float) -> Tensor:
    z = beta * (w - x)
    up = z.sigmoid() * (logsigmoid(z) - math.log1p(-smoothing))
    return up + (-z).sigmoid() * (logsigmoid(-z) - math.log(smoothing))


def _robust(w: Tensor, x: Tensor, beta: float, smoothing: float) -> Tensor:
    z = beta * (w - x)
    return (-(1 - smoothing) * logsigmoid(z) + smoothing * logsigmoid(-z)) / (1 - 2 * smoothing)


def _nca(w: Tensor, x: Tensor, beta: float, smoothing: float) -> Tensor:
    return -logsigmoid(beta * w) - 0.5 * logsigmoid(-beta * w) - 0.5 * logsigmoid(-beta * x)


def _discopop(w: Tensor, x: Tensor, beta: float, smoothing: float) -> Tensor:
    z = beta * (w - x)
    gate = (z / TEMPERATURE).sigmoid()
    return -(1 - gate) * logsigmoid(z) + gate * (-z).exp()


LOSSES: dict[PairLoss, Callable[[Tensor, Tensor, float, float], Tensor]] = {
    "sigmoid": lambda w, x, beta, smoothing: _smoothed(beta * (w - x), smoothing),
    "hinge": lambda w, x, beta, smoothing: (1 - beta * (w - x)).clamp(min=0),
    "ipo": lambda w, x, beta, smoothing: (w - x - 1 / (2 * beta)) ** 2,
    "robust": _robust,
    "exo_pair": _exo,
    "nca_pair": _nca,
    "bco_pair": lambda w, x, beta, smoothing: -logsigmoid(beta * w) - logsigmoid(-beta * x),
    "sppo_hard": lambda w, x, beta, smoothing: (w - 0.5 / beta) ** 2 + (x + 0.5 / beta) ** 2,
    "aot_unpaired": lambda w, x, beta, smoothing: _smoothed(beta * (w.sort().values - x.sort().values), smoothing),
    "apo_zero": lambda w, x, beta, smoothing: (-beta * w).sigmoid() + (beta * x).sigmoid(),
    "apo_down": lambda w, x, beta, smoothing: (beta * w).sigmoid() + (-beta * (w - x)).sigmoid(),
    "discopop": _discopop,
}
"""Losses [P] of pairs with the scores w and x [P] of the preferred and of the other sample, beta and label smoothing.
``aot`` is not among them: it compares log-likelihoods of the policy with those of the reference."""


def _smoothed(z: Tensor, smoothing: float) -> Tensor:
    loss = -logsigmoid(z)
    return loss if not smoothing else (1 - smoothing) * loss - smoothing * logsigmoid(-z)


def _negative_log_likelihood(live: Tensor, length: Tensor, over: Literal["pair", "batch"]) -> Tensor:
    """[P] of the preferred samples per token: each by its own length, or all by that of all of them."""
    if over == "pair":
        return -live / length
    return -live * (len(live) / length.sum())


def _shared_part(batch: Batch, tail: float) -> Tensor:
    """[N, D] 1 at the tokens of a sample up to the length of the shorter one of its pair, ``tail`` beyond."""
    winners, losers = pairs_of(batch)
    counted = batch.weight > 0
    length = counted.sum(dim=1)
    if batch.probe.of_whole or isinstance(batch.probe, ViewRows):
        raise IncompatibleError("objective.tail cuts completions by their tokens: take a causal model, or set it to 1")
    if len(winners.unique()) < len(winners) or len(losers.unique()) < len(losers):
        raise IncompatibleError("objective.tail needs one pair in a group: set it to 1, or take an advantage of pairs")
    shared = length.clone()
    shared[winners] = shared[losers] = torch.minimum(length[winners], length[losers])
    return torch.where(counted.cumsum(dim=1) <= shared[:, None], 1.0, tail).to(batch.weight)


def _own_likelihood(likelihood: Likelihood, batch: Batch) -> Tensor:
    """[N] mean over tokens of ``log p - log sum_v p_v^2``, without gradient: 0 on average of the policy's own draws of
    even distributions."""
    if batch.probe.of_whole or isinstance(batch.probe, ViewRows):
        raise IncompatibleError("objective.weighting reads the probability of every token, which views do not tell")
    return sample_mean((likelihood.logp + likelihood.need("collision")).detach(), batch.weight > 0)


def _measured(winners: Tensor, losers: Tensor, score: Tensor, live: Tensor, beta: float) -> dict[str, Tensor]:
    """How pairs are told apart, at their preferred samples: whether rightly, by how much, and how likely the policy
    finds the preferred one, which may fall while the margin grows."""
    margin = beta * (score[winners] - score[losers])
    found = {"accuracy": (margin > 0).to(live), "margin": margin, "chosen_logp": live[winners]}
    nothing = torch.full_like(live, torch.nan)
    return {f"preference/{name}": nothing.index_put((winners,), value) for name, value in found.items()}


@dataclass(frozen=True)
class Preference(ObjectiveDefaults):
    """A loss of the scores ``s = log p - log p_ref`` of the two samples of a pair: by default DPO's (arXiv:2305.18290),
    ``-log sigmoid(beta (s_w - s_l))``. Of tokens log p is the sum, of views and of (time, noise) draws the mean.

    loss: ``sigmoid``; ``hinge`` max(0, 1 - beta d), SLiC (arXiv:2305.10425); ``ipo`` (d - 1 / (2 beta))^2
        (arXiv:2310.12036); ``robust`` unbiased under labels flipped with probability ``label_smoothing``
        (arXiv:2403.00409); ``exo_pair`` (arXiv:2402.00856); ``nca_pair`` (arXiv:2402.05369); ``bco_pair`` (of
        arXiv:2404.04656, without its running shift); ``sppo_hard`` (arXiv:2405.00675); ``aot``, ``aot_unpaired``
        compare sorted margins or scores of the whole optimiser batch (arXiv:2406.05882); ``apo_zero``, ``apo_down``
        (arXiv:2408.06266); ``discopop`` (arXiv:2406.08414).
    label_smoothing: of ``sigmoid`` (conservative DPO), ``robust``, ``exo_pair``, ``aot`` and ``aot_unpaired``.
    per_token: divide the scores by the completions' lengths, as TRL does for ``ipo`` (the paper does not).
    link: replaces s by f'(p / p_ref) of another divergence (f-DPO, arXiv:2309.16240): ``forward_kl`` 1 - exp(-s),
        ``js`` log 2 + log sigmoid(s), ``alpha`` (exp((alpha - 1) s) - 1) / (alpha - 1).
    sft: weight of the preferred samples' negative log-likelihood per token (RPO); ``sft_over``: mean over pairs, or
        over all tokens of the optimiser batch (TRL).
    tail: weight of the tokens beyond the length of the shorter sample of the pair, in the log-likelihoods of policy and
        reference (LD-DPO, arXiv:2409.06411): 1 all of it, 0 none.
    weighting: multiply a pair's loss by ``exp(a_w + a_l)``, without gradient, how likely the policy itself would make
        the pair (WPO, arXiv:2406.11827): a is a sample's mean over tokens of ``log p - log sum_v p_v^2``. ``capped`` at
        1, as the authors' code (wzhouad/WPO, 9 Aug 2024); ``free``, as TRL. Needs ``estimator.collision``.
    """

    loss: PairLoss = "sigmoid"
    beta: float = 0.1
    label_smoothing: float = 0.0
    per_token: bool = False
    link: Literal["log", "forward_kl", "js", "alpha"] = "log"
    alpha: float = 0.5
    sft: float = 0.0
    sft_over: Literal["pair", "batch"] = "pair"
    tail: float = 1.0
    weighting: Literal["off", "capped", "free"] = "off"
    reference: ClassVar[str] = "reference"
    coupled: ClassVar[bool] = True
    needs_old_logp: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_beta(self.beta)
        _check_smoothing(self.label_smoothing, self.loss in SMOOTHED, self.loss)
        if not 0 <= self.tail <= 1:
            raise ValueError(f"tail={self.tail} is a share of the longer sample's further tokens: give 0 to 1 (all)")
        if self.weighting != "off" and self.loss in ("aot", "aot_unpaired"):
            raise ValueError(f"weighting={self.weighting} is of pairs, and loss={self.loss} sorts them; set it to off")
        if self.tail < 1 and self.loss == "aot":
            raise ValueError(f"tail={self.tail} cuts scores of pairs, and loss=aot reads likelihoods; set it to 1")
        if self.loss == "exo_pair" and not self.label_smoothing:
            raise ValueError("label_smoothing=0 makes exo_pair infinite; give a small one, such as 1e-3")
        if self.link == "alpha" and self.alpha == 1:
            raise ValueError("alpha=1 divides by 0: its limit is link=log")
        if self.sft < 0:
            raise ValueError(f"sft={self.sft} would push preferred samples away; give 0 or more")
        if self.loss == "aot" and self.link != "log":
            raise ValueError(f"link={self.link} replaces scores, and aot compares log-ratios; use link=log")

    def measures(self, likelihood: Likelihood, batch: Batch) -> Mapping[str, Tensor]:
        live, score, _ = self._scored(likelihood, batch)
        return _measured(*pairs_of(batch), score, live, self.beta)

    def _scored(self, likelihood: Likelihood, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """[N] each: log-likelihoods, scores and lengths."""
        live = _of_samples(likelihood.logp, batch)
        length = put(batch.probe.lengths, live.device).to(live)
        logp, ratio = likelihood.logp, likelihood.need(f"log_ratio/{self.reference}")
        if self.tail < 1:
            kept = _shared_part(batch, self.tail)
            logp, ratio = kept * logp, kept * ratio
        counted = _of_samples(logp, batch)
        # the ratio's value is data; its gradient is the live likelihood's
        score = _of_samples(ratio, batch) + counted - counted.detach()
        return live, score / length if self.per_token else score, length

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        live, score, length = self._scored(likelihood, batch)
        winners, losers = pairs_of(batch)
        if self.loss == "aot":
            part = live / length if self.per_token else live
            loss = self._sorted_margins(part, (part - score).detach(), winners, losers)
        else:
            score = self._linked(score)
            loss = LOSSES[self.loss](score[winners], score[losers], self.beta, self.label_smoothing)
        if self.weighting != "off":
            own = _own_likelihood(likelihood, batch)
            weight = (own[winners] + own[losers]).exp()
            loss = loss * (weight.clamp(max=1) if self.weighting == "capped" else weight)
        if self.sft:
            loss = loss + self.sft * _negative_log_likelihood(live[winners], length[winners], self.sft_over)
        return _placed(loss, winners, likelihood.logp)

    def _sorted_margins(self, live: Tensor, reference: Tensor, winners: Tensor, losers: Tensor) -> Tensor:
        ours, theirs = live[winners] - live[losers], reference[winners] - reference[losers]
        return _smoothed(self.beta * (ours.sort().values - theirs.sort().values), self.label_smoothing)

    def _linked(self, score: Tensor) -> Tensor:
        match self.link:
            case "log":
                return score
            case "forward_kl":
                return 1 - (-score).exp()
            case "js":
                return math.log(2) + logsigmoid(score)
            case "alpha":
                return ((self.alpha - 1) * score).expm1() / (self.alpha - 1)


@dataclass(frozen=True)
class ReferenceFree(ObjectiveDefaults):
    """``weight (-log sigmoid(beta (s_w - s_l) - margin)) + sft NLL`` with scores of the policy alone: CPO, SimPO, ORPO.

    score: ``sum`` log p (CPO, arXiv:2401.08417), ``mean`` log p per token (SimPO, arXiv:2405.14734), ``odds``
        log(q / (1 - q)) with q = exp(mean log p) (ORPO, arXiv:2403.07691), ``power`` (1 - q^-alpha) / alpha (AlphaPO,
        arXiv:2501.03884).
    sft: weight of the preferred samples' negative log-likelihood per token; ``sft_over`` as in `Preference`.
    """

    score: Literal["sum", "mean", "odds", "power"] = "mean"
    beta: float = 2.0
    margin: float = 0.0
    weight: float = 1.0
    sft: float = 0.0
    sft_over: Literal["pair", "batch"] = "pair"
    label_smoothing: float = 0.0
    alpha: float = 0.25
    coupled: ClassVar[bool] = True
    needs_old_logp: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_beta(self.beta)
        _check_smoothing(self.label_smoothing, True, "a logistic loss")
        if self.score == "power" and self.alpha == 0:
            raise ValueError("alpha=0 divides by 0: its limit is score=mean")

    def measures(self, likelihood: Likelihood, batch: Batch) -> Mapping[str, Tensor]:
        live = _of_samples(likelihood.logp, batch).double()
        score = self._scored(live, live / put(batch.probe.lengths, live.device).to(live))
        return _measured(*pairs_of(batch), score, live, self.beta)

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        live = _of_samples(likelihood.logp, batch).double()
        length = put(batch.probe.lengths, live.device).to(live)
        score = self._scored(live, live / length)
        winners, losers = pairs_of(batch)
        z = self.beta * (score[winners] - score[losers]) - self.margin
        loss = self.weight * _smoothed(z, self.label_smoothing)
        if self.sft:
            loss = loss + self.sft * _negative_log_likelihood(live[winners], length[winners], self.sft_over)
        return _placed(loss, winners, likelihood.logp)

    def _scored(self, live: Tensor, mean: Tensor) -> Tensor:
        match self.score:
            case "sum":
                return live
            case "mean":
                return mean
            case "odds":
                return mean - (-mean.expm1()).clamp(min=1e-12).log()  # a bound may reach 0, where q is 1
            case "power":
                return -(-self.alpha * mean).expm1() / self.alpha


@dataclass(frozen=True)
class BradleyTerry(ObjectiveDefaults):
    """``-log sigmoid(r_w - r_l - margin (f_w - f_l)) + centre (r_w + r_l)^2`` of the ratings r of a pair: maximum
    likelihood of a reward model (arXiv:2009.01325, section 3.4), as TRL's RewardTrainer has it.

    margin: how much of what the data set says of both samples, ``f``, the ratings should differ by (Llama 2,
        arXiv:2307.09288, section 3.2.2): 1 where it says by how much the first is better (`Recorded.margin`).
    centre: pulls the ratings of a prompt towards a mean of 0, which the likelihood leaves open (arXiv:2312.09244).
    """

    margin: float = 0.0
    centre: float = 0.0
    coupled: ClassVar[bool] = True
    needs_old_logp: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.centre < 0:
            raise ValueError(f"centre={self.centre} would drive ratings apart; give 0 (off) or more, such as 0.01")

    def measures(self, likelihood: Likelihood, batch: Batch) -> Mapping[str, Tensor]:
        rating = likelihood.logp[:, 0]
        winners, losers = pairs_of(batch)
        apart, nothing = rating[winners] - rating[losers], torch.full_like(rating, torch.nan)
        found = {"accuracy": (apart > 0).to(rating), "margin": apart, "mean": (rating[winners] + rating[losers]) / 2}
        return {f"preference/{name}": nothing.index_put((winners,), value) for name, value in found.items()}

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        rating = likelihood.logp[:, 0]
        winners, losers = pairs_of(batch)
        z = rating[winners] - rating[losers]
        if self.margin:
            if batch.feedback is None or batch.feedback.dim() != 1:
                raise IncompatibleError("objective.margin reads what a data set says of each sample: take its records")
            said = put(batch.feedback, z.device).to(z)
            z = z - self.margin * (said[winners] - said[losers])
        loss = -logsigmoid(z)
        if self.centre:
            loss = loss + self.centre * (rating[winners] + rating[losers]) ** 2
        return _placed(loss, winners, likelihood.logp)


@dataclass(frozen=True)
class Desirable(ObjectiveDefaults):
    """``desirable (1 - sigmoid(beta (s - z)))`` for samples of positive and ``undesirable (1 - sigmoid(beta (z - s)))``
    for those of negative advantage, ``s = log p - log p_ref``. KTO (arXiv:2402.01306).

    z = max(0, mean of s over the samples of advantage 0), without gradient: completions of other prompts, which tell
    how far the policy is from the reference (`Recorded.mismatched`). Without such samples z is 0: APO-zero on single
    samples. The mean is that of the labelled samples of the whole optimiser batch.
    """

    beta: float = 0.1
    desirable: float = 1.0
    undesirable: float = 1.0
    reference: ClassVar[str] = "reference"
    coupled: ClassVar[bool] = True
    skips_zero_advantage: ClassVar[bool] = False
    needs_old_logp: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_beta(self.beta)
        if self.desirable < 0 or self.undesirable < 0:
            raise ValueError(f"desirable={self.desirable}, undesirable={self.undesirable} are weights: give 0 or more")

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        live = _of_samples(likelihood.logp, batch)
        shift = _of_samples(likelihood.need(f"log_ratio/{self.reference}"), batch)
        score, label = shift + live - live.detach(), batch.advantage[:, 0].sign()
        others = score.detach()[label == 0]
        z = others.mean().clamp(min=0) if len(others) else torch.zeros_like(score[:1]).squeeze(0)
        weight = torch.where(label > 0, self.desirable, self.undesirable).to(score)
        loss = torch.where(label == 0, torch.zeros_like(score), weight * (-self.beta * label * (score - z)).sigmoid())
        labelled = (label != 0).sum().clamp(min=1)
        return (loss * (len(label) / labelled))[:, None].expand_as(likelihood.logp)


def _check_beta(beta: float) -> None:
    if not beta > 0:
        raise ValueError(f"beta={beta} scales the scores of a pair; give more than 0, such as 0.1")


def _check_smoothing(smoothing: float, read: bool, loss: str) -> None:
    if not 0 <= smoothing < 0.5:
        raise ValueError(f"label_smoothing={smoothing} is the chance of a wrong label; give one from 0 to below .5")
    if smoothing and not read:
        raise ValueError(f"label_smoothing={smoothing} means nothing for {loss}, which does not read it; remove it")
