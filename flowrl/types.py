"""The nouns of flowrl and the verbs between them, as data classes and protocols.

Axis letters mean one thing everywhere:
    N  samples of an iteration, group-major        P  prompts (groups) of an iteration
    G  samples per prompt, N = P * G               D  decisions of a sample (tokens; steps; (time, noise) or mask draws)
    R  rewards                                     ...  the shape of one latent (C, H, W), packed or not

Times run from 1 (noise) to 0 (clean). The canonical continuous process is ``x_t = (1 - t) * clean + t * noise`` with
velocity ``v = noise - clean``; every other parameterisation is converted inside the policy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Literal, Protocol, Self

import torch
from torch import Tensor

CfgGrad = Literal["cond", "both"]


@dataclass(frozen=True)
class Prompt:
    """One line of a prompt set."""

    text: str
    id: int
    """Position in the prompt set; groups and per-prompt statistics are keyed by it, never by the text."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """The prompt's other fields, handed to rewards by name."""


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

    def __len__(self) -> int:
        return len(self.seeds)


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
class TokenTrace:
    """Recorded token sequences (language families)."""

    tokens: Tensor  # [N, T]
    mask: Tensor  # [N, T] bool, True on tokens the policy decided
    order: Tensor | None = None  # [N, T] decoding step at which a token was fixed (masked diffusion)


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
    def total(self) -> Tensor:
        """[N] weighted sum of rewards; a reward of weight 0 is only watched."""
        watched = self.weights != 0
        return (self.rewards[:, watched] * self.weights[watched]).sum(dim=1)


@dataclass(frozen=True)
class Likelihood:
    """How likely the policy finds each decision: the only thing that crosses from networks to algorithms."""

    logp: Tensor  # [N, D]
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    """Further [N, D] quantities: ``entropy``, ``kl/<weight set>``, ``prediction/<weight set>``, ``logp_against``,
    ..."""

    def need(self, name: str) -> Tensor:
        """``extra[name]``, or an explanation of what is missing."""
        if name not in self.extra:
            have = ", ".join(sorted(self.extra)) or "nothing"
            raise ValueError(f"{name!r} is not measured by this estimator (it measures {have}); choose one that does")
        return self.extra[name]


@dataclass(frozen=True)
class Rows:
    """Data drawn once by an estimator's ``probe``: subclasses hold tensors whose first two axes are [N, D]."""

    def block(self, rows: Tensor, decisions: slice) -> Self:
        """The same data for some rows [n] and a range of decisions."""
        cut = {f.name: _cut(getattr(self, f.name), rows, decisions) for f in fields(self)}
        return replace(self, **cut)


@dataclass(frozen=True)
class StepRows(Rows):
    """Probes made of steps between two times."""

    t: Tensor  # [N, D] float64
    t_next: Tensor  # [N, D] float64


def _cut(value: Any, rows: Tensor, decisions: slice) -> Any:
    return value[rows][:, decisions] if isinstance(value, Tensor) else value


@dataclass(frozen=True)
class Batch:
    """What an objective knows about a block of decisions besides the live likelihood; all without gradient."""

    advantage: Tensor  # [N, D]
    old: Likelihood
    weight: Tensor
    """[N, D]: share of every decision in the loss; sums to 1 over the optimiser batch, all micro-batches and ranks."""
    group: Tensor  # [N]
    probe: Rows
    reference: Likelihood | None = None


class Policy(Protocol):
    """A generative model with named sets of its trainable weights."""

    def condition(self, prompts: Sequence[str]) -> Condition: ...
    def decode(self, final: Tensor) -> Tensor: ...
    def using(self, name: str) -> AbstractContextManager[None]:
        """Compute with the weight set ``name``; gradients are disabled unless it is ``live``."""
        ...

    def follow(self, name: str, decay: float) -> None:
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


class Sampler(Protocol):
    def __call__(self, policy: Any, condition: Condition, draw: Draw) -> Rollout: ...


class Estimator(Protocol):
    """The only bridge between networks and algorithms."""

    def probe(self, rollout: Rollout, policy: Any, seeds: Tensor) -> Rows:
        """Draw, once, where the policy will be evaluated. ``seeds`` [N]: one stream per sample."""
        ...

    def old(self, rollout: Rollout, rows: Any) -> Likelihood | None:
        """The sampling policy's likelihood if the rollout already tells it, else ``None`` (then it is measured)."""
        ...

    def __call__(self, policy: Any, rows: Any, condition: Condition, against: Sequence[str] = ()) -> Likelihood:
        """Likelihood at the probe; ``against`` names weight sets to measure distances to (frozen sets run first)."""
        ...


class Advantage(Protocol):
    def __call__(self, scores: Scores, memory: dict[str, Any]) -> Tensor:
        """[N] credit per sample; ``memory`` is the part's state across iterations, checkpointed by the trainer."""
        ...


class Selection(Protocol):
    def __call__(self, scores: Scores, advantage: Tensor) -> Tensor:
        """[N] bool: the samples that take part."""
        ...


class Emphasis(Protocol):
    def __call__(self, rows: Rows, shape: tuple[int, int]) -> Tensor:
        """[N, D] float64 factors on the loss."""
        ...


class Objective(Protocol):
    coupled: ClassVar[bool]
    """Whether the loss of a decision depends on other decisions, so that it needs the whole [N, D] matrix."""
    idle_at_zero: ClassVar[bool]
    """Whether a decision of advantage exactly 0 has no gradient (it may then be skipped)."""
    compares: ClassVar[bool]
    """Whether it reads ``batch.old``; if not, the old likelihood need not be measured."""

    @property
    def bounds(self) -> tuple[float, float] | None:
        """How far below and above 1 the ratio may move before the gradient stops, for the log; ``None`` without a
        clip."""
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
    def __call__(self, mask: Tensor) -> Tensor:
        """[N, D] weights that sum to 1, from the [N, D] bool mask of decisions that count; known before any forward."""
        ...


def iterate_blocks(rows: int, decisions: int, cells: int) -> Iterator[tuple[slice, slice]]:
    """Cover ``[rows, decisions]`` by blocks of at most ``cells`` entries: whole rows where they fit, else parts of
    one."""
    if cells >= decisions:
        size = max(1, cells // decisions)
        for start in range(0, rows, size):
            yield slice(start, min(start + size, rows)), slice(0, decisions)
        return
    for row in range(rows):
        for start in range(0, decisions, cells):
            yield slice(row, row + 1), slice(start, min(start + cells, decisions))
