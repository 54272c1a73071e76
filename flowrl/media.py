"""Images as a saved picture holds them."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor


def quantise(images: Tensor) -> Tensor:
    """uint8 of the same shape, `round(255 x)` of images in [0, 1]: what a saved picture holds, which is what scorers
    saw; uint8 as it is."""
    if images.dtype == torch.uint8:
        return images
    return images.float().nan_to_num().clamp_(0, 1).mul_(255).round_().byte()  # in the copy that nan_to_num makes


def as_floats(images: Tensor) -> Tensor:
    """Images in [0, 1], also of those that are kept as uint8."""
    return images.float() / 255 if images.dtype == torch.uint8 else images


def picture(image: Tensor) -> Image.Image:
    """[3, H, W] in [0, 1], or uint8, as an 8-bit RGB picture."""
    return Image.fromarray(quantise(image).permute(1, 2, 0).cpu().numpy())
