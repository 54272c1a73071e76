"""What a sampler made, what of it rewards may see, and what they said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol, Self

import torch
from torch import Tensor

from flowrl.types.prompts import Draw, Prompt

CfgGrad = Literal["cond", "both"]


class Condition(Protocol):
    """What a policy is conditioned on, for N rows; stored once per unique prompt."""

    def __len__(self) -> int: ...
    def take(self, rows: Tensor) -> Condition:
        """The condition of the rows with these indices [n] (repeats allowed)."""
        ...


class Dynamics(Protocol):
    """A family of affine Gaussian kernels ``x' = A x + B v + s z`` with scalars of ``(t, t')``."""

    def coefficients(self, t: Tensor, t_next: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``(A, B, s)``, each the shape of ``t`` and in float64. ``s == 0`` marks a deterministic step."""
        ...


@dataclass(frozen=True)
class Steps:
    """Recorded Gaussian steps ``x -> x_next`` that follow one another; the noise level travels with them."""

    states: Tensor
    """[N, D + 1, ...]: step d goes from state d to state d + 1, so each is stored once."""
    t: Tensor  # [N, D] float64
    t_next: Tensor  # [N, D] float64
    squared: Tensor | None
    """[N, D] float64: ``sum (x_next - mean)^2 / s^2`` under the policy that sampled, so its log-density is known for
    free; ``None`` where states alone were recorded, of steps that may have no noise."""
    dynamics: Dynamics
    guidance: float | None
    """Guidance scale the step was made with; ``None`` is the policy's own."""
    mean: Tensor | None = None
    """[N, D, ...] float32: the sampling policy's mean, kept only where an objective needs it (GRPO-Guard)."""
    node: Tensor | None = None
    """[N, D + 1] int64: of each state, the place of the first sample of its group below it; samples of a group that
    have the same number share the state, and the step that led to it. ``None``: no sample shares a step."""
    previews: Tensor | None = None
    """[N, E, ...] clean latents that the trajectory would have ended in without the noise of later steps, E states in
    order; their rewards are those of steps (`Scores.steps`)."""

    @property
    def x(self) -> Tensor:
        """[N, D, ...]: where every step starts, a view."""
        return self.states[:, :-1]

    @property
    def x_next(self) -> Tensor:
        """[N, D, ...]: where every step ends, a view."""
        return self.states[:, 1:]


@dataclass(frozen=True)
class Truncation:
    """Which tokens of a distribution stay possible; the rest has probability 0 and the distribution is normalised again
    (`flowrl.math.masking.truncate`)."""

    top_p: float = 1.0
    """The most likely tokens up to this mass (Holtzman et al., arXiv:1904.09751), the one that crosses it included."""
    top_k: int | None = None
    """So many of the most likely ones, and their equals."""
    nucleus_first: bool = False
    """Whether the mass is counted before the others are cut away (Dream) or of what they leave (transformers, vLLM)."""

    def __post_init__(self) -> None:
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} is a share of the probability: give one above 0, at most 1 (off)")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k={self.top_k} leaves no token; use at least 1, or null for all")

    @property
    def off(self) -> bool:
        """Whether every token stays."""
        return self.top_p == 1 and self.top_k is None


ALL_TOKENS = Truncation()


