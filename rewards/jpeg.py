"""How well an image compresses: the size of its JPEG file. DDPO (arXiv:2305.13301) section 5.1.

kB of 1000 bytes at quality 95, as in DDPO's released code; flow_grpo divides the same number by 500. The size grows
with the number of pixels, so scores of different resolutions do not compare.
"""

from __future__ import annotations

import io
from typing import Any

import torch
from PIL import Image
from torch import Tensor

QUALITY = 95
RANGE = {"jpeg_compressibility": "below 0 (minus kB)", "jpeg_incompressibility": "above 0 (kB)"}
NEEDS = ()


def jpeg_compressibility(images: Tensor, prompts: list[str], **columns: Any) -> Tensor:
    """Minus the JPEG size in kB: rewards smooth, simple images."""
    return -jpeg_incompressibility(images, prompts)


def jpeg_incompressibility(images: Tensor, prompts: list[str], **columns: Any) -> Tensor:
    """JPEG size in kB [N] of images [N, 3, H, W] in [0, 1]: rewards texture and noise."""
    pixels = (images.float().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return torch.tensor([_kilobytes(image) for image in pixels], dtype=torch.float64)


def _kilobytes(image: Any) -> float:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=QUALITY)
    return buffer.tell() / 1000
