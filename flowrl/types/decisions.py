"""Numbers per decision [N, D]: where a policy is asked, what it answers, and what a loss knows besides."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from flowrl.devices import put
from flowrl.types.ranks import Share
from flowrl.types.rollouts import ALL_TOKENS, Truncation


class IncompatibleError(ValueError):
    """Parts of an algorithm that do not fit each other; the message says which, and what to change."""


@dataclass(frozen=True)
class Likelihood:
    """How likely the policy finds each decision: the only thing that crosses from networks to algorithms."""

    logp: Tensor  # [N, D]
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    """Further [N, D] quantities: ``entropy``, ``kl/<weight set>``, ``prediction/<weight set>``, ``logp_negative``,
    ..."""

    def need(self, name: str) -> Tensor:
        """``extra[name]``, or an explanation of what is missing."""
        if name not in self.extra:
            have = ", ".join(sorted(self.extra)) or "nothing"
            raise IncompatibleError(
                f"{name!r} is not measured by this estimator (it measures {have}); choose one that does"
            )
        return self.extra[name]

    def block(self, rows: Tensor, decisions: slice, device: torch.device) -> Likelihood:
        """That of some rows [n] and a range of decisions, on a device."""
        extra = {name: put(value[rows][:, decisions], device) for name, value in self.extra.items()}
        return Likelihood(put(self.logp[rows][:, decisions], device), extra)


@dataclass(frozen=True)
class Rows:
    """Data drawn once by an estimator's ``probe``: subclasses hold tensors whose first two axes are [N, D]."""

    large: ClassVar[frozenset[str]] = frozenset()
    """Names of fields that stay with the process that made them, such as latents; everything else is gathered."""

    @property
    def shape(self) -> tuple[int, int]:
        """``(N, D)``."""
        first = next(value for value in vars(self).values() if isinstance(value, Tensor))
        return first.shape[0], first.shape[1]

    @property
    def unit(self) -> int:
        """Decisions that one network row answers together, so that blocks hold whole multiples of it."""
        return 1

    @property
    def counted(self) -> Tensor | None:
        """[N, D] bool: the decisions that count; ``None`` for all."""
        return None

    @property
    def sampler_logp(self) -> Tensor | None:
        """[N, D] log-probabilities as the sampler computed them; ``None`` where it does not tell."""
        return None

    @property
    def events(self) -> Tensor:
        """[N, D] int64: the event that each decision is part of, which is given one advantage; -1 for none. By default
        every decision is its own event."""
        n, d = self.shape
        return torch.arange(d).expand(n, d)

    @property
    def node(self) -> Tensor | None:
        """[N, D] int64: decisions of a group's samples that are one and the same have the same number within their
        event (`Steps.node`); ``None``: there are none."""
        return None

    @property
    def of_whole(self) -> bool:
        """Whether the log-probability of every decision estimates that of its whole sample, as one (time, noise) draw
        or one view does: a sample's is then their mean. Otherwise decisions are its parts, and it is their sum."""
        return False

    @property
    def lengths(self) -> Tensor:
        """[N]: tokens of each sample, by which a mean per token divides; 1 for samples that are not of tokens."""
        return torch.ones(self.shape[0])

    def row_tokens(self, condition: Any) -> Tensor | None:
        """[N] int64: tokens that the network reads in a row of each sample, of which ``unit`` decisions come, with the
        prompts of ``condition`` before them; ``None`` where rows are not of tokens."""
        return None

    def block(self, rows: Tensor, decisions: slice) -> Self:
        """The same data for some rows [n] and a range of decisions."""
        cut = {f.name: _cut(getattr(self, f.name), rows, decisions) for f in fields(self)}
        return replace(self, **cut)

    def gathered(self, share: Share) -> Self:
        """The rows of all samples from those of a share. Fields that are `large` have a shape there and no values:
        they are on the device ``meta``, where reading them raises."""
        if share.whole:
            return self
        held = {f.name: getattr(self, f.name) for f in fields(self)}
        known = {
            name: value.new_empty((len(share), *value.shape[1:]), device="meta")
            if name in self.large
            else share.gather(value)
            for name, value in held.items()
            if isinstance(value, Tensor)
        }
        return replace(self, **known)