@dataclass(frozen=True)
class TokenTrace:
    """Recorded completions (language families)."""

    tokens: Tensor  # [N, T] int64; padding after the end
    mask: Tensor
    """[N, T] bool: True up to and including the first end token, the decisions that count."""
    temperature: float
    """Of the distribution the tokens were drawn from; 0 is greedy."""
    logp: Tensor | None = None
    """[N, T] float32: log-probability of each token as the sampler computed it (autoregressive; masked diffusion where
    the sampler has ``keep_scores``)."""
    entropy: Tensor | None = None
    """[N, T] float32: entropy in nats of the distribution that each token was drawn from, where the sampler has
    ``keep_scores``; 0 where none was."""
    order: Tensor | None = None
    """[N, T] int64: decoding step at which each token was fixed, or last changed (masked diffusion)."""
    given: Tensor | None = None
    """[N, T] bool: tokens that were not drawn but stood there before, such as hints."""
    canvases: Tensor | None = None
    """[N, S, T] int32: what the model read in each of S steps, hidden positions as its mask token, where the sampler
    records it."""
    drawn: Tensor | None = None
    """[N, S, T] int32: what was drawn in each step, -1 where nothing was; `order` says what of it was fixed."""
    previews: Tensor | None = None
    """[N, S, T] int64: the completion that each step's draws and what was fixed before would make, padded after its
    end; their rewards are those of steps (`Scores.steps`)."""
    ended: Tensor | None = None
    """[N] bool: whether the end token was said; otherwise the completion was cut at the sampler's length."""
    truncation: Truncation = ALL_TOKENS
    """Of the distribution the tokens were drawn from."""
    event: Tensor | None = None
    """[N, T] int64: the event that each token is part of, such as the turn of a conversation; ``None`` makes every
    token an event. ``mask`` is False at the tokens of an environment."""
    node: Tensor | None = None
    """[N, E + 1] int64: before the first event and after each, the place of the first sample of the group that has the
    same tokens up to there, because they were drawn once for all of them; ``None``: nothing was shared."""


@dataclass(frozen=True)
class Episodes:
    """Recorded episodes (family control). An event is a decision: an observation, and the chunk of actions that
    followed. Each sample has S of them at most, and S + 1 observations, the last one after its last decision and before
    anything is reset, so that its value is that of the state where a time limit cut the episode."""

    observed: Tensor  # [N, S + 1, history, o]; 0 after an episode's end
    actions: Tensor  # [N, S, h, d] as the policy made them, unclipped and standardised
    alive: Tensor  # [N, S] bool: the decisions that were made
    truncated: Tensor  # [N] bool: cut by a time limit instead of ended by the task
    states: Tensor | None = None
    """[N, S, F + 1, h, d] of the denoising steps that led to each chunk, where they were recorded, as of `Steps`."""
    squared: Tensor | None = None  # [N, S, F], see `Steps.squared`
    t: Tensor | None = None  # [N, S, F] float64
    t_next: Tensor | None = None  # [N, S, F] float64
    dynamics: Dynamics | None = None
    guidance: float | None = None
    beside: int = 0
    """Numbers at the end of every observation that are no part of it: the action that a residual corrects."""

    @property
    def node(self) -> None:
        """No sample shares anything with another."""
        return None

    @property
    def previews(self) -> None:
        """There are none: an environment says itself what each decision earns."""
        return None

    def steps(self, rows: Tensor, events: Tensor) -> Steps | None:
        """The denoising steps of decisions [L], given by their samples and events."""
        if self.states is None or self.t is None or self.t_next is None or self.dynamics is None:
            return None
        states, t, t_next = self.states[rows, events], self.t[rows, events], self.t_next[rows, events]
        squared = None if self.squared is None else self.squared[rows, events]
        return Steps(states, t, t_next, squared, self.dynamics, self.guidance)


class Judge(Protocol):
    """Rewards with a gradient, closed over decoding and prompts."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of the rewards."""
        ...

    def __call__(self, clean: Tensor, rows: Tensor) -> Tensor:
        """[n, R] rewards with gradient, each as it counts in the total, of clean latents [n, ...] that belong to these
        rows [n] of the rollout."""
        ...

    def in_words(self, clean: Tensor, rows: Tensor, templates: Sequence[str]) -> list[Tensor]:
        """The same [n, R] for other prompts, once for each template, which has the prompt in place of ``{}``."""
        ...


POLICY, DATA, REPLAY, RIVAL = 0, 1, 2, 3
"""Values of `Rollout.source`: made by the policy, taken from a data set, kept of an earlier rollout, made by another
policy that it is compared with."""


