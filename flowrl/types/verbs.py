"""The verbs between the nouns, as protocols: what policies, samplers, estimators and the parts of algorithms do."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from flowrl.types.nouns import (
    ALL_TOKENS,
    Batch,
    CfgGrad,
    Condition,
    Draw,
    Likelihood,
    Prompt,
    Rollout,
    Rows,
    Scores,
    TokenScores,
    Truncation,
)


class Policy(Protocol):
    """A generative model with named sets of its trainable weights."""

    def condition(self, prompts: Sequence[Prompt]) -> Condition:
        """What the network is conditioned on for each prompt [N]; what prompts share is computed once."""
        ...

    def decode(self, final: Tensor) -> Tensor: ...
    def using(self, name: str) -> AbstractContextManager[None]:
        """Compute with the weight set ``name``; gradients are disabled unless it is ``live``."""
        ...

    def update_ema(self, name: str, decay: float) -> None:
        """``name <- decay * name + (1 - decay) * live``; creates the set as a copy of live when absent."""
        ...

    def parameters(self) -> list[torch.nn.Parameter]:
        """The trainable parameters, in a fixed order."""
        ...


class FlowPolicy(Policy, Protocol):
    """A continuous policy in canonical coordinates."""

    latent_shape: tuple[int, ...]
    device: torch.device

    def times(self, steps: int) -> Tensor:
        """[steps + 1] float64 descending grid, from the first network time to 0, as the model's own scheduler spaces
        it."""
        ...

    def snap(self, t: Tensor) -> Tensor:
        """The nearest times the network was trained on (identity for flow models, the discrete grid for DDPM
        models)."""
        ...

    def initial(self, noise: Tensor, times: Tensor) -> Tensor:
        """The sampler's starting point at ``times[0]`` for standard normal ``noise`` [N, ...]."""
        ...

    def velocity(
        self, x: Tensor, t: Tensor, condition: Condition, *, guidance: float | None = None, cfg_grad: CfgGrad = "cond"
    ) -> Tensor:
        """Velocity [N, ...] float32 at ``x`` [N, ...], ``t`` [N]. ``guidance=None`` is the policy's own scale, 1 is
        off.
        ``cfg_grad="cond"`` lets gradient through the conditional branch only, ``"both"`` through both."""
        ...


class TextCondition(Condition, Protocol):
    """Prompts as tokens."""

    def take(self, rows: Tensor) -> TextCondition:
        """The prompts of the rows with these indices [n] (repeats allowed)."""
        ...

    def corrupted(self, seeds: Tensor, share: float, token: int) -> TextCondition:
        """Every prompt token replaced by ``token`` with probability ``share``; row i's draw is a function of
        ``seeds[i]`` alone."""
        ...


class TokenPolicy(Policy, Protocol):
    """A language model. Completions are [N, T] token ids that follow the prompts; position i is scored by what the
    model predicts *for* position i, wherever its network puts that prediction."""

    device: torch.device
    vocabulary: int
    end_tokens: tuple[int, ...]
    """A completion ends at the first of any of these."""
    pad_token: int

    def score(
        self,
        condition: TextCondition,
        tokens: Tensor,
        targets: Tensor,
        labels: Tensor,
        *,
        temperature: float = 1.0,
        entropy: bool = False,
        truncation: Truncation = ALL_TOKENS,
    ) -> TokenScores:
        """Log-probability of ``labels`` [N, T] at ``targets`` [N, T] bool, for inputs ``tokens`` [N, T].

        Only the positions asked for pass through the vocabulary layer, in chunks. ``temperature`` divides the logits,
        ``truncation`` then leaves the tokens that it keeps, and the label.
        """
        ...


