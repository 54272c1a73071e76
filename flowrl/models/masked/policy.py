"""Masked-diffusion language models as policies."""

from __future__ import annotations

from typing import ClassVar

from flowrl.models.masked.reader import PlainReader, PrefixReader
from flowrl.models.source import ModelSource
from flowrl.models.text.codec import TextCodec
from flowrl.models.text.condition import TextCondition
from flowrl.models.text.layout import TokenLayout
from flowrl.models.text.network import Network
from flowrl.models.text.policy import TextPolicy


class MaskedPolicy(TextPolicy):
    """Implements :class:`flowrl.types.MaskedPolicy`; made by :func:`flowrl.models.masked.load.load_masked`.

    The mask token has probability 0: it is never a prediction.
    """

    family: ClassVar[str] = "masked"

    def __init__(
        self, network: Network, codec: TextCodec, layout: TokenLayout, source: ModelSource, *, mask_token: int
    ) -> None:
        super().__init__(network, codec, layout, source, excluded=(mask_token,))
        self.mask_token = mask_token
        self.keeps_prefixes = False
        """Whether sampling reads prompt and finished blocks only once."""

    def reader(self, condition: TextCondition) -> PlainReader | PrefixReader:
        """Readings of completions that are filled from left to right, block by block."""
        return (PrefixReader if self.keeps_prefixes else PlainReader)(self, condition)
