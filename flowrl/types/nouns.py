"""The nouns of flowrl, as data classes.

Axis letters mean one thing everywhere:
    N  samples of an iteration, group-major        P  prompts (groups) of an iteration
    G  samples per prompt, N = P * G               D  decisions of a sample (tokens; steps; (time, noise) or mask draws)
    R  rewards                                     ...  the shape of one latent (C, H, W), packed or not

Times run from 1 (noise) to 0 (clean). The canonical continuous process is ``x_t = (1 - t) * clean + t * noise`` with
velocity ``v = noise - clean``; every other parameterisation is converted inside the policy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, Protocol, Self

import torch
from torch import Tensor

from flowrl.types.chats import Chat

CfgGrad = Literal["cond", "both"]


class IncompatibleError(ValueError):
    """Parts of an algorithm that do not fit each other; the message says which, and what to change."""


@dataclass(frozen=True)
class Prompt:
    """One line of a prompt set."""

    text: str
    id: int
    """Position in the prompt set; groups and per-prompt statistics are keyed by it, never by the text."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """The prompt's other fields, handed to rewards by name."""
    chat: Chat | None = None
    """The conversation, where the prompt is more than one text of the user; ``text`` is then what a person reads."""

    @property
    def model_input(self) -> str | Chat:
        """What a language model is given."""
        return self.text if self.chat is None else self.chat


def prompts_of(texts: Iterable[str | Chat]) -> list[Prompt]:
    """Prompts of plain texts and conversations, numbered from 0."""
    return [
        Prompt(text.content, index, chat=text) if isinstance(text, Chat) else Prompt(text, index)
        for index, text in enumerate(texts)
    ]


@dataclass(frozen=True)
class Draw:
    """Which samples to make: everything random about a rollout follows from it."""

    seeds: Tensor
    """[N] int64; one stream of random numbers per sample, whatever batch it is made in."""
    group: Tensor
    """[N] int64; samples of one prompt share a value. Group-major."""
    iteration: int
    shared_seed: int
    """Seed of draws common to all samples of the iteration (such as a random window of steps)."""
    place: Tensor
    """[N] int64: which sample of its group it is, from 0."""
    prompts: tuple[Prompt, ...] = ()
    """Of every sample; their columns hold what data sets and environments say. Empty where no model is asked."""

    def __post_init__(self) -> None:
        assert len(self.prompts) in (0, len(self.seeds)), (len(self.prompts), len(self.seeds))

    @classmethod
    def of(cls, seeds: Tensor, group: Tensor, iteration: int, shared_seed: int, prompts: Sequence[Prompt] = ()) -> Self:
        """A draw of whole groups."""
        return cls(seeds, group, iteration, shared_seed, place_in_group(group), tuple(prompts))

    def take(self, rows: Tensor) -> Self:
        """The draw of some samples."""
        prompts = tuple(self.prompts[row] for row in rows.tolist()) if self.prompts else ()
        parts = {name: getattr(self, name)[rows] for name in ("seeds", "group", "place")}
        return replace(self, prompts=prompts, **parts)

    def __len__(self) -> int:
        return len(self.seeds)


def first_of_group(group: Tensor) -> Tensor:
    """[N] bool: where a group begins, for group-major ``group`` [N]."""
    return torch.cat([torch.ones(min(1, len(group)), dtype=torch.bool), group[1:] != group[:-1]])


def place_in_group(group: Tensor) -> Tensor:
    """[N] int64: how many rows before it are of the same group, for group-major ``group`` [N]."""
    rows = torch.arange(len(group))
    return rows - torch.where(first_of_group(group), rows, 0).cummax(dim=0).values if len(group) else rows


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
    """Recorded Gaussian steps ``x -> x_next``; the noise level travels with them."""

    x: Tensor  # [N, D, ...]
    x_next: Tensor  # [N, D, ...]
    t: Tensor  # [N, D] float64
    t_next: Tensor  # [N, D] float64
    squared: Tensor
    """[N, D] float64: ``sum (x_next - mean)^2 / s^2`` under the policy that sampled, so its log-density is known for
    free."""
    dynamics: Dynamics
    guidance: float | None
    """Guidance scale the step was made with; ``None`` is the policy's own."""
    mean: Tensor | None = None
    """[N, D, ...] float32: the sampling policy's mean, kept only where an objective needs it (GRPO-Guard)."""


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
    """[N, T] float32: log-probability of each token as the sampler computed it (autoregressive)."""
    order: Tensor | None = None
    """[N, T] int64: decoding step at which each token was fixed (masked diffusion)."""
    ended: Tensor | None = None
    """[N] bool: whether the end token was said; otherwise the completion was cut at the sampler's length."""
    truncation: Truncation = ALL_TOKENS
    """Of the distribution the tokens were drawn from."""


@dataclass(frozen=True)
class Rollout:
    """What a sampler made, and what is needed to ask later how likely it was."""

    condition: Condition
    final: Tensor  # [N, ...] clean latents, or tokens
    group: Tensor  # [N]
    trace: Steps | TokenTrace | None
    times: Tensor | None = None
    """[T + 1] float64: the time grid of the sampler (continuous families)."""
    forwards: int = 0
    """Network rows evaluated to make it."""


@dataclass(frozen=True)
class Samples:
    """All that rewards and evaluation may see."""

    prompts: Sequence[Prompt]
    images: Tensor | None = None  # [N, 3, H, W] float in [0, 1]; video [N, F, 3, H, W]
    completions: Sequence[str] | None = None

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

    @property
    def contributions(self) -> Tensor:
        """[N, R] every reward as it counts, before its weight; NaN where it does not apply or could not score."""
        return self.rewards

    @property
    def total(self) -> Tensor:
        """[N] weighted sum of rewards; a reward of weight 0 is only watched."""
        watched = self.weights != 0
        return (self.rewards[:, watched] * self.weights[watched]).sum(dim=1)


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


@dataclass(frozen=True)
class Rows:
    """Data drawn once by an estimator's ``probe``: subclasses hold tensors whose first two axes are [N, D]."""

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

    def block(self, rows: Tensor, decisions: slice) -> Self:
        """The same data for some rows [n] and a range of decisions."""
        cut = {f.name: _cut(getattr(self, f.name), rows, decisions) for f in fields(self)}
        return replace(self, **cut)


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

    @property
    def shape(self) -> tuple[int, int]:
        n, m, length = self.inputs.shape
        return n, {"view": m, "cell": m * length, "token": length}[self.per]

    @property
    def unit(self) -> int:
        return 1 if self.per == "view" else self.inputs.shape[2]

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
        return replace(self, content=self.content[rows], **{n: getattr(self, n)[rows][:, views] for n in names})


def _cut(value: Any, rows: Tensor, decisions: slice) -> Any:
    return value[rows][:, decisions] if isinstance(value, Tensor) else value


@dataclass(frozen=True)
class TokenScores:
    """What a language model says about chosen positions; 0 elsewhere."""

    logp: Tensor  # [N, T] float32, with gradient where enabled
    entropy: Tensor | None = None  # [N, T] float32, without gradient, in nats
    value: Tensor | None = None  # [N, T] float32, the critic's, with gradient where enabled
    balance: Tensor | None = None  # [N] float32, of a mixture's routers: 1 is even, with gradient where enabled


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
