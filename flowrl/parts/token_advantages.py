"""Spreading the advantage of a sample over its decisions: [N, D], computed once before the first update."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from flowrl.types import IncompatibleError, Likelihood, Rows, Table, ViewRows


def spread(advantage: Tensor, rows: Rows, channels: bool = False) -> Tensor:
    """[N, D] the advantage of every decision, of advantages [N] of samples or [N, E] of events; a decision of no event
    has 0. With ``channels`` all of them have a last axis C. Raises `IncompatibleError` for other shapes."""
    axes = advantage.dim() - channels
    if axes not in (1, 2):
        found = list(advantage.shape)
        what = "one column per channel, because combination is set" if channels else "no channels without a combination"
        raise IncompatibleError(f"the advantage should be per sample or per event, with {what}; its shape is {found}")
    if axes == 1:
        return advantage[:, None].expand(*rows.shape, *advantage.shape[1:])
    events = rows.events
    if int(events.max()) >= advantage.shape[1]:
        raise IncompatibleError(
            f"the advantage is that of {advantage.shape[1]} events, and the decisions are of {int(events.max()) + 1}; "
            "take an advantage per sample, or a sampler that says which event a decision is part of"
        )
    found = advantage[torch.arange(len(events))[:, None], events.clamp(min=0)]
    return zero_outside(events >= 0, found)


def zero_outside(mask: Tensor, values: Tensor) -> Tensor:
    """``values`` [N, D], or with further axes, where ``mask`` [N, D] is true, and 0 elsewhere."""
    wide = mask.reshape(*mask.shape, *[1] * (values.dim() - mask.dim()))
    return torch.where(wide, values, torch.zeros_like(values))


@dataclass(frozen=True)
class GAE:
    """Generalised advantage estimation (arXiv:1506.02438) with the reward after a completion's last token.

    ``delta_t = r_t + gamma V_{t+1} - V_t``, ``A_t = sum_k (gamma lambda)^k delta_{t+k}``, V = 0 after the end; the
    returns ``A + V_old`` are what the critic learns. ``gamma = lambda = 1`` is reward minus value. ``whiten`` brings
    the advantages to mean 0 and variance 1 over all tokens, after the returns are taken.
    """

    gamma: float = 1.0
    lam: float = 0.95
    whiten: bool = True

    @property
    def reference(self) -> str:
        return ""

    def __call__(self, table: Table) -> Table:
        mask, old = table.mask, old_of(table)
        value = torch.where(mask, old.need("value").double(), 0.0)
        reward = torch.where(last_of(mask), table.advantage.double(), 0.0)
        later = torch.cat([value[:, 1:], torch.zeros_like(value[:, :1])], dim=1)
        delta = torch.where(mask, reward + self.gamma * later - value, 0.0)
        advantage, running = torch.zeros_like(delta), torch.zeros_like(delta[:, 0])
        for t in reversed(range(delta.shape[1])):
            running = delta[:, t] + self.gamma * self.lam * running
            advantage[:, t] = running
        known = replace(old, extra={**old.extra, "returns": torch.where(mask, advantage + value, 0.0)})
        return replace(table, advantage=whitened(advantage, mask) if self.whiten else advantage, old=known)


@dataclass(frozen=True)
class KLInReward:
    """``A_t = A - weight sum_{i >= t} log p(i) / p_set(i)``: the divergence as a reward of every token, summed over
    what follows. REINFORCE++ (arXiv:2501.03262) eq. 5-6, which then whitens over all tokens of the batch."""

    weight: float = 0.01
    to: str = "reference"
    whiten: bool = True

    @property
    def reference(self) -> str:
        return self.to if self.weight > 0 else ""

    def __call__(self, table: Table) -> Table:
        advantage, mask = table.advantage.double(), table.mask
        if self.weight > 0:
            ratio = torch.where(mask, old_of(table).need(f"log_ratio/{self.to}").double(), 0.0)
            advantage = advantage - self.weight * ratio.flip(1).cumsum(dim=1).flip(1)
        return replace(table, advantage=whitened(advantage, mask) if self.whiten else advantage)


@dataclass(frozen=True)
class TruncatedImportance:
    """Multiply by ``w = p_old / p_sampler``, kept within ``cap``: corrects for a sampler whose probabilities are not
    the trainer's (an inference engine, a lower precision); 1 where both agree. Truncated importance sampling as in
    fengyao.notion.site/off-policy-rl (2025).

    level: ``token``, or ``sequence``: w of the whole completion, the product over its tokens, at each of them.
    beyond: what becomes of w above the cap: ``truncate`` to it, or ``mask`` (w = 0; the decision stays in the mean).
    floor: below it w = 0; both sides masked are IcePop (Ring-1T, arXiv:2510.18855).

    The defaults are verl's (``rollout_correction``: token, 2). TRL 1.16 with vLLM has ``{level: sequence, beyond: mask,
    cap: 3}`` on by default.
    """

    cap: float = 2.0
    level: Literal["token", "sequence"] = "token"
    beyond: Literal["truncate", "mask"] = "truncate"
    floor: float = 0.0

    def __post_init__(self) -> None:
        if not self.cap > 0:
            raise ValueError(f"cap={self.cap} is the largest importance weight: give one above 0")
        if not 0 <= self.floor < self.cap:
            raise ValueError(f"floor={self.floor} is the least importance weight that counts: give 0 to below the cap")

    @property
    def reference(self) -> str:
        return ""

    def __call__(self, table: Table) -> Table:
        sampled = table.rows.sampler_logp
        if sampled is None:
            raise IncompatibleError(
                "token_advantage TruncatedImportance needs a sampler that records its log-probabilities"
            )
        if bool(sampled[table.mask].isnan().any()):
            raise IncompatibleError(
                "token_advantage TruncatedImportance corrects for the sampler's probabilities, and some completions "
                "are another policy's or a data set's, whose probabilities are not known; remove it"
            )
        gap = torch.where(table.mask, old_of(table).logp - sampled.double(), 0.0)
        if self.level == "sequence":
            gap = gap.sum(dim=1, keepdim=True).expand_as(gap)
        weight = gap.exp()
        kept = torch.where(weight > self.cap, 0.0, weight) if self.beyond == "mask" else weight.clamp(max=self.cap)
        kept = torch.where(weight < self.floor, 0.0, kept)
        return replace(table, advantage=table.advantage * kept)


@dataclass(frozen=True)
class LargestSteps:
    """Train on the ``keep`` views whose advantages are largest in size, summed over all samples; the same ones of every
    sample. The others are neither trained nor asked for again (MDPO, arXiv:2508.13148)."""

    keep: int = 16

    def __post_init__(self) -> None:
        if self.keep < 1:
            raise ValueError(f"keep={self.keep} trains on no step; use at least 1")

    @property
    def reference(self) -> str:
        return ""

    def __call__(self, table: Table) -> Table:
        rows = table.rows
        if not isinstance(rows, ViewRows) or rows.per != "cell":
            raise IncompatibleError("token_advantage LargestSteps chooses views: set estimator.per=cell on MaskedViews")
        n, views, length = rows.targets.shape
        size = torch.where(table.mask, table.advantage.abs(), 0.0).view(n, views, length).amax(dim=2).sum(dim=0)
        kept = torch.zeros(views, dtype=torch.bool)
        kept[size.sort(descending=True, stable=True).indices[: self.keep]] = True
        mask = table.mask & kept.repeat_interleave(length)
        held = table.held
        if isinstance(held, ViewRows):
            held = replace(held, targets=held.targets & kept[:, None])
        return replace(table, rows=replace(rows, targets=rows.targets & kept[:, None]), held=held, mask=mask)


@dataclass(frozen=True)
class GivenTokens:
    """Of the given tokens that a view asks for, only the ``share`` of which the policy that sampled was least certain
    takes part, at least one; tokens that were drawn all do. IGPO (arXiv:2509.10396)."""

    share: float = 0.2

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share={self.share} of the given tokens should be above 0, at most 1")

    @property
    def reference(self) -> str:
        return ""

    def __call__(self, table: Table) -> Table:
        rows = table.rows
        if not isinstance(rows, ViewRows) or rows.per != "cell" or rows.given is None:
            raise IncompatibleError("token_advantage GivenTokens needs a HintedSampler, and estimator.per=cell")
        given = rows.targets & rows.given[:, None]
        entropy = old_of(table).need("entropy").double().view(given.shape).nan_to_num(0.0)
        rank = torch.where(given, -entropy, torch.inf).argsort(dim=2, stable=True).argsort(dim=2)
        kept = (self.share * given.sum(dim=2, keepdim=True)).long().clamp(min=1)
        return replace(table, mask=table.mask & (~given | (rank < kept)).flatten(1))


@dataclass(frozen=True)
class SurrogateImportance:
    """Multiply by ``w = min(p_surrogate / p_true, cap)`` of every token under the policy that sampled: the estimator's
    states are not those in which the sampler drew the tokens, and w corrects for it (DiFFPO, arXiv:2510.02212).

    ``p_true`` is what the sampler kept (``sampler.keep_scores``).
    """

    cap: float = 2.0

    def __post_init__(self) -> None:
        if not self.cap > 0:
            raise ValueError(f"cap={self.cap} is the largest importance weight: give one above 0")

    @property
    def reference(self) -> str:
        return ""

    def __call__(self, table: Table) -> Table:
        rows = table.rows
        if not isinstance(rows, ViewRows) or rows.per == "view" or rows.drawn_logp is None:
            raise IncompatibleError(
                "token_advantage SurrogateImportance needs tokens of a masked sampler that keeps its "
                "log-probabilities: set sampler.keep_scores: true, and estimator.per=cell or token"
            )
        true = rows.drawn_logp.double()
        if rows.per == "cell":
            true = true[:, None].expand(rows.targets.shape).flatten(1)
        gap = torch.where(table.mask, old_of(table).logp - true, 0.0)
        return replace(table, advantage=table.advantage * gap.exp().clamp(max=self.cap))


def old_of(table: Table) -> Likelihood:
    """The policy that sampled."""
    assert table.old is not None, "an algorithm with a token advantage measures the old policy"
    return table.old


def last_of(mask: Tensor) -> Tensor:
    """[N, D] bool: the last True of every row of a mask [N, D]."""
    after = mask.flip(1).cumsum(dim=1).flip(1)
    return mask & (after == 1)


def whitened(values: Tensor, mask: Tensor) -> Tensor:
    """``(x - mean) / (std + 1e-8)`` over the True entries of a mask; unchanged if there are fewer than two."""
    inside = values[mask]
    if len(inside) < 2:
        return values
    return (values - inside.mean()) / (inside.std(correction=0) + 1e-8)
