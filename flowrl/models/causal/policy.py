"""Autoregressive language models as policies."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch

from flowrl.errors import UserError
from flowrl.models.causal.decoder import CachedDecoder, RecomputingDecoder
from flowrl.models.causal.engine import VLLMEngine
from flowrl.models.exporting import deviation
from flowrl.models.text import probing
from flowrl.models.text.condition import TextCondition
from flowrl.models.text.policy import TextPolicy
from flowrl.types import Decoder, Engine


class CausalPolicy(TextPolicy):
    """Implements :class:`flowrl.types.CausalPolicy`; made by :func:`flowrl.models.text.load.load_causal`."""

    family: ClassVar[str] = "causal"
    _engine: VLLMEngine | None = None
    decoding: Literal["padded", "by length", "recomputed"] = "padded"
    """Whether prompts of unequal length are decoded in one batch, in one per length, or without a cache."""

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
            self._engine = VLLMEngine(self)
        return self._engine

    @torch.no_grad()
    def settle_decoding(self) -> None:
        """Find the quickest way of decoding whose logits are those of whole sequences. Raises `UserError`."""
        condition, tokens, targets = probing.probe_of(self)
        reference = probing.own_logits(self, (condition, tokens, targets)).view(*tokens.shape, -1)
        for way in ("padded", "by length", "recomputed"):
            self.decoding = way
            try:
                decoder = self.decoder(condition)
                worst = deviation(decoder.logits, reference[:, 0])
                decoder.push(tokens[:, 0])
                decoder.keep(torch.tensor([1, 0]))
                decoder.push(tokens[[1, 0], 1])
                worst = max(worst, deviation(decoder.logits, reference[[1, 0], 2]))
            except probing.FAILURES:
                continue
            if worst <= probing.TOLERANCE[self.dtype]:
                return
        raise UserError(f"{self.network.name} cannot be decoded token by token; unsupported")
