"""Which partly masked copies ("views") of a completion a masked-diffusion model is asked about, and with which weights.

A view hides some positions and asks for some of the hidden ones. With weights ``w``, the mean over a completion's views
of ``sum_i w_i log p(y_i | view)`` estimates its log-likelihood bound; which bound, and whether without bias, is said at
each law. Positions after the end token are hidden and never asked for. Every draw follows from the sample's seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from flowrl.math.masking import gauss_legendre, random_subset, systematic_counts
from flowrl.math.random import uniform
from flowrl.types import IncompatibleError, TokenTrace

MASK_STREAM, COUNT_STREAM, PLACE_STREAM, CORRUPTION_STREAM = 2_000_001, 2_000_002, 2_000_003, 2_000_004


@dataclass(frozen=True)
class Views:
    """What is shown and asked, for m views of every completion."""

    hidden: Tensor  # [N, m, L] bool
    targets: Tensor  # [N, m, L] bool; a subset of hidden
    weights: Tensor  # [N, m, L] float64; 0 off the targets
    inputs: Tensor | None = None
    """[N, m, L] what the model reads, if it is not the completion with its ``hidden`` positions masked."""
    labels: Tensor | None = None
    """[N, m, L] what is asked for, if it is not the completion's tokens."""


class ViewDraw(Protocol):
    """A law of views."""

    @property
    def draws(self) -> int:
        """Views per completion."""
        ...

    def __call__(self, trace: TokenTrace, seeds: Tensor) -> Views: ...


def check_draws(times: tuple[float, float] = (0.0, 1.0), **counts: int) -> None:
    """Raise `ValueError` for counts below 1, or a range of times that is not within [0, 1]."""
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name}={count} should be at least 1")
    if not 0 <= times[0] <= times[1] <= 1:
        raise ValueError(f"low={times[0]} and high={times[1]} should be times within 0 and 1, the lower one first")


def asked_views(content: Tensor, hidden_content: Tensor, weight: Tensor) -> Views:
    """All hidden content is asked for, with ``weight`` [N, m]; the tail after the end is hidden too."""
    tail = ~content[:, None].expand_as(hidden_content)
    return Views(hidden_content | tail, hidden_content, hidden_content * weight[..., None])


@dataclass(frozen=True, kw_only=True)
class FullMask:
    """One view with everything hidden: the exact log-probability of a *one-step* sampler, a biased stand-in for any
    other. diffu-GRPO (arXiv:2504.12216)."""

    @property
    def draws(self) -> int:
        return 1

    def __call__(self, trace: TokenTrace, seeds: Tensor) -> Views:
        content = trace.mask
        return asked_views(content, content[:, None], torch.ones(len(content), 1, dtype=torch.float64))


@dataclass(frozen=True, kw_only=True)
class RandomCount:
    """Hide k of the L positions, k uniform on 1..L; weight L / k: the evidence lower bound without bias, with bounded
    weights. ``systematic`` spreads the k of a completion's views evenly. LLaDA 1.5 (arXiv:2505.19223)."""

    draws: int = 4
    systematic: bool = True

    def __post_init__(self) -> None:
        check_draws(draws=self.draws)

    def __call__(self, trace: TokenTrace, seeds: Tensor) -> Views:
        content = trace.mask
        length = content.sum(dim=1)
        if self.systematic:
            count = systematic_counts(uniform(seeds, (), stream=COUNT_STREAM), self.draws, length)
        else:
            count = (uniform(seeds, (self.draws,), stream=COUNT_STREAM) * length[:, None]).long() + 1
        hidden = random_positions(content, count, seeds)
        return asked_views(content, hidden, length[:, None] / count.double())


@dataclass(frozen=True, kw_only=True)
class RandomTime:
    """Hide every position with probability t, t uniform on [low, high]; weight 1 / t (the bound, unbiased on [0, 1];
    its variance explodes at small t), or 1 / number hidden (``mean``: not the bound)."""

    draws: int = 4
    low: float = 0.0
    high: float = 1.0
    weight: Literal["inverse", "mean"] = "inverse"

    def __post_init__(self) -> None:
        check_draws((self.low, self.high), draws=self.draws)

    def __call__(self, trace: TokenTrace, seeds: Tensor) -> Views:
        t = self.low + (self.high - self.low) * uniform(seeds, (self.draws,), stream=COUNT_STREAM)
        return _at_times(trace, t, seeds, self.weight)


