"""What image scorers share: checked pixels, and preprocessing that is Pillow's."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from flowrl.errors import UserError
from flowrl.media import quantise
from flowrl.scorers.loading import from_hub

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def score_images(
    images: Tensor, prompts: Sequence[str], batch_size: int, score: Callable[[Tensor, slice], Tensor]
) -> Tensor:
    """[N] float64 scores on the host, from `score(pixels [n, 3, H, W] uint8, rows)` on at most `batch_size` rows.

    NaN where an image is not finite. Raises `UserError` for images that are not [N, 3, H, W], or not one per prompt.
    """
    _check_images(images, prompts, batch_size)
    parts = [torch.zeros(0, dtype=torch.float64)]
    with torch.inference_mode():
        for start in range(0, len(images), batch_size):
            rows = slice(start, min(start + batch_size, len(images)))
            finite = torch.isfinite(images[rows]).flatten(1).all(dim=1).cpu()
            values = score(quantise(images[rows]), rows).double().cpu()
            parts.append(values.masked_fill(~finite, torch.nan))
    return torch.cat(parts).clone()


def judge_images(
    images: Tensor, prompts: Sequence[str], batch_size: int, score: Callable[[Tensor, slice], Tensor]
) -> Tensor:
    """[N] scores with a gradient to the images, where they are: as `score_images`, but `score` is given the images
    [n, 3, H, W] in [0, 1] as they are, not quantised, because a rounded number has no gradient."""
    _check_images(images, prompts, batch_size)
    starts = range(0, len(images), batch_size)
    parts = [score(images[start : start + batch_size].float(), slice(start, start + batch_size)) for start in starts]
    return torch.cat([part.to(images.device) for part in parts])


def _check_images(images: Tensor, prompts: Sequence[str], batch_size: int) -> None:
    if images.ndim != 4 or images.shape[1] != 3:
        raise UserError(f"image scorers take images [N, 3, H, W] in [0, 1], found {'x'.join(map(str, images.shape))}")
    if len(images) != len(prompts):
        raise UserError(f"image scorers need one prompt per image, found {len(images)} images, {len(prompts)} prompts")
    if batch_size < 1:
        raise UserError(f"batch_size must be at least 1, found {batch_size}")


@dataclass(frozen=True)
class Preprocessing:
    """How pixels become the input of a vision tower; resizing is Pillow's on uint8, as in the published pipelines.

    torchvision's antialiased resize of uint8 tensors differs by one level in 10 to 20 % of the pixels.
    """

    crop: int | None
    """Side of the square cut from the centre; None = no crop."""
    resize: int | tuple[int, int]
    """Length of the shortest edge, or exact (height, width)."""
    mean: Sequence[float] = CLIP_MEAN
    std: Sequence[float] = CLIP_STD
    resample: int = Image.Resampling.BICUBIC
    floor: bool = True
    """Where the crop starts when the margin is odd: rounded down (transformers) or to even (torchvision)."""

    def __call__(self, pixels: Tensor) -> Tensor:
        """float32 [N, 3, h, w] on the host from uint8 [N, 3, H, W]."""
        arrays = pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # Pillow resizes without the interpreter lock
            done = np.stack(list(pool.map(self._one, arrays)))
        return self._normalised(torch.from_numpy(done).permute(0, 3, 1, 2).float() / 255)

    def smooth(self, images: Tensor) -> Tensor:
        """The same [N, 3, h, w] of images [N, 3, H, W] in [0, 1], with a gradient to them: torch's antialiased resize
        has Pillow's filters and does not round. Raises `UserError` for a filter that torch does not have."""
        filters = {Image.Resampling.BICUBIC: "bicubic", Image.Resampling.BILINEAR: "bilinear"}
        if self.resample not in filters:
            raise UserError(f"preprocessing by Pillow's filter {self.resample} has no gradient; bicubic (3) has one")
        size = self._size(*images.shape[-2:])
        values = images.clamp(0, 1)
        if size != tuple(images.shape[-2:]):
            values = F.interpolate(values, size, mode=filters[Image.Resampling(self.resample)], antialias=True)
            values = values.clamp(0, 1)  # as a picture of whole levels is
        if self.crop is not None:
            top, left = self._margin(size[0]), self._margin(size[1])
            edges = (left, top, size[1] - left - self.crop, size[0] - top - self.crop)
            values = F.pad(values, [-edges[0], -edges[2], -edges[1], -edges[3]])  # black outside the image
        return self._normalised(values)

    def _normalised(self, values: Tensor) -> Tensor:
        mean, std = (torch.tensor(numbers).view(3, 1, 1).to(values) for numbers in (self.mean, self.std))
        return (values - mean) / std

    def _size(self, height: int, width: int) -> tuple[int, int]:
        """What an image is resized to."""
        if isinstance(self.resize, tuple):
            return self.resize
        short = min(height, width)
        return int(self.resize * height / short), int(self.resize * width / short)

    def _one(self, array: np.ndarray) -> np.ndarray:
        height, width = array.shape[:2]
        size = self._size(height, width)
        image = Image.fromarray(array)
        if size != (height, width):
            image = image.resize((size[1], size[0]), Image.Resampling(self.resample))
        if self.crop is None:
            return np.asarray(image)
        top, left = self._margin(size[0]), self._margin(size[1])
        return np.asarray(image.crop((left, top, left + self.crop, top + self.crop)))  # black outside the image

    def _margin(self, length: int) -> int:
        assert self.crop is not None
        return (length - self.crop) // 2 if self.floor else round((length - self.crop) / 2)


def read_preprocessing(path: str, name: str) -> Preprocessing:
    """The resize, crop, mean and std that `preprocessor_config.json` of a folder or hub repository states."""
    from transformers import AutoImageProcessor

    stated: Any = from_hub(lambda: AutoImageProcessor.from_pretrained(path), path, name)
    size, crop = dict(stated.size), dict(getattr(stated, "crop_size", None) or {})
    exact = size.get("height") is not None
    return Preprocessing(
        crop=int(crop["height"]) if getattr(stated, "do_center_crop", False) else None,
        resize=(int(size["height"]), int(size["width"])) if exact else int(size["shortest_edge"]),
        mean=tuple(stated.image_mean),
        std=tuple(stated.image_std),
        resample=int(stated.resample),
    )
