"""A reward that knows nothing: the control that shows what a score does without one."""

from __future__ import annotations

import zlib
from typing import Any

from torch import Tensor


def noise(images: Tensor, prompts: list[str], **columns: Any) -> list[float]:
    """A number of [0, 1] for each image that depends on its bytes alone, so that a repeated run draws the same. [N]"""
    return [zlib.crc32(image.numpy().tobytes()) / 2**32 for image in images]
