"""Protocols of what an algorithm is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from torch import Tensor

from flowrl.types.decisions import Batch, Likelihood, Rows, Table
from flowrl.types.prompts import Draw
from flowrl.types.rollouts import PastSamples, Rollout, Scores

Memory = dict[str, Any]
"""State over iterations, as plain values; part of a checkpoint."""
Bounds = tuple[float | Tensor, float | Tensor]
"""How far below and above 1 a ratio may go: numbers, or those of every decision [N, D] or sample [N]."""


@dataclass(frozen=True)
class Residual:
    """What a second network adds to every action of a policy, and how it explores (ResiP, arXiv:2407.16677)."""

    scale: float = 0.1
    """What its answers are multiplied by, in standardised actions."""
    log_std: float = -1.0
    """Logarithm of the deviation of its answers while it is trained, before they are scaled."""

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise ValueError(f"scale={self.scale} leaves every action as it is; give more than 0")


class Sampler(Protocol):
    """Makes samples. One of control policies with a further attribute ``residual``, a `Residual`, finds a network that
    learns what is added to every action."""

    @property
    def forwards(self) -> int:
        """Network rows evaluated to make one sample, at most."""
        ...

    @property
    def recorded(self) -> int:
        """Decisions that a rollout records of one sample, at most; 0 if nothing can be learned from them."""
        ...

    def heldout(self, steps: int | None, guidance: float | None, temperature: float | None) -> Sampler:
        """The sampler that evaluation uses; ``None`` is as in training."""
        ...

    def __call__(self, policy: Any, condition: Any, draw: Draw) -> Rollout:
        """The samples of a draw, each a function of its seed, with the policy's weights in use."""
        ...


class Estimator(Protocol):
    """The only bridge between networks and algorithms. One that differentiates rewards has a further attribute
    ``judged = True``, and finds `Rollout.judge` set; one of control policies with ``explores = True`` finds a network
    that learns how much noise steps have; one with ``beside``, networks by name (`Beside`), and ``acting`` (`Acting`)
    has those beside the policy's own, which then acts so."""

    def probe(self, rollout: Rollout, policy: Any, seeds: Tensor) -> Rows:
        """Draw, once, where the policy will be evaluated. ``seeds`` [N]: one stream per sample."""
        ...

    def recorded_logp(self, rollout: Rollout, rows: Any) -> Likelihood | None:
        """The sampling policy's likelihood if the rollout already tells it, else ``None`` (then it is measured)."""
        ...

    @property
    def references(self) -> tuple[str, ...]:
        """Weight sets it evaluates besides the live one, whatever the regularizers need."""
        ...

    @property
    def has_recorded_logp(self) -> bool:
        """Whether `recorded_logp` knows the sampling policy's likelihood from the rollout, at no cost."""
        ...

    def decisions(self, recorded: int) -> tuple[int, int]:
        """``(decisions, network rows)`` of a sample of which the sampler recorded so many decisions. Raises
        ``ValueError`` if it cannot learn from so few."""
        ...

    def __call__(self, policy: Any, rows: Any, condition: Any, references: Sequence[str] = ()) -> Likelihood:
        """Likelihood at the probe; ``references`` names weight sets to measure distances to (frozen sets run first)."""
        ...


class Advantage(Protocol):
    """How much better a sample, or an event of it, is than expected."""

    def __call__(self, scores: Scores, memory: Memory) -> Tensor:
        """[N] per sample, or [N, E] per event (`Rows.events` says which decisions an event holds); with a combination
        [N, C] or [N, E, C], one column per channel. ``memory`` is the part's state across iterations."""
        ...


class PenaltyWeight(Protocol):
    """How much the divergences from a weight set hold each sample, by what rewards say of it."""

    def __call__(self, scores: Scores, memory: Memory) -> Tensor:
        """[N] factors on the regularizers that read them (`Batch.penalty_weight`). ``memory`` is the part's state
        across iterations."""
        ...


class TokenAdvantage(Protocol):
    """Turns the advantages of samples or events into those of decisions, once, before the first update."""

    @property
    def reference(self) -> str:
        """Weight set it needs the old policy compared with; empty for none."""
        ...

    def __call__(self, table: Table) -> Table:
        """The table with other advantages, and in ``old.extra`` what objectives may need besides. ``table.old`` is
        there."""
        ...


class Selection(Protocol):
    """Which samples take part in an update."""

    @property
    def rounds(self) -> int:
        """Rounds of sampling, at most, until enough groups take part; 1 replaces nothing."""
        ...

    @property
    def share(self) -> float:
        """The share of ``data.prompts`` groups that is enough."""
        ...

    def __call__(self, scores: Scores, advantage: Tensor) -> Tensor:
        """[N] bool: the samples that take part. ``advantage`` is what an `Advantage` answered."""
        ...


