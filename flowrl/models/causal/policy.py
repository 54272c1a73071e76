"""Autoregressive language models as policies."""

from __future__ import annotations

from typing import ClassVar, Literal

from flowrl.errors import UserError
from flowrl.models.causal.caches import SELECT_METHODS, SelectMethod
from flowrl.models.causal.decoder import CachedDecoder, RecomputingDecoder, decoding_remarks
from flowrl.models.causal.engine import EngineOptions, VLLMEngine
from flowrl.models.text.condition import TextCondition
from flowrl.models.text.policy import TextPolicy
from flowrl.types import Decoder, Engine

Decoding = Literal["padded", "by length", "recomputed"]
"""Of decoding: rows of any length in one batch, a batch for every prompt length, or whole sequences anew each time."""


class CausalPolicy(TextPolicy):
    """Implements :class:`flowrl.types.CausalPolicy`; made by :func:`flowrl.models.causal.load.load_causal`."""

    family: ClassVar[str] = "causal"
    _engine: VLLMEngine | None = None
    engine_options: EngineOptions = EngineOptions()
    decoding: Decoding = "padded"
    """Whether prompts of unequal length are decoded in one batch, in one per length, or without a cache."""
    select_method: SelectMethod = SELECT_METHODS[0]
    """How rows of the cache are chosen."""

    def decoder(self, condition: TextCondition) -> Decoder:
        """Decoding from the prompts' ends; the cache of a prompt is computed once for all rows that share it."""
        self.codec.check_room(condition, 1)
        if self.decoding == "recomputed":
            return RecomputingDecoder(self, condition)
        return CachedDecoder(self, condition, padded=self.decoding == "padded", select_method=self.select_method)

    def engine(self, name: str) -> Engine:
        """An inference engine with this policy's current weights, started at the first call. Raises `UserError`."""
        if name != "vllm":
            raise UserError(f"sampler.engine: there is no engine {name!r}; choose vllm, or null for our own decoding")
        if self.image_tokens is not None:
            raise UserError("sampler.engine=vllm: it would draw words among a picture's tokens; leave the engine out")
        if self._engine is None:
            self._engine = VLLMEngine(self, self.engine_options)
        return self._engine

    def remarks(self, length: int) -> list[str]:
        """What a user should know of how completions of ``length`` tokens are made."""
        return decoding_remarks(self.network.name, self.decoding, length)
