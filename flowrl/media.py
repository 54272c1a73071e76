"""Images as a saved picture holds them."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
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


def animation(frames: Sequence[np.ndarray], most: int = 250_000) -> bytes:
    """A GIF that repeats, of frames [H, W, 3] uint8, ten a second, the last one for longer; of at most ``most`` bytes:
    smaller, then of fewer frames, until it is. 64 colours, of the first, the middle and the last frame, so that none
    flickers."""
    some = Image.fromarray(np.concatenate([frames[0], frames[len(frames) // 2 - 1], frames[-1]]))
    palette = some.quantize(64, dither=Image.Dither.NONE)
    for side, every in ((320, 1), (240, 1), (240, 2), (160, 2), (160, 4), (96, 4), (96, 8)):
        chosen = [Image.fromarray(frame) for frame in [*frames[:-1:every], frames[-1]]]
        for image in chosen:
            image.thumbnail((side, side))
        made = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in chosen]
        content = io.BytesIO()
        seconds = [100 * every] * (len(made) - 1) + [1500]
        made[0].save(content, "GIF", save_all=True, append_images=made[1:], duration=seconds, loop=0, disposal=1)
        if content.tell() <= most:
            break
    return content.getvalue()


def read_picture(value: Any) -> Tensor:
    """[3, H, W] float32 in [0, 1] of a picture as data sets hold them, or such a tensor. Raises as `open_picture`."""
    if isinstance(value, Tensor):
        return value
    pixels = np.asarray(open_picture(value), dtype=np.float32)
    return torch.from_numpy(pixels / 255).permute(2, 0, 1)


def open_picture(value: Any) -> Image.Image:
    """An 8-bit RGB picture of what data sets hold: a path, bytes, ``{bytes, path}`` or a PIL image. What is transparent
    becomes white. Raises `ValueError` for anything else, `OSError` for a file that is missing or no picture."""
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str):
        value = Image.open(Path(value).expanduser())
    elif isinstance(value, bytes):
        value = Image.open(io.BytesIO(value))
    if not isinstance(value, Image.Image):
        raise ValueError(f"found {type(value).__name__}")
    if value.has_transparency_data:
        above = value.convert("RGBA")
        value = Image.alpha_composite(Image.new("RGBA", above.size, "white"), above)
    return value.convert("RGB")