class Replay(Protocol):
    """Which samples of earlier iterations are learned from again, beside those of the present one. All samples that
    the policy made and that could be scored are kept, up to ``capacity``."""

    @property
    def capacity(self) -> int:
        """Samples that are kept; the oldest iterations go first."""
        ...

    @property
    def alone(self) -> bool:
        """Whether they are groups of their own, whose baseline and scale are their own as well; otherwise they join
        the present samples of their prompt, and move no baseline unless the advantage takes them in."""
        ...

    def __call__(self, past: PastSamples, scores: Scores, seed: int) -> tuple[Tensor, Tensor]:
        """``([k] rows of past, [k] groups)`` for the present ``scores``: a number for each group of their own, counted
        from 0, or the present groups that they join."""
        ...


class LossWeight(Protocol):
    """How much each decision matters."""

    def __call__(self, table: Table) -> Tensor:
        """[N, D] float64 factors on the loss, known before any forward."""
        ...


class Objective(Protocol):
    """A loss per decision. One with ``off_policy = True`` learns from decisions whoever made them: nothing corrects for
    older weights."""

    reference: ClassVar[str]
    """Weight set whose likelihood it compares with; empty for none."""
    coupled: ClassVar[bool]
    """Whether the loss of a decision depends on other decisions, so that it needs the whole [N, D] matrix."""
    skips_zero_advantage: ClassVar[bool]
    """Whether a decision of advantage exactly 0 has no gradient (it may then be skipped)."""
    needs_old_logp: ClassVar[bool]
    """Whether it reads ``batch.old``; if not, the old likelihood need not be measured."""

    @property
    def clip_range(self) -> tuple[float, float] | None:
        """How far below and above 1 the ratio may move before the gradient stops, for the log; ``None`` without a
        clip."""
        ...

    def bounds(self, likelihood: Likelihood, batch: Batch) -> Bounds | None:
        """The range of this batch, for the log: ``clip_range``, or what each decision has where they differ, in the
        shape of ``log_ratio``."""
        ...

    def log_ratio(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        """What its clip acts on, in logarithms, for the log: [N, D] per decision, or [N] per sample."""
        ...

    def measures(self, likelihood: Likelihood, batch: Batch) -> Mapping[str, Tensor]:
        """Further numbers of samples [N] for the log, which shows their means; NaN for samples that have none."""
        ...

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        """[N, D] loss per decision."""
        ...


class LossMask(Protocol):
    """Which decisions count by what the live policy says, such as those of high entropy; evaluated without gradient."""

    coupled: ClassVar[bool]
    """Whether it looks at other decisions, as a quantile or mean of the optimiser batch does."""

    def __call__(self, live: Likelihood, batch: Batch) -> Tensor:
        """[N, D] factors on the objective; regularizers are left alone."""
        ...


class Combination(Protocol):
    """Makes one gradient of several, one for each channel of the advantage (MGDA, PCGrad and MARBLE are such)."""

    def __call__(self, gram: Tensor) -> Tensor:
        """[C] float64 weights of the channels' gradients, from their inner products [C, C]."""
        ...


class Coefficient(Protocol):
    """A number of the algorithm that changes over iterations, such as the weight of a KL term with a target. It starts
    at the value that the algorithm has there."""

    @property
    def sets(self) -> str:
        """The field it changes, as a path from the algorithm: ``regularizers.0.weight``, ``objective.high``."""
        ...

    def __call__(self, value: float, metrics: Mapping[str, float], iteration: int) -> float:
        """The value in the next iteration, from the present one and the metrics of the iteration that just ended."""
        ...


class Regularizer(Protocol):
    """A penalty per decision, added to the objective."""

    @property
    def weight(self) -> float:
        """Of the penalty in the loss."""
        ...

    @property
    def to(self) -> str:
        """Weight set that it compares with; empty for none."""
        ...

    @property
    def name(self) -> str:
        """Name of the [N, D] quantity it penalises, as the log shows it."""
        ...

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        """[N, D] penalty per decision."""
        ...


class Aggregation(Protocol):
    """How decisions add up."""

    def __call__(self, mask: Tensor, unit: int = 1, source: Tensor | None = None) -> Tensor:
        """[N, D] weights that sum to 1, from the [N, D] bool mask of decisions that count, of which ``unit`` in a row
        are answered by one network row (`Rows.unit`), and the source [N] of each sample (`Rollout.source`); known
        before any forward."""
        ...
