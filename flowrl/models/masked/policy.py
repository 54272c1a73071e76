"""Masked-diffusion language models as policies."""

from __future__ import annotations

from typing import ClassVar

from flowrl.models.loading import Source
from flowrl.models.text.condition import Tokens
from flowrl.models.text.layout import Layout
from flowrl.models.text.network import Network
from flowrl.models.text.policy import TextPolicy


class MaskedPolicy(TextPolicy):
    """Implements :class:`flowrl.types.MaskedPolicy`; made by :func:`flowrl.models.text.load.load_masked`.

    The mask token has probability 0: it is never a prediction.
    """

    family: ClassVar[str] = "masked"

    def __init__(self, network: Network, text: Tokens, layout: Layout, source: Source, *, mask_token: int) -> None:
        super().__init__(network, text, layout, source, excluded=(mask_token,))
        self.mask_token = mask_token
