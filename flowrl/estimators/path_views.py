"""Views of the states that a sampler went through, where scoring all of them costs too much or is simpler than for a
general order: left to right, some steps drawn at random, and two states."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from flowrl.estimators.views import COUNT_STREAM, PLACE_STREAM, Views, before_end, check_draws, order_of, own_steps
from flowrl.math.masking import random_subset
from flowrl.math.random import uniform
from flowrl.types import IncompatibleError, TokenTrace


@dataclass(frozen=True, kw_only=True)
class Leftmost:
    """One view for every position: it and all later ones hidden, it alone asked for, weight 1. The sum over views is
    the exact log-probability of a completion that was decoded from left to right, one token per step, whatever the
    model's attention. JustGRPO (arXiv:2601.15165). With ``per: view`` a decision is a token; views are in memory one
    at a time.

    limit: the most tokens of a completion.
    positions: which ones are scored: ``all``; or ``share`` of the completion's, rounded up: ``random`` ones (the mean
        over them is unbiased), those of the lowest log-probability (``low_logp``) or highest ``entropy`` when they were
        drawn (``sampler.keep_scores``). The last two are the "fast" forms of NVIDIA NeMo-RL and of the authors: no
        weight corrects for the choice, so the gradient is biased.
    """

    limit: int
    positions: Literal["all", "random", "low_logp", "entropy"] = "all"
    share: float = 0.25

    def __post_init__(self) -> None:
        check_draws(limit=self.limit)
        if not 0 < self.share <= 1:
            raise ValueError(f"share={self.share} of the positions should be above 0, at most 1")

    @property
    def draws(self) -> int:
        return self.limit if self.positions == "all" else math.ceil(self.share * self.limit)

    @property
    def needs_scores(self) -> bool:
        """Whether the sampler has to keep log-probabilities and entropies."""
        return self.positions in ("low_logp", "entropy")

    def __call__(self, trace: TokenTrace, seeds: Tensor) -> Views:
        content = trace.mask
        length = content.shape[1]
        if length > self.limit:
            raise IncompatibleError(f"completions have {length} positions; raise estimator.views.limit={self.limit}")
        asked = content if self.positions == "all" else self._chosen(trace, seeds)
        turn = asked.cumsum(dim=1) - 1  # the number of the view that asks for a position
        targets = asked[:, None] & (turn[:, None] == torch.arange(self.draws)[:, None])
        # a view without a position has everything hidden, and is never run
        first = torch.where(targets.any(dim=2), targets.int().argmax(dim=2), 0)
        hidden = torch.arange(length) >= first[..., None]
        return Views(hidden | ~content[:, None], targets, targets.double())

    def _chosen(self, trace: TokenTrace, seeds: Tensor) -> Tensor:
        """[N, L] bool: the positions that are scored."""
        content = trace.mask
        if self.positions == "random":
            key = uniform(seeds, (content.shape[1],), stream=PLACE_STREAM)
        else:
            key = kept_scores(trace, "logp" if self.positions == "low_logp" else "entropy").double()
            key = key if self.positions == "low_logp" else -key
        return random_subset(key, content, (self.share * content.sum(dim=1)).ceil().long())


@dataclass(frozen=True, kw_only=True)
class SampledSteps:
    """``draws`` of the steps in which a completion came about, each as one view: what was fixed earlier is shown, what
    the step fixed is asked for. Every view is an unbiased estimate, AGRPO's (arXiv:2510.04019).

    law: steps are drawn ``uniform``ly, or by the ``entropy`` of the tokens that they drew (``sampler.keep_scores``),
        with replacement and stratified: the draws lie in equal parts of the law's distribution function. The weight is
        the inverse of the step's chance.
    of: ``step`` divides it by the number of steps, so that the mean over views is that of a step (as released); with
        ``path`` it is the log-probability of the whole trajectory.

    Steps count up to the last one that fixed content other than the end token. The released uniform law draws
    ``floor(u S)`` with S the *last* step's number, which never takes that one; here it is as likely as the others.
    """

    draws: int = 24
    law: Literal["uniform", "entropy"] = "entropy"
    of: Literal["step", "path"] = "step"

    def __post_init__(self) -> None:
        check_draws(draws=self.draws)

    @property
    def needs_scores(self) -> bool:
        """Whether the sampler has to keep entropies."""
        return self.law == "entropy"

    def __call__(self, trace: TokenTrace, seeds: Tensor) -> Views:
        order = order_of(trace)
        fixed, when = order >= 0, own_steps(order)
        last = torch.where(before_end(trace), when, 0).amax(dim=1)
        chance = self._chance(trace, when, last)  # [N, S]
        jitter = uniform(seeds, (self.draws,), stream=COUNT_STREAM)
        place = (torch.arange(self.draws) + jitter) / self.draws
        cumulative = chance.cumsum(dim=1)
        step = torch.searchsorted(cumulative, place * cumulative[:, -1:], right=True).minimum(last[:, None])
        weight = 1 / chance.gather(1, step)
        if self.of == "step":
            weight = weight / (last + 1)[:, None]
        targets = fixed[:, None] & (when[:, None] == step[..., None])
        hidden = ~fixed[:, None] | (when[:, None] >= step[..., None])
        return Views(hidden, targets, targets * weight[..., None])

    def _chance(self, trace: TokenTrace, when: Tensor, last: Tensor) -> Tensor:
        """[N, S] float64: how likely each step is drawn."""
        possible = torch.arange(int(last.max()) + 1) <= last[:, None]
        if self.law == "uniform":
            return possible.double() / (last + 1)[:, None]
        entropy = kept_scores(trace, "entropy").double()
        known = when <= last[:, None]
        summed = torch.zeros(possible.shape, dtype=torch.float64)
        summed.scatter_add_(1, torch.where(known, when, 0), torch.where(known, entropy, 0.0))
        summed = torch.where(possible, summed + 1e-8, 0.0)  # a step that was certain can still be drawn, as released
        return summed / summed.sum(dim=1, keepdim=True)


@dataclass(frozen=True, kw_only=True)
class TwoStates:
    """Two views: tokens that were fixed before a random step are asked for with everything hidden, the others in the
    state at that step. The surrogate policy of DiFFPO (arXiv:2510.02212), as notes of third parties describe it: with
    the first or the last step it is `FullMask`; on average it is nearer to the trajectory than that.

    The step is uniform on all of the completion's steps and their end.
    """

    @property
    def draws(self) -> int:
        return 2

    def __call__(self, trace: TokenTrace, seeds: Tensor) -> Views:
        order, content = order_of(trace), trace.mask
        when = own_steps(order)
        steps = torch.where(content, when, 0).amax(dim=1) + 1
        cut = (uniform(seeds, (), stream=COUNT_STREAM) * (steps + 1)).long()[:, None]
        early = content & (when < cut)
        late = content & ~early
        targets = torch.stack([early, late], dim=1)
        # tokens behind the end that were fixed early are shown, as the sampler saw them
        hidden = torch.stack([torch.ones_like(content), (order < 0) | (when >= cut)], dim=1)
        return Views(hidden, targets, targets * 2.0)


@dataclass(frozen=True, kw_only=True)
class RecordedSteps:
    """Every step that the sampler recorded, as it was: what the model read, and all that it drew there asked for,
    whether it was fixed then, rejected, or drawn in place of another token. For `EditingSampler`, and for a sampler
    with ``keep_steps``.

    limit: the steps that the sampler records.
    weight: ``path`` 1: the sum over views is the log-probability of all draws. ``hidden``: the length over the number
        of positions asked for, so that steps in which much is masked do not outweigh the others (MDPO,
        arXiv:2508.13148).
    """

    limit: int
    weight: Literal["path", "hidden"] = "path"

    def __post_init__(self) -> None:
        check_draws(limit=self.limit)

    @property
    def draws(self) -> int:
        return self.limit

    def __call__(self, trace: TokenTrace, seeds: Tensor) -> Views:
        if trace.canvases is None or trace.drawn is None:
            raise IncompatibleError("RecordedSteps needs them recorded: EditingSampler, or sampler.keep_steps: true")
        if trace.drawn.shape[1] != self.limit:
            raise IncompatibleError(f"{trace.drawn.shape[1]} steps are recorded; set estimator.views.limit to that")
        drawn = trace.drawn.long()
        targets = drawn >= 0
        hidden = ~targets  # of nothing: inputs and labels say it all
        inputs = torch.where(targets.any(dim=2, keepdim=True), trace.canvases.long(), 0)
        weights = targets.double() * self.limit
        if self.weight == "hidden":
            weights = weights * targets.shape[2] / targets.sum(dim=2, keepdim=True).clamp(min=1)
        return Views(hidden, targets, weights, inputs, drawn.clamp(min=0))


def kept_scores(trace: TokenTrace, name: Literal["logp", "entropy"]) -> Tensor:
    """[N, L] what the sampler kept of every token drawn."""
    kept = trace.logp if name == "logp" else trace.entropy
    if kept is None:
        raise IncompatibleError(f"views by the {name} of drawn tokens need it recorded: set sampler.keep_scores: true")
    return kept
