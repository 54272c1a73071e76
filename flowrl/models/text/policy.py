"""What autoregressive and masked-diffusion language models share as policies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from flowrl.devices import put
from flowrl.math.tokens import KEPT, exclude
from flowrl.models.lora import Adaptation
from flowrl.models.sharding import weight_sets
from flowrl.models.source import ModelSource
from flowrl.models.text.codec import TextCodec
from flowrl.models.text.comparing import distributions_of, divergences
from flowrl.models.text.condition import TextCondition
from flowrl.models.text.critic import Critic
from flowrl.models.text.image_tokens import ImageTokens
from flowrl.models.text.layout import Forward, TokenLayout
from flowrl.models.text.network import Network, Reading
from flowrl.models.text.overlong_prompts import Overlong, fit_prompts
from flowrl.models.weights import LIVE, HasWeightSets
from flowrl.types import ALL_TOKENS, Distributions, OneProcess, Prompt, PromptRows, Ranks, TokenScores, Truncation

CRITIC = "critic."
"""Prefix of the critic among a policy's weights."""


class TextPolicy(HasWeightSets):
    """Implements :class:`flowrl.types.TokenPolicy`; what both families of language models share."""

    family: ClassVar[str]

    def __init__(
        self,
        network: Network,
        codec: TextCodec,
        layout: TokenLayout,
        source: ModelSource,
        *,
        excluded: tuple[int, ...] = (),
        critic: Critic | None = None,
    ) -> None:
        self.network = network
        self.codec = codec
        self.layout = layout
        self.source = source
        self.image_tokens: ImageTokens | None = None
        """What makes pictures of completions; ``None``: they are texts."""
        self.origin: dict[str, Any] | None = None
        """Of a run's policy, the settings that its exports remember."""
        self.excluded = excluded
        """Tokens of probability 0."""
        self.critic = critic
        self.end_tokens, self.pad_token = codec.ends, codec.pad
        self.vocabulary = 0
        """Width of the logits."""
        extra = {} if critic is None else {f"{CRITIC}{name}": p for name, p in critic.parameters().items()}
        self.pace = network.pace
        self.weights = weight_sets(network.model, network.adaptation.parameters, apart=extra)
        self._trained = [*network.adaptation.parameters.values(), *extra.values()]

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        return self.network.device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the frozen parts."""
        return self.network.placement.dtype

    @property
    def network_calls(self) -> int:
        """Network rows evaluated so far, the critic's included."""
        return self.network.calls + (0 if self.critic is None else self.critic.calls)

    # ------------------------------------------------------------------------------------------------------- texts
    def condition(self, prompts: Sequence[Prompt]) -> TextCondition:
        """Texts and conversations as tokens, in the tokenizer's chat template where it is used."""
        made = self.codec.condition([prompt.model_input for prompt in prompts])
        return replace(made, origin=PromptRows.of(prompts)) if self.teachers else made

    @contextmanager
    def prefilled(self, prefill: str) -> Iterator[None]:
        """Conditions made inside let every answer begin with ``prefill``, whatever ``model.prefill`` says."""
        before = self.codec
        self.codec = replace(before, prompt_format=replace(before.prompt_format, prefill=prefill))
        try:
            yield
        finally:
            self.codec = before

    def fit_prompts(self, prompts: Sequence[Prompt], completion: int, overlong: Overlong = "error") -> list[Prompt]:
        """The prompts that fit into the context before a completion of that many tokens (see
        `flowrl.models.text.overlong_prompts`). Completions that are pictures have one length."""
        if self.image_tokens is not None:
            self.image_tokens.check_length(completion)
        return fit_prompts(self.codec, prompts, completion, overlong)

    def lengths(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[int]:
        """Tokens of recorded completions of these prompts, without the end token."""
        return [len(row) - 1 for row in self.codec.completions(texts)]

    def remarks(self, length: int) -> list[str]:
        """What a user should know of how completions of ``length`` tokens are made."""
        return []

    def decode(self, final: Tensor) -> list[str] | Tensor:
        """Texts of completions [N, T], up to the first end token and without special tokens unless they are kept, or
        images [N, 3, H, W] where the model has an image tokenizer."""
        return self.codec.texts(final) if self.image_tokens is None else self.image_tokens.images(final)

    def encode(self, texts: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
        """Completions [N, length] that say these texts and end, padded, and bool [N, length] where their tokens are; a
        longer one is cut and does not end."""
        rows = self.codec.completions(texts)
        tokens = torch.full((len(rows), length), self.pad_token, dtype=torch.int64)
        mask = torch.zeros(len(rows), length, dtype=torch.bool)
        for index, row in enumerate(rows):
            kept = row[:length]
            tokens[index, : len(kept)] = torch.tensor(kept)
            mask[index, : len(kept)] = True
        return tokens, mask

    # ------------------------------------------------------------------------------------------------- predictions
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
        """As `flowrl.types.TokenPolicy.score`; 0 at other positions. ``entropy`` is that of the tempered and truncated
        distribution; values are the critic's, where there is one and the live weights are in use. Only the positions
        asked for pass through the vocabulary layer, chunk by chunk."""
        logp, entropies, values, places = [], [], [], []
        readings: list[Reading] = []
        balances: list[tuple[Tensor, Tensor]] = []
        critic = self.critic if self.weights.active == LIVE else None
        wanted = put(labels.flatten(), self.device)
        heat: dict[str, Any] = {"temperature": temperature, "excluded": self.excluded}
        room = KEPT  # of all calls together, which live until backward
        calls = list(self._calls(condition, tokens, targets))
        flat = [call.place for call in calls]
        further = 0 if self.pace is None else self.pace.most(len(calls)) - len(calls)  # asked before the others compute
        for call in calls:
            reading = self.network.read(call.inputs, call.rows, call.columns, inside=call.inside)
            place = put(call.place, self.device)
            if reading.balance is not None:
                balances.append((self._samples(call, len(reading.balance), tokens.shape[1]), reading.balance))
            cut = {"entropy": entropy, "collision": collision, "truncation": truncation, "keep": room}
            found, spread = self.network.log_softmax(reading, wanted[place], **heat, **cut)
            room -= len(place) * self.vocabulary
            logp.append(found)
            places.append(place)
            if spread is not None:
                entropies.append(spread if collision else spread[:, None])
            if show or beside:
                readings.append(reading)
            if critic is not None:
                values.append(critic(reading, call))
        scores = self._spread(logp, places, tokens.shape)
        if further:
            scores = scores + self._idle(condition, tokens, further)
        far = {"beta": beta, "top": top, **heat}
        apart = {n: divergences(self.network, readings, flat, each, far) for n, each in beside.items()}
        both = [self._spread([part[:, i] for part in entropies], places, tokens.shape) for i in range(1 + collision)]
        return TokenScores(
            scores,
            both[0] if entropy or collision else None,
            self._spread(values, places, tokens.shape) if critic is not None else None,
            self._balance(balances, len(tokens)),
            distributions_of(self.network, readings, flat, tokens.shape, self.vocabulary) if show else (),
            {name: self._spread(parts, places, tokens.shape) for name, parts in apart.items()},
            both[1] if collision else None,
        )

    def _idle(self, condition: TextCondition, tokens: Tensor, calls: int) -> Tensor:
        """0, with a gradient, of further calls of the network: another process makes so many more for its rows."""
        total, one = torch.zeros((), device=self.device), tokens[:1].cpu()
        call = next(iter(self.layout(condition.take(torch.tensor([0])), one, torch.ones_like(one, dtype=torch.bool))))
        for _ in range(calls):
            total = total + 0 * self.network.logits(self.network.read(call.inputs, call.rows, call.columns)).sum()
        return total

    def logits(self, condition: TextCondition, tokens: Tensor, targets: Tensor) -> Tensor:
        """[K, V] float32 logits at the K True entries of ``targets`` [N, T], row by row; impossible tokens have
        -inf."""
        found, places = [], []
        for call in self._calls(condition, tokens, targets):
            reading = self.network.read(call.inputs, call.rows, call.columns)
            found.append(self.network.logits(reading))
            places.append(call.place)
        if not found:
            return torch.zeros(0, self.vocabulary, device=self.device)
        logits = found[0]
        if len(found) > 1:
            logits = torch.cat(found)[put(torch.cat(places).argsort(), self.device)]
        return exclude(logits, self.excluded)

    def _calls(self, condition: TextCondition, tokens: Tensor, targets: Tensor) -> Iterator[Forward]:
        self.codec.check_room(condition, tokens.shape[1])
        return self.layout(condition, tokens.cpu(), targets.cpu())

    def _spread(self, parts: list[Tensor], places: list[Tensor], shape: torch.Size) -> Tensor:
        """[N, T] float32 with the values of some positions, 0 elsewhere."""
        flat = torch.zeros(shape.numel(), device=self.device)
        if parts:
            flat = flat.index_copy(0, torch.cat(places), torch.cat(parts))
        return flat.view(shape)

    def _samples(self, call: Forward, rows: int, length: int) -> Tensor:
        """[n] int64: the sample of each row of a call."""
        sample = torch.zeros(rows, dtype=torch.int64)
        sample[call.rows] = call.place // length
        return put(sample, self.device)

    def _balance(self, parts: list[tuple[Tensor, Tensor]], count: int) -> Tensor | None:
        """[N] float32: 0 for rows that were not asked for anything."""
        if not parts:
            return None if self.network.routers is None else torch.zeros(count, device=self.device)
        rows, values = (torch.cat(each) for each in zip(*parts, strict=True))
        return torch.zeros(count, device=self.device).index_copy(0, rows, values)

    def metrics(self, ranks: Ranks | None = None) -> Mapping[str, float]:
        """What the network's routers did since the last call, over all processes; nothing for models without."""
        return {} if self.network.routers is None else self.network.routers.metrics(ranks or OneProcess())

    # ----------------------------------------------------------------------------------------------------- weights
    def parameters(self) -> list[nn.Parameter]:
        """The trainable parameters: the network's in its order, then the critic's."""
        return list(self._trained)

    def critic_parameters(self) -> list[nn.Parameter]:
        """Those of them that are the critic's."""
        return [] if self.critic is None else list(self.critic.parameters().values())

    @property
    def adaptation(self) -> Adaptation:
        """What is trained in the network."""
        return self.network.adaptation