@dataclass(frozen=True, kw_only=True)
class TimeGrid:
    """Hide every position with the probabilities of an evenly spaced grid from a random start to 1, one view each;
    weight 1 / number hidden. UniGRPO's structured noising (MMaDA, arXiv:2505.15809)."""

    draws: int = 4

    def __post_init__(self) -> None:
        check_draws(draws=self.draws)

    def __call__(self, trace: TokenTrace, seeds: Tensor) -> Views:
        start = uniform(seeds, (1,), stream=COUNT_STREAM)
        steps = torch.arange(self.draws) / max(self.draws - 1, 1)
        return _at_times(trace, start + (1 - start) * steps, seeds, "mean")


@dataclass(frozen=True, kw_only=True)
class Quadrature:
    """Hide every position with probability t at the Gauss-Legendre nodes of [0, 1], ``repeats`` views each; weight
    w_node / t. The inner mean is a polynomial of degree L - 1 in t, so from ``nodes >= L / 2`` on it is the bound
    without bias; fewer nodes add a small error and take the variance over t away. GDPO (arXiv:2510.08554).

    counts: ``bernoulli`` as above; ``floor`` hides exactly max(1, floor(t L)) random positions, as the public codes
        derived from GDPO's do. That takes the variance over the number away, and is biased by the rounding: the
        weights stay w / t, so a constant log-probability is estimated at 1.03, .87 and .99 of its value for L = 8, 16
        and 64 with three nodes (.72 for 8 where the first node hides none).
    """

    nodes: int = 3
    repeats: int = 1
    counts: Literal["bernoulli", "floor"] = "bernoulli"

    def __post_init__(self) -> None:
        check_draws(nodes=self.nodes, repeats=self.repeats)

    @property
    def draws(self) -> int:
        return self.nodes * self.repeats

    def __call__(self, trace: TokenTrace, seeds: Tensor) -> Views:
        t, w = gauss_legendre(self.nodes)
        times = t.repeat(self.repeats).expand(len(trace.mask), -1)
        if self.counts == "floor":
            count = (times * trace.mask.sum(dim=1, keepdim=True)).long().clamp(min=1)
            views = asked_views(trace.mask, random_positions(trace.mask, count, seeds), 1 / times)
        else:
            views = _at_times(trace, times, seeds, "inverse")
        share = w.repeat(self.repeats) * self.nodes  # the mean over views is then the weighted sum over nodes
        return Views(views.hidden, views.targets, views.weights * share[None, :, None])


@dataclass(frozen=True, kw_only=True)
class Coupled:
    """Everything hidden, then pairs that hide a random part and its complement, weights 1 / t and 1 / (1 - t): every
    token is asked for in every pair. coupled-GRPO (DiffuCoder, arXiv:2506.20639).

    ``full=False`` leaves out the first view; then, with t uniform on [0, 1], the mean is the bound without bias."""

    pairs: int = 1
    low: float = 0.2
    high: float = 0.8
    full: bool = True

    def __post_init__(self) -> None:
        check_draws((self.low, self.high), pairs=self.pairs)

    @property
    def draws(self) -> int:
        return 2 * self.pairs + self.full

    def __call__(self, trace: TokenTrace, seeds: Tensor) -> Views:
        content = trace.mask
        t = self.low + (self.high - self.low) * uniform(seeds, (self.pairs,), stream=COUNT_STREAM)
        coin = uniform(seeds, (self.pairs, content.shape[1]), stream=MASK_STREAM)
        part = content[:, None] & (coin < t[..., None])
        hidden, weight = [part, content[:, None] & ~part], [1 / t, 1 / (1 - t)]
        if self.full:
            # a token's score is the mean of its full and its partial one: 1/2 each, over 1 + 2 pairs views
            hidden.insert(0, content[:, None])
            scale = self.draws / 2
            weight = [torch.full((len(t), 1), scale).double(), *(w * scale / self.pairs for w in weight)]
        return asked_views(content, torch.cat(hidden, dim=1), torch.cat(weight, dim=1))


