"""How well an image compresses: the size of its JPEG file. DDPO (arXiv:2305.13301) section 5.1.

kB of 1000 bytes at quality 95, as in DDPO's released code; flow_grpo divides minus that number by 500. The size grows
with the number of pixels, so scores of different resolutions do not compare. Quantised to uint8; chroma at half
resolution (4:2:0), Pillow's default, is stated because without it files of noise are twice as large. Other versions of
Pillow's JPEG library may differ by some bytes, so its version is part of the reward's.
"""

from __future__ import annotations

import io
from typing import Any

import torch
from PIL import Image, features
from torch import Tensor

from flowrl.media import quantise

QUALITY, SUBSAMPLING = 95, "4:2:0"
VERSION = f"quality-{QUALITY}:{SUBSAMPLING}:libjpeg-{features.version('libjpeg_turbo') or features.version('jpg')}-1"
RANGE = {"jpeg_compressibility": "below 0 (minus kB)", "jpeg_incompressibility": "above 0 (kB)"}
NEEDS = ()


class jpeg_compressibility:  # noqa: N801 - the name a config uses
    """Minus the JPEG size in kB: rewards smooth, simple images."""

    version = f"jpeg_compressibility:{VERSION}"

    def __call__(self, images: Tensor, prompts: list[str], **columns: Any) -> Tensor:
        """Scores [N] of images [N, 3, H, W] in [0, 1]."""
        return -kilobytes(images)


class jpeg_incompressibility:  # noqa: N801 - the name a config uses
    """JPEG size in kB: rewards texture and noise."""

    version = f"jpeg_incompressibility:{VERSION}"

    def __call__(self, images: Tensor, prompts: list[str], **columns: Any) -> Tensor:
        """Scores [N] of images [N, 3, H, W] in [0, 1]."""
        return kilobytes(images)


def kilobytes(images: Tensor) -> Tensor:
    """[N] sizes of images [N, 3, H, W] in [0, 1] as JPEG files, in kB."""
    pixels = quantise(images).permute(0, 2, 3, 1).cpu().numpy()
    return torch.tensor([_size(image) / 1000 for image in pixels], dtype=torch.float64)


def _size(image: Any) -> int:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=QUALITY, subsampling=SUBSAMPLING)
    return buffer.tell()
