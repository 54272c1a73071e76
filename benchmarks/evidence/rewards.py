"""Rewards that only the evidence pages need."""

from __future__ import annotations

import zlib
from typing import Any

from torch import Tensor


def noise(images: Tensor, prompts: list[str], **columns: Any) -> list[float]:
    """A reward that knows nothing, the control that shows what a score does without one: a number of [0, 1] for each
    image that depends on its bytes alone, so that a repeated run draws the same. [N]"""
    return [zlib.crc32(image.numpy().tobytes()) / 2**32 for image in images]


def brightness(images: Tensor, prompts: list[str], **columns: Any) -> Tensor:
    """Mean of all pixels on the scale 0 to 255, which is another one than that of most scores. [N]"""
    return 255 * images.double().mean(dim=(1, 2, 3))
