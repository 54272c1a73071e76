"""Protocols of generative models, by family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from flowrl.types.decisions import Distributions, TokenScores
from flowrl.types.prompts import Prompt
from flowrl.types.rollouts import ALL_TOKENS, CfgGrad, Condition, Truncation


class Policy(Protocol):
    """A generative model with named sets of its trainable weights."""

    def condition(self, prompts: Sequence[Prompt]) -> Condition:
        """What the network is conditioned on for each prompt [N]; what prompts share is computed once."""
        ...

    def decode(self, final: Tensor) -> Tensor | list[str]:
        """Images [N, 3, H, W] in [0, 1] on the host, or texts, of a rollout's final samples."""
        ...

    def using(self, name: str) -> AbstractContextManager[Self]:
        """The policy that computes with the weight set ``name``, as long as the context is open; gradients are disabled
        unless the set is ``live``."""
        ...

    def update_ema(self, name: str, decay: float) -> None:
        """``name <- decay * name + (1 - decay) * live``; creates the set as a copy of live when absent."""
        ...

    def parameters(self) -> list[torch.nn.Parameter]:
        """The trainable parameters, in a fixed order."""
        ...


class Weights(Protocol):
    """The trained weights of a policy and named copies of them."""

    def names(self) -> list[str]:
        """The sets that exist, ``live`` first."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Every tensor of every set, as ``<set>/<parameter>``."""
        ...

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` returned. Raises `ValueError` if it does not fit."""
        ...

    def sha256(self, name: str) -> str:
        """Of a set's values; of a dropped reference's, as they were."""
        ...

    def drop_reference(self, *, hashed: bool = True) -> None:
        """Free the reference where nothing compares with it; its hash stays known, unless nobody will ask."""
        ...


class TrainedPolicy(Policy, Protocol):
    """A policy that a run trains."""

    device: torch.device
    weights: Weights
    network_calls: int
    """Network rows evaluated so far."""


class FlowPolicy(Policy, Protocol):
    """A continuous policy in canonical coordinates."""

    latent_shape: tuple[int, ...]
    device: torch.device

    def decode(self, final: Tensor, graph: bool = False) -> Tensor:
        """Images [N, 3, H, W] in [0, 1] of clean latents, on the host; with ``graph`` where they were made, and with a
        gradient to the latents."""
        ...

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

    def encode(self, images: Sequence[Tensor], seeds: Tensor) -> Tensor:
        """Clean latents [N, ...] that `decode` makes these images of, each [3, h, w] in [0, 1]; what an encoder draws
        at random follows from ``seeds`` [N]."""
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

    @property
    def row_lengths(self) -> Tensor:
        """[N] int64: prompt tokens of each row."""
        ...

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

    def encode(self, texts: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
        """Completions [N, length] that say these texts and end, padded, and bool [N, length] where their tokens are; a
        longer one is cut and does not end."""
        ...

    def score(
        self,
        condition: TextCondition,
        tokens: Tensor,
        targets: Tensor,
        labels: Tensor,
        *,
        temperature: float = 1.0,
        entropy: bool = False,
        collision: bool = False,
        truncation: Truncation = ALL_TOKENS,
        show: bool = False,
        beside: Mapping[str, Sequence[Distributions]] = MappingProxyType({}),
        beta: float = 0.5,
        top: int | None = None,
    ) -> TokenScores:
        """Log-probability of ``labels`` [N, T] at ``targets`` [N, T] bool, for inputs ``tokens`` [N, T].

        Only the positions asked for pass through the vocabulary layer, in chunks. ``temperature`` divides the logits,
        ``truncation`` then leaves the tokens that it keeps, and the label. ``show`` also returns what the distributions
        are computed of, for another policy's ``beside``: it measures how far its own whole distributions, at this
        temperature, are from those (`flowrl.math.divergences`, with its ``beta`` and ``top``).
        """
        ...


class RewardPolicy(Policy, Protocol):
    """A reward model, which rates samples instead of making them."""

    device: torch.device

    def encode(self, texts: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
        """As `TokenPolicy.encode`."""
        ...

    def read(self, prompts: Sequence[Prompt], texts: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
        """Conversations [N, length] as the network reads them, padded, and bool [N, length] where their tokens are; a
        longer one loses its beginning."""
        ...

    def rate(self, condition: Any, tokens: Tensor, mask: Tensor) -> Tensor:
        """[N] float32 ratings of conversations that `read` gave, with gradient where enabled."""
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