@dataclass(frozen=True)
class Rollout:
    """What a sampler made, and what is needed to ask later how likely it was. A sampler may return other rows than were
    drawn."""

    condition: Condition
    final: Tensor  # [N, ...] clean latents, or tokens
    group: Tensor  # [N]
    seeds: Tensor
    """[N] int64: the stream of random numbers of each row."""
    source: Tensor
    """[N] int64: who made it, see `POLICY`."""
    trace: Steps | TokenTrace | Episodes | None
    times: Tensor | None = None
    """[T + 1] float64: the time grid of the sampler (continuous families)."""
    forwards: int = 0
    """Network rows evaluated to make it."""
    feedback: Tensor | None = None
    """[N] or [N, E] float64: what a data set or an environment says of each sample, or of each of its E events; NaN of
    events that a sample does not have, and of all events of an episode whose environment failed."""
    version: int = 0
    """The number of finished iterations of the weights that sampled: a sample is a function of its seed and this."""
    judge: Judge | None = None
    """Set once, after all samples are gathered; a rollout with a judge is neither cut nor joined."""

    @property
    def nodes(self) -> Tensor | None:
        """[N, E + 1] int64: which samples of a group share what (`Steps.node`, `TokenTrace.node`)."""
        return None if self.trace is None else self.trace.node

    @classmethod
    def of(
        cls,
        draw: Draw,
        condition: Condition,
        final: Tensor,
        trace: Steps | TokenTrace | Episodes | None = None,
        *,
        times: Tensor | None = None,
        forwards: int = 0,
    ) -> Self:
        """What the policy made of a draw, row by row."""
        source = torch.full_like(draw.group, POLICY)
        return cls(condition, final, draw.group, draw.seeds, source, trace, times, forwards)


@dataclass(frozen=True)
class PastSamples:
    """What is known of samples of earlier iterations that could be learned from again, the oldest first."""

    iteration: Tensor  # [K] int64: the one that made each, counted from 0
    group: Tensor  # [K] int64: its group in that iteration
    prompt_ids: Tensor  # [K] int64
    total: Tensor  # [K] float64: its reward, as it was

    def __len__(self) -> int:
        return len(self.group)


@dataclass(frozen=True)
class Samples:
    """All that rewards and evaluation may see."""

    prompts: Sequence[Prompt]
    images: Tensor | None = None
    """[N, 3, H, W] float in [0, 1]; video [N, F, 3, H, W]. uint8 where they have been scored (`score.kept`)."""
    completions: Sequence[str] | None = None
    feedback: Tensor | None = None  # [N] or [N, E], see `Rollout.feedback`

    def __len__(self) -> int:
        return len(self.prompts)

    def take(self, rows: Tensor) -> Self:
        """The samples with these indices, copied: the others are not kept alive."""
        numbers = rows.tolist()
        return replace(
            self,
            prompts=[self.prompts[i] for i in numbers],
            images=None if self.images is None else self.images[rows.to(self.images.device)],
            completions=None if self.completions is None else [self.completions[i] for i in numbers],
            feedback=None if self.feedback is None else self.feedback[rows],
        )


@dataclass(frozen=True)
class Scores:
    """Rewards of an iteration: small, and gathered over all ranks."""

    rewards: Tensor  # [N, R]; NaN = could not score
    weights: Tensor  # [R]
    names: tuple[str, ...]
    group: Tensor  # [N]
    prompt_ids: Tensor  # [N]
    valid: Tensor  # [N] bool: False for rows the declared NaN policy dropped
    source: Tensor | None = field(default=None, kw_only=True)  # [N], see `Rollout.source`; None: the policy made all
    feedback: Tensor | None = field(default=None, kw_only=True)  # [N] or [N, E], see `Rollout.feedback`
    nodes: Tensor | None = field(default=None, kw_only=True)  # [N, E + 1], see `Steps.node` and `TokenTrace.node`
    steps: Tensor | None = field(default=None, kw_only=True)
    """[N, E] float64: the total reward of what a sample would have become before its first step and after each of them
    (`Steps.previews`); NaN where it could not be scored."""
    penalty_weight: Tensor | None = field(default=None, kw_only=True)  # [N], what a `PenaltyWeight` answered

    @property
    def own(self) -> Tensor:
        """[N] bool: the samples that statistics are taken of, scored ones that the policy made itself."""
        return self.valid if self.source is None else self.valid & (self.source == POLICY)

    @property
    def contributions(self) -> Tensor:
        """[N, R] every reward as it counts, before its weight; NaN where it does not apply or could not score."""
        return self.rewards

    @property
    def total(self) -> Tensor:
        """[N] weighted sum of rewards; a reward of weight 0 is only watched."""
        watched = self.weights != 0
        return (self.rewards[:, watched] * self.weights[watched]).sum(dim=1)
