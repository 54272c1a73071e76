"""Autoregressive language models as policies."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from flowrl.errors import UserError
from flowrl.models.causal.caches import CHOICES, Choice
from flowrl.models.causal.decoder import CachedDecoder, RecomputingDecoder, decoding_remarks
from flowrl.models.causal.engine import EngineOptions, VLLMEngine
from flowrl.models.exporting import deviation
from flowrl.models.text import probing
from flowrl.models.text.condition import TextCondition
from flowrl.models.text.policy import TextPolicy
from flowrl.types import Decoder, Engine

Way = Literal["padded", "by length", "recomputed"]
"""Of decoding: rows of any length in one batch, a batch for every prompt length, or whole sequences anew each time."""


class CausalPolicy(TextPolicy):
    """Implements :class:`flowrl.types.CausalPolicy`; made by :func:`flowrl.models.text.load.load_causal`."""

    family: ClassVar[str] = "causal"
    _engine: VLLMEngine | None = None
    engine_options: EngineOptions = EngineOptions()
    decoding: Way = "padded"
    """Whether prompts of unequal length are decoded in one batch, in one per length, or without a cache."""
    choice: Choice = CHOICES[0]
    """How rows of the cache are chosen."""

    def decoder(self, condition: TextCondition) -> Decoder:
        """Decoding from the prompts' ends; the cache of a prompt is computed once for all rows that share it."""
        self.text.check_room(condition, 1)
        if self.decoding == "recomputed":
            return RecomputingDecoder(self, condition)
        return CachedDecoder(self, condition, padded=self.decoding == "padded")

    def engine(self, name: str) -> Engine:
        """An inference engine with this policy's current weights, started at the first call. Raises `UserError`."""
        if name != "vllm":
            raise UserError(f"sampler.engine: there is no engine {name!r}; choose vllm, or null for our own decoding")
        if self._engine is None:
            self._engine = VLLMEngine(self, self.engine_options)
        return self._engine

    def remarks(self, length: int) -> list[str]:
        """What a user should know of how completions of ``length`` tokens are made."""
        return decoding_remarks(self.network.name, self.decoding, length)

    @torch.no_grad()
    def settle_decoding(self) -> None:
        """Find the quickest way of decoding whose logits are those of whole sequences, with rows that share a prompt,
        leave and change places. Raises `UserError` where there is none."""
        condition, tokens, targets = probing.probe_of(self)
        reference = probing.own_logits(self, (condition, tokens, targets)).view(*tokens.shape, -1)
        cached: tuple[Way, ...] = ("padded", "by length")
        ways = [(way, choice) for way in cached for choice in CHOICES]
        last: tuple[Way, Choice] = ("recomputed", CHOICES[0])
        for self.decoding, self.choice in [*ways, last]:
            try:
                worst = self._decoding_deviation(condition, tokens, reference)
            except probing.FAILURES:
                continue
            if worst <= probing.TOLERANCE[self.dtype]:
                return
        raise UserError(f"{self.network.name} cannot be decoded token by token; unsupported")

    def _decoding_deviation(self, condition: TextCondition, tokens: Tensor, reference: Tensor) -> float:
        """Largest deviation from ``reference`` [2, T, V] while five rows of two prompts become two, then one."""
        rows = torch.tensor([0, 1, 1, 0, 1])
        decoder, worst = self.decoder(condition.take(rows)), 0.0
        for place, left in enumerate(([0, 1, 2, 3, 4], [0, 1, 2, 3, 4], [4, 0, 3], [1, 0], [1])):
            if len(left) < len(rows):
                decoder.keep(torch.tensor(left))
                rows = rows[left]
            if place:
                decoder.push(tokens[rows, place - 1])
            worst = max(worst, deviation(decoder.logits, reference[rows, place]))
        return worst