@dataclass(frozen=True, kw_only=True)
class BlockRandom:
    """One random block of ``block`` positions: earlier blocks shown, later ones hidden, k of its n positions hidden and
    asked for; weight (blocks) n / k: the bound of a sampler that decodes blocks from left to right, without bias.
    The block-wise masking that SPG's text describes (arXiv:2510.09541); its code has `BlockAndAfter`."""

    block: int = 32
    draws: int = 2

    def __post_init__(self) -> None:
        check_draws(block=self.block, draws=self.draws)

    def __call__(self, trace: TokenTrace, seeds: Tensor) -> Views:
        content = trace.mask
        place = torch.arange(content.shape[1]) // self.block
        blocks = -(-content.sum(dim=1) // self.block)
        start = uniform(seeds, (), stream=PLACE_STREAM)
        chosen = (start[:, None] + torch.arange(self.draws) / self.draws) % 1.0
        chosen = (chosen * blocks[:, None]).long()  # stratified over the blocks
        inside = content[:, None] & (place == chosen[..., None])
        size = inside.sum(dim=-1)
        count = (uniform(seeds, (self.draws,), stream=COUNT_STREAM) * size).long() + 1
        targets = random_subset(uniform(seeds, tuple(inside.shape[1:]), stream=MASK_STREAM), inside, count)
        hidden = targets | (place > chosen[..., None]) | ~content[:, None]
        weight = blocks[:, None] * size / count.double()
        return Views(hidden, targets, targets * weight[..., None])


@dataclass(frozen=True, kw_only=True)
class BlockAndAfter:
    """One random block of ``block`` positions, k of its n positions hidden, all later blocks hidden too, earlier ones
    shown; everything hidden is asked for, with weight L / (number hidden). SPG's released views (``block_random`` of
    facebookresearch/SPG, 17 Oct 2025), a mean over tokens of very unlike contexts rather than a bound.

    The blocks of a completion's views are the first ``draws`` of a random order of the canvas's blocks, each taken
    modulo the number of blocks that hold content: distinct for a full canvas, uneven and with repeats for a short
    completion, as released. k is uniform on 1..n. ``corrupt`` hides each position of earlier blocks with this
    probability (released: .15); those are asked for as well.
    """

    block: int = 32
    draws: int = 2
    corrupt: float = 0.15

    def __post_init__(self) -> None:
        check_draws(block=self.block, draws=self.draws)
        if not 0 <= self.corrupt <= 1:
            raise ValueError(f"corrupt={self.corrupt} should be a probability, from 0 to 1")

    def __call__(self, trace: TokenTrace, seeds: Tensor) -> Views:
        content = trace.mask
        place = torch.arange(content.shape[1]) // self.block
        canvas = int(place[-1]) + 1
        if canvas < self.draws:
            raise IncompatibleError(
                f"estimator.views.draws={self.draws}: completions have {canvas} blocks of {self.block} positions, and "
                "each view takes another one; lower estimator.views.draws or estimator.views.block"
            )
        order = uniform(seeds, (canvas,), stream=PLACE_STREAM).argsort(dim=1)[:, : self.draws]
        own = -(-content.sum(dim=1, keepdim=True) // self.block)
        chosen = (order % own)[..., None]
        inside = content[:, None] & (place == chosen)
        count = (uniform(seeds, (self.draws,), stream=COUNT_STREAM) * inside.sum(dim=-1)).long() + 1
        shape = tuple(inside.shape[1:])
        hidden = random_subset(uniform(seeds, shape, stream=MASK_STREAM), inside, count)
        hidden |= content[:, None] & (place > chosen)
        if self.corrupt:
            coin = uniform(seeds, shape, stream=CORRUPTION_STREAM)
            hidden |= content[:, None] & (place < chosen) & (coin < self.corrupt)
        length = content.sum(dim=1, keepdim=True).double()
        return asked_views(content, hidden, length / hidden.sum(dim=-1))


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """The states that the sampler visited, ``merge`` consecutive steps as one view: what is fixed in a view's steps is
    hidden and asked for, everything fixed earlier is shown. With ``merge=1`` the sum is the exact log-probability of
    the trajectory. TraceRL (arXiv:2509.06949), which merges 8; per-step policy gradients with 1.

    limit: the most views per completion (steps of the sampler / merge, rounded up).
    through: which fixed tokens are asked for: ``all``, also those behind the end that a block was filled up with (they
        were shown to later steps, so the exact trajectory needs them); ``end``, the content; ``before_end``, without
        the end token itself, as TraceRL's released code does (``post_num: 0``).
    by: which steps are merged: ``own_steps``, those in which the completion fixed something; ``steps``, those of the
        sampler, so that all completions are cut at the same times (d2's StepMerge, arXiv:2509.21474).
    """

    limit: int
    merge: int = 1
    through: Literal["all", "end", "before_end"] = "all"
    by: Literal["own_steps", "steps"] = "own_steps"

    def __post_init__(self) -> None:
        check_draws(limit=self.limit, merge=self.merge)

    @property
    def draws(self) -> int:
        return self.limit

    def __call__(self, trace: TokenTrace, seeds: Tensor) -> Views:
        order = order_of(trace)
        fixed = order >= 0
        group = (order if self.by == "steps" else own_steps(order)) // self.merge
        if int(group[fixed].max()) >= self.limit:
            raise IncompatibleError(
                f"trajectories have more than {self.limit} x {self.merge} steps; raise estimator.views.limit"
            )
        index = torch.arange(self.limit)[None, :, None]
        targets = (fixed & self._counted(trace))[:, None] & (group[:, None] == index)
        hidden = ~fixed[:, None] | (group[:, None] >= index)
        return Views(hidden, targets, targets.double() * self.limit)

    def _counted(self, trace: TokenTrace) -> Tensor:
        """[N, L] bool: the positions that may be asked for."""
        if self.through == "all":
            return torch.ones_like(trace.mask)
        if self.through == "end":
            return trace.mask
        return before_end(trace)


@dataclass(frozen=True, kw_only=True)
class EachAlone:
    """Hide one random position at a time: the pseudo-likelihood, weight L.

    For a masked model the concrete score between neighbours that differ in position i is ``s_v = p(v | rest) / p(y_i |
    rest)``, so this is score-entropy policy optimisation on neighbours at distance one (SEPO, arXiv:2502.01384):
    ``-sum_v p_v grad log s_v = grad log p(y_i | rest)``."""

    draws: int = 4

    def __post_init__(self) -> None:
        check_draws(draws=self.draws)

    def __call__(self, trace: TokenTrace, seeds: Tensor) -> Views:
        content = trace.mask
        length = content.sum(dim=1)
        numbers = uniform(seeds, (content.shape[1],), stream=MASK_STREAM)
        key = torch.where(content, numbers, torch.full_like(numbers, torch.inf))
        rank = key.argsort(dim=1).argsort(dim=1)
        turn = torch.arange(self.draws) % length[:, None]
        hidden = content[:, None] & (rank[:, None] == turn[..., None])
        return asked_views(content, hidden, length[:, None].double().expand(-1, self.draws))


def order_of(trace: TokenTrace) -> Tensor:
    """[N, L] the step at which each position was fixed, -1 for never."""
    if trace.order is None:
        raise IncompatibleError("a trajectory is scored on a masked sampler's record of steps")
    return trace.order


def own_steps(order: Tensor) -> Tensor:
    """[N, L] int64: in which of its completion's steps each position was fixed. Steps in which a row fixed nothing (a
    block that was finished early) do not count; positions that were never fixed come after the last."""
    steps = torch.where(order >= 0, order, torch.full_like(order, torch.iinfo(torch.int64).max))
    return torch.stack([torch.unique(row, return_inverse=True)[1] for row in steps])


def before_end(trace: TokenTrace) -> Tensor:
    """[N, L] bool: the content without the end token."""
    if trace.ended is None:
        raise IncompatibleError("estimator.views.through=before_end needs a sampler that tells which completions ended")
    last = trace.mask & (trace.mask.flip(1).cumsum(dim=1).flip(1) == 1)
    return trace.mask & ~(last & trace.ended[:, None])


def random_positions(content: Tensor, count: Tensor, seeds: Tensor) -> Tensor:
    """[N, m, L] bool: ``count`` [N, m] random positions of the content."""
    shape = (count.shape[1], content.shape[1])
    return random_subset(uniform(seeds, shape, stream=MASK_STREAM), content[:, None].expand(-1, *shape), count)


def _at_times(trace: TokenTrace, t: Tensor, seeds: Tensor, weight: Literal["inverse", "mean"]) -> Views:
    """Views that hide each position with probability ``t`` [N, m]."""
    content = trace.mask
    coin = uniform(seeds, (t.shape[1], content.shape[1]), stream=MASK_STREAM)
    hidden = content[:, None] & (coin < t[..., None])
    factor = 1 / t.clamp(min=1e-12) if weight == "inverse" else 1 / hidden.sum(dim=-1).clamp(min=1).double()
    return asked_views(content, hidden, factor)
