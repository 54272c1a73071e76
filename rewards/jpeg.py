"""How well an image compresses: the size of its JPEG file. DDPO (arXiv:2305.13301) section 5.1.

kB of 1000 bytes at quality 95, as in DDPO's released code; flow_grpo divides minus that number by 500. The size grows
with the number of pixels, so scores of different resolutions do not compare. Quantised to uint8; chroma at half
resolution (4:2:0), Pillow's default, is stated because without it files of noise are twice as large. Other versions of
Pillow's JPEG library may differ by some bytes, so its version is part of the reward's.

A file's size has no gradient. That of `smooth_kilobytes` stands in for it: the bits that the file's own quantised
cosine coefficients take, counted softly.
"""

from __future__ import annotations

import io
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image, features
from torch import Tensor

from flowrl.media import quantise

QUALITY, SUBSAMPLING = 95, "4:2:0"
VERSION = f"quality-{QUALITY}:{SUBSAMPLING}:libjpeg-{features.version('libjpeg_turbo') or features.version('jpg')}-1"
CLOSE = 0.5
"""How far the soft sizes may be from those of files, in standard deviations of the latter: textures of one energy pack
differently."""
RANGE = {"jpeg_compressibility": "below 0 (minus kB)", "jpeg_incompressibility": "above 0 (kB)"}
NEEDS = ()


class jpeg_compressibility:  # noqa: N801 - the name a config uses
    """Minus the JPEG size in kB: rewards smooth, simple images."""

    version = f"jpeg_compressibility:{VERSION}"

    def __call__(self, images: Tensor, prompts: list[str], **columns: Any) -> Tensor:
        """Scores [N] of images [N, 3, H, W] in [0, 1]."""
        return -kilobytes(images)

    gradient_within = CLOSE

    def gradient(self, images: Tensor, prompts: list[str], **columns: Any) -> Tensor:
        """About the same scores, with a gradient to the images."""
        return -smooth_kilobytes(images)


class jpeg_incompressibility:  # noqa: N801 - the name a config uses
    """JPEG size in kB: rewards texture and noise."""

    version = f"jpeg_incompressibility:{VERSION}"

    def __call__(self, images: Tensor, prompts: list[str], **columns: Any) -> Tensor:
        """Scores [N] of images [N, 3, H, W] in [0, 1]."""
        return kilobytes(images)

    gradient_within = CLOSE

    def gradient(self, images: Tensor, prompts: list[str], **columns: Any) -> Tensor:
        """About the same scores, with a gradient to the images."""
        return smooth_kilobytes(images)


def kilobytes(images: Tensor) -> Tensor:
    """[N] sizes of images [N, 3, H, W] in [0, 1] as JPEG files, in kB."""
    pixels = quantise(images).permute(0, 2, 3, 1).cpu().numpy()
    return torch.tensor([_size(image) / 1000 for image in pixels], dtype=torch.float64)


def _size(image: Any) -> int:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=QUALITY, subsampling=SUBSAMPLING)
    return buffer.tell()


LUMINANCE = (
    *(16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56),
    *(14, 17, 22, 29, 51, 87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92),
    *(49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMINANCE = (
    *(17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99, 24, 26, 56, 99, 99, 99, 99, 99),
    *(47, 66, 99, 99, 99, 99, 99, 99, *[99] * 32),
)
"""The example tables of the standard (ITU-T T.81, annex K.1), which libjpeg scales by the quality."""
TO_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))


def smooth_kilobytes(images: Tensor) -> Tensor:
    """[N] about `kilobytes`, with a gradient: every quantised coefficient q of the 8x8 cosine transforms, of luminance
    and of chroma at half resolution, takes about ``BITS log2(1 + |q|)`` bits, and a file `HEADER` bytes."""
    ycc = torch.einsum("ij,njhw->nihw", torch.tensor(TO_YCC).to(images), 255 * images.clamp(0, 1))
    ycc = ycc - torch.tensor([128.0, 0, 0]).to(images)[:, None, None]
    bits = _bits(ycc[:, :1], LUMINANCE) + _bits(F.avg_pool2d(ycc[:, 1:], 2, ceil_mode=True), CHROMINANCE)
    return (HEADER + bits / 8) / 1000


BITS, HEADER = 2.71, 659
"""Fitted to files of quality 95 of drawings, colour fields and noise of 32 to 128 pixels; within each of the first two
kinds the correlation is 0.99."""


def _bits(planes: Tensor, table: tuple[int, ...]) -> Tensor:
    """[N] of planes [N, C, H, W] whose edges are repeated up to whole blocks."""
    high, wide = (-planes.shape[-2] % 8, -planes.shape[-1] % 8)
    whole = F.pad(planes, (0, wide, 0, high), mode="replicate")
    n, c, height, width = whole.shape
    blocks = whole.reshape(n, c, height // 8, 8, width // 8, 8).transpose(3, 4)
    place = torch.arange(8).to(planes)
    cosine = torch.cos(torch.pi / 8 * (place[None] + 0.5) * place[:, None]) / 2
    cosine[0] /= 2**0.5
    found = torch.einsum("ui,nchwij,vj->nchwuv", cosine, blocks, cosine)
    scale = 200 - 2 * QUALITY
    steps = torch.tensor([max(1, (step * scale + 50) // 100) for step in table]).to(planes).view(8, 8)
    magnitude = ((found / steps).square() + 0.01).sqrt() - 0.1  # |q| with a derivative at 0
    return BITS * torch.log2(1 + magnitude).flatten(1).sum(dim=1)