class Decoder(Protocol):
    """Autoregressive decoding with a cache."""

    logits: Tensor
    """[n, V] float32: for the next token of every row still decoded."""

    def push(self, tokens: Tensor) -> None:
        """Append one token [n] to every row, and compute the next logits."""
        ...

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows [m] only (indices into the present ones)."""
        ...


class Engine(Protocol):
    """Another program's sampler, with the policy's current weights."""

    def generate(
        self,
        condition: Any,
        seeds: Tensor,
        length: int,
        temperature: Sequence[float],
        truncation: Truncation = ALL_TOKENS,
    ) -> tuple[Tensor, Tensor]:
        """Tokens [N, length], padded after the end, and the log-probabilities [N, length] they were drawn with."""
        ...


class CausalPolicy(TokenPolicy, Protocol):
    """An autoregressive language model."""

    def decoder(self, condition: TextCondition) -> Decoder: ...
    def engine(self, name: str) -> Engine:
        """The inference engine of that name, started at the first call."""
        ...


class MaskedPolicy(TokenPolicy, Protocol):
    """A masked-diffusion language model: position i is scored given all of ``tokens``, masked or not."""

    mask_token: int

    def logits(self, condition: TextCondition, tokens: Tensor, targets: Tensor) -> Tensor:
        """[K, V] float32 logits at the K True entries of ``targets`` [N, T], row by row; the mask token has -inf."""
        ...

    def reader(self, condition: TextCondition) -> Reader:
        """The same predictions for completions that are filled from left to right, block by block."""
        ...


class Reader(Protocol):
    """Predictions of completions being filled, which may remember what no longer changes."""

    def __call__(self, rows: Tensor, tokens: Tensor, targets: Tensor, settled: int) -> Tensor:
        """[K, V] float32 logits at the K True entries of ``targets`` [n, T], row by row, for the rows [n] of the
        condition, whose first ``settled`` tokens are final."""
        ...


class Sampler(Protocol):
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

    def __call__(self, policy: Any, condition: Any, draw: Draw) -> Rollout: ...


class Estimator(Protocol):
    """The only bridge between networks and algorithms."""

    def probe(self, rollout: Rollout, policy: Any, seeds: Tensor) -> Rows:
        """Draw, once, where the policy will be evaluated. ``seeds`` [N]: one stream per sample."""
        ...

    def recorded_logp(self, rollout: Rollout, rows: Any) -> Likelihood | None:
        """The sampling policy's likelihood if the rollout already tells it, else ``None`` (then it is measured)."""
        ...

    @property
    def references(self) -> tuple[str, ...]:
        """Weight sets it evaluates besides the live one, whatever the regularizers hold on to."""
        ...

    @property
    def has_recorded_logp(self) -> bool:
        """Whether `old` knows the sampling policy's likelihood from the rollout, at no cost."""
        ...

    def decisions(self, recorded: int) -> tuple[int, int]:
        """``(decisions, network rows)`` of a sample of which the sampler recorded so many decisions. Raises
        ``ValueError`` if it cannot learn from so few."""
        ...

    def __call__(self, policy: Any, rows: Any, condition: Any, references: Sequence[str] = ()) -> Likelihood:
        """Likelihood at the probe; ``references`` names weight sets to measure distances to (frozen sets run first)."""
        ...


class Advantage(Protocol):
    def __call__(self, scores: Scores, memory: dict[str, Any]) -> Tensor:
        """[N] advantage per sample; ``memory`` is the part's state across iterations, checkpointed by the trainer."""
        ...


class TokenAdvantage(Protocol):
    """Spreads the advantage of a sample over its decisions, once, before the first update."""

    @property
    def reference(self) -> str:
        """Weight set it needs the old policy compared with; empty for none."""
        ...

    def __call__(self, advantage: Tensor, rows: Any, old: Likelihood, mask: Tensor) -> tuple[Tensor, Likelihood]:
        """``([N, D] advantage, old with what objectives may need besides)``. ``advantage`` is [N, D], ``mask`` [N, D]
        bool."""
        ...


class Selection(Protocol):
    @property
    def rounds(self) -> int:
        """Rounds of sampling, at most, until enough groups take part; 1 replaces nothing."""
        ...

    @property
    def share(self) -> float:
        """The share of ``data.prompts`` groups that is enough."""
        ...

    def __call__(self, scores: Scores, advantage: Tensor) -> Tensor:
        """[N] bool: the samples that take part."""
        ...


class LossWeight(Protocol):
    def __call__(self, rows: Rows, shape: tuple[int, int]) -> Tensor:
        """[N, D] float64 factors on the loss."""
        ...


class Objective(Protocol):
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

    def log_ratio(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        """What its clip acts on, in logarithms, for the log: [N, D] per decision, or [N] per sample."""
        ...

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        """[N, D] loss per decision."""
        ...


class Regularizer(Protocol):
    @property
    def weight(self) -> float: ...
    @property
    def to(self) -> str:
        """Weight set it holds on to; empty for none."""
        ...

    @property
    def name(self) -> str:
        """Name of the [N, D] quantity it penalises, as the log shows it."""
        ...

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor: ...


class Aggregation(Protocol):
    def __call__(self, mask: Tensor, unit: int = 1) -> Tensor:
        """[N, D] weights that sum to 1, from the [N, D] bool mask of decisions that count, of which ``unit`` in a row
        are answered by one network row (`Rows.unit`); known before any forward."""
        ...