@dataclass(frozen=True)
class StepRows(Rows):
    """Probes made of steps between two times."""

    t: Tensor  # [N, D] float64
    t_next: Tensor  # [N, D] float64


@dataclass(frozen=True)
class ViewRows(Rows):
    """m partly masked copies ("views") of every completion, whole: [N, m, L]. What a decision is depends on ``per``:
    a view, a cell (view and position, view by view) or a token (over all views)."""

    inputs: Tensor  # tokens, hidden ones masked
    labels: Tensor
    targets: Tensor  # bool: the positions asked for
    weights: Tensor  # float64; the mean over views of sum_i w_i log p_i estimates the log-likelihood
    content: Tensor  # [N, L] bool: up to and including the end token
    prompt_seeds: Tensor  # [N, m]
    per: Literal["view", "cell", "token"]
    temperature: float
    truncation: Truncation = ALL_TOKENS
    given: Tensor | None = None  # [N, L] bool, see `TokenTrace.given`
    drawn_logp: Tensor | None = None
    """[N, L] log-probability of each token as the sampler drew it, in whatever state that was; ``None`` where it does
    not tell. Not `sampler_logp`: a view may show another state."""
    shared: Tensor | None = None
    """[N, m]: where every view is an event of a tree of completions, the node that it leads to (`TokenTrace.node`)."""

    @property
    def node(self) -> Tensor | None:
        return None if self.shared is None else self.shared.repeat_interleave(self.unit, dim=1)

    @property
    def shape(self) -> tuple[int, int]:
        n, m, length = self.inputs.shape
        return n, {"view": m, "cell": m * length, "token": length}[self.per]

    @property
    def unit(self) -> int:
        return 1 if self.per == "view" else self.inputs.shape[2]

    @property
    def events(self) -> Tensor:
        """Views; every token where decisions are those."""
        if self.per == "token":
            return super().events
        return torch.arange(self.inputs.shape[1]).repeat_interleave(self.unit).expand(self.shape)

    @property
    def of_whole(self) -> bool:
        return self.per == "view"

    @property
    def lengths(self) -> Tensor:
        return self.content.sum(dim=1).clamp(min=1)

    def row_tokens(self, condition: Any) -> Tensor:
        """A view is a row; all views of a completion are where a decision is a token of all of them."""
        _, views, length = self.inputs.shape
        return (condition.row_lengths + length) * (views if self.per == "token" else 1)

    @property
    def counted(self) -> Tensor | None:
        """Cells that are asked for, tokens before the end; every view, also an empty one (it estimates 0)."""
        if self.per == "view":
            return None
        return self.targets.flatten(1) if self.per == "cell" else self.content

    def block(self, rows: Tensor, decisions: slice) -> Self:
        views = decisions if self.per == "view" else slice(None)
        if self.per == "cell" and decisions != slice(None):
            views = slice(decisions.start // self.unit, decisions.stop // self.unit)
        names = ("inputs", "labels", "targets", "weights", "prompt_seeds")
        drawn = None if self.drawn_logp is None else self.drawn_logp[rows]
        given = None if self.given is None else self.given[rows]
        cut = {name: getattr(self, name)[rows][:, views] for name in names}
        cut |= {"content": self.content[rows], "shared": _cut(self.shared, rows, views)}
        return replace(self, drawn_logp=drawn, given=given, **cut)


@dataclass(frozen=True)
class EpisodeRows(Rows):
    """Probes of episodes: of every event (a decision in an environment), ``per`` numbers of another estimator's, such
    as its denoising steps, side by side; D = (S + 1) per. The last event of an episode is the observation after it: no
    decision, but a critic values it."""

    large: ClassVar[frozenset[str]] = frozenset({"observed", "slot", "seen"})

    alive: Tensor  # [N, D] bool: of decisions that were made
    event: Tensor  # [N, D] int64, from 0 to S; -1 where there is no decision
    number: Tensor  # [N, D] int64: which of the event's ``per`` numbers it is
    truncated: Tensor  # [N, D] bool: whether a time limit cut the episode
    per: int
    observed: Tensor  # [N, S + 1, history, o]
    seen: Tensor  # [N, S + 1] bool: where there is an observation
    slot: Tensor  # [N, S + 1] int64: the row of ``inner`` that is the event's, -1 for none
    inner: Rows | None
    """[L, per] of all decisions that were made, one after another; stays with the process that made them."""

    @property
    def shape(self) -> tuple[int, int]:
        return self.alive.shape[0], self.alive.shape[1]

    @property
    def unit(self) -> int:
        return self.per

    @property
    def counted(self) -> Tensor:
        return self.alive

    @property
    def events(self) -> Tensor:
        return self.event

    def block(self, rows: Tensor, decisions: slice) -> Self:
        """Whole events of some samples; ``inner`` stays as it is, and ``slot`` says where in it they are."""
        first, last, _ = decisions.indices(self.shape[1])
        assert first % self.per == 0 and last % self.per == 0, "a block holds whole events"
        events = slice(first // self.per, last // self.per)
        cut = {name: getattr(self, name)[rows][:, decisions] for name in ("alive", "event", "number", "truncated")}
        cut |= {name: _cut_here(getattr(self, name), rows, events) for name in ("observed", "seen", "slot")}
        return replace(self, **cut)


def _cut_here(value: Tensor, rows: Tensor, events: slice) -> Tensor:
    """A block of what may be with another process, where it has a shape alone."""
    if value.device.type != "meta":
        return value[rows][:, events]
    count = len(range(*events.indices(value.shape[1])))
    return value.new_empty((len(rows), count, *value.shape[2:]))


def _cut(value: Any, rows: Tensor, decisions: slice) -> Any:
    return value[rows][:, decisions] if isinstance(value, Tensor) else value


@dataclass(frozen=True)
class Distributions:
    """Whole distributions over a vocabulary at some of N x T positions, as what they are computed of: together they
    would be [N, T, V]."""

    states: Tensor  # [K, d]: inputs of the vocabulary layer; or [K, V] logits, where there is no weight
    where: Tensor  # [N, T] int64: the row of each position, -1 where there is none
    weight: Tensor | None = None  # [V, d]
    bias: Tensor | None = None  # [V]
    readout: Any = None
    """From the layer's output to logits (`flowrl.math.tokens.Readout`); ``None``: they are the logits."""


@dataclass(frozen=True)
class TokenScores:
    """What a language model says about chosen positions; 0 elsewhere."""

    logp: Tensor  # [N, T] float32, with gradient where enabled
    entropy: Tensor | None = None  # [N, T] float32, without gradient, in nats
    value: Tensor | None = None  # [N, T] float32, the critic's, with gradient where enabled
    balance: Tensor | None = None  # [N] float32, of a mixture's routers: 1 is even, with gradient where enabled
    shown: tuple[Distributions, ...] = ()
    """The distributions themselves, where they were asked for; every position is in one of them."""
    divergence: Mapping[str, Tensor] = field(default_factory=dict)
    """[N, T] float32 divergences to other policies' distributions by their names, with gradient where enabled."""
    collision: Tensor | None = None  # [N, T] float32, without gradient: -log of the chance that two draws agree


@dataclass(frozen=True)
class Table:
    """Everything known of an iteration's decisions before the first forward of an update: the small space. Parts that
    act before a forward take it."""

    rows: Rows
    """Of all samples; with several processes, those fields that are `Rows.large` have no values."""
    group: Tensor  # [N]
    source: Tensor  # [N], see `Rollout.source`
    feedback: Tensor | None  # [N] or [N, E], see `Rollout.feedback`
    advantage: Tensor  # [N, D]; [N, D, C] where a combination takes C channels
    mask: Tensor  # [N, D] bool: the decisions that take part
    loss_weight: Tensor  # [N, D] float64
    old: Likelihood | None
    """Of the policy that sampled; ``None``: it is the live one, which nothing has changed yet."""
    held: Rows | None = None
    """[n, D] of the samples that this process holds, with all fields; ``None``: they are ``rows``."""
    penalty_weight: Tensor | None = None  # [N], see `Batch.penalty_weight`

    def batch(
        self, index: Tensor, decisions: slice, weight: Tensor, live: Likelihood, probe: Rows | None = None
    ) -> Batch:
        """The block of ``index`` rows, on the device of the live likelihood; ``weight`` is already cut to it, and so is
        ``probe``, which is taken of ``rows`` if it is not given."""
        device = live.logp.device
        same = replace(live, logp=live.logp.detach())
        old = same if self.old is None else self.old.block(index, decisions, device)
        advantage = put(self.advantage[index][:, decisions], device)
        probe = self.rows.block(index, decisions) if probe is None else probe
        said = None if self.feedback is None else self.feedback[index]
        held = None if self.penalty_weight is None else put(self.penalty_weight[index], device)
        told = {"source": self.source[index], "feedback": said, "penalty_weight": held}
        return Batch(advantage, old, put(weight, device), self.group[index], probe, **told)


@dataclass(frozen=True)
class Batch:
    """What an objective knows about a block of decisions besides the live likelihood; all without gradient."""

    advantage: Tensor  # [N, D]
    old: Likelihood
    """The policy that sampled, or what the live one was before the first update; with what `TokenAdvantage` added."""
    weight: Tensor
    """[N, D]: share of every decision in the loss; sums to 1 over the optimiser batch, all micro-batches and ranks."""
    group: Tensor  # [N]
    probe: Rows
    reference: Likelihood | None = None
    source: Tensor | None = None  # [N], see `Rollout.source`; None: the policy made all
    feedback: Tensor | None = None  # [N] or [N, E], see `Rollout.feedback`
    penalty_weight: Tensor | None = None
    """[N] how much the divergences from a weight set hold each sample; None: all alike, as they are."""

    def held(self, divergence: Tensor) -> Tensor:
        """A divergence [N, D] as it holds each sample."""
        return divergence if self.penalty_weight is None else divergence * self.penalty_weight[:, None]


def iterate_blocks(rows: int, decisions: int, unit: int, most: int) -> Iterator[tuple[slice, slice]]:
    """Cover ``[rows, decisions]`` by blocks of at most ``most`` network rows, each of which answers ``unit``
    decisions: whole samples where they fit, else parts of one."""
    if decisions % unit:
        raise ValueError(f"{decisions} decisions do not divide into network rows of {unit}")
    per_sample = decisions // unit
    if most >= per_sample:
        size = max(1, most // max(per_sample, 1))
        for start in range(0, rows, size):
            yield slice(start, min(start + size, rows)), slice(0, decisions)
        return
    for row in range(rows):
        for start in range(0, per_sample, most):
            yield slice(row, row + 1), slice(start * unit, min(start + most, per_sample) * unit)


def token_blocks(lengths: Tensor, decisions: int, unit: int, most: int) -> Iterator[tuple[Tensor, slice]]:
    """Cover ``[N, decisions]`` by blocks of rows [n] whose network rows, ``lengths`` [N] tokens long and padded to the
    longest of the block, have at most ``most`` tokens together: samples of similar length, the longest first.

    Whole samples where they fit, else parts of one; a network row that is longer than ``most`` is a block of its own.
    """
    if decisions % unit:
        raise ValueError(f"{decisions} decisions do not divide into network rows of {unit}")
    per_sample = decisions // unit
    ordered, start = lengths.argsort(descending=True, stable=True), 0
    while start < len(ordered):
        fitting = max(1, most // max(1, int(lengths[ordered[start]])))  # network rows
        size = max(1, fitting // per_sample)
        rows = ordered[start : start + size].sort().values
        for first in range(0, per_sample, fitting):
            yield rows, slice(first * unit, min(first + fitting, per_sample) * unit)
        start += size
