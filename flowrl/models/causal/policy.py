"""Autoregressive language models as policies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from torch import Tensor

from flowrl.errors import UserError
from flowrl.models.causal.caches import SELECT_METHODS, SelectMethod
from flowrl.models.causal.decoder import CachedDecoder, RecomputingDecoder, decoding_remarks
from flowrl.models.causal.engine import EngineOptions, VLLMEngine
from flowrl.models.causal.image_tokens import ImageTokens
from flowrl.models.text.condition import TextCondition
from flowrl.models.text.overlong_prompts import Overlong
from flowrl.models.text.policy import TextPolicy
from flowrl.types import Decoder, Engine, Prompt

Decoding = Literal["padded", "by length", "recomputed"]
"""Of decoding: rows of any length in one batch, a batch for every prompt length, or whole sequences anew each time."""


class CausalPolicy(TextPolicy):
    """Implements :class:`flowrl.types.CausalPolicy`; made by :func:`flowrl.models.causal.load.load_causal`."""

    family: ClassVar[str] = "causal"
    _engine: VLLMEngine | None = None
    image_tokens: ImageTokens | None = None
    """What makes pictures of completions; ``None``: they are texts."""
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
        if self._engine is None:
            self._engine = VLLMEngine(self, self.engine_options)
        return self._engine

    def decode(self, final: Tensor) -> list[str] | Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Texts of completions [N, T], or images [N, 3, H, W] where the model has an image tokenizer."""
        return super().decode(final) if self.image_tokens is None else self.image_tokens.images(final)

    def fit_prompts(self, prompts: Sequence[Prompt], completion: int, overlong: Overlong = "error") -> list[Prompt]:
        """As of all language models; completions that are pictures have one length."""
        if self.image_tokens is not None:
            self.image_tokens.check_length(completion)
        return super().fit_prompts(prompts, completion, overlong)

    def remarks(self, length: int) -> list[str]:
        """What a user should know of how completions of ``length`` tokens are made."""
        return decoding_remarks(self.network.name, self.decoding, length)
