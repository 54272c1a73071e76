"""The samples of an iteration as they are made: put together in their final size, images on the host."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from flowrl.media import quantise
from flowrl.score.samples import joined
from flowrl.types import Samples

PICTURES_FROM = 1 << 30
"""Bytes of an iteration's float32 images from which on ``train.images: auto`` keeps them as uint8."""


class KeptSamples:
    """Chunks of ``count`` samples in all, with their images in one tensor [N, 3, H, W] that is there from the first
    chunk on.

    pictures_from: bytes of a float32 image from which on uint8 is kept, what a saved picture holds, a quarter of the
    memory. Rewards see every chunk as it was made, so scores do not change by it; the monitor, which looks at the
    images later, sees them rounded to 1/255.
    """

    def __init__(self, count: int, *, pictures_from: float = math.inf) -> None:
        self._count, self._pictures_from = count, pictures_from
        self._chunks: list[Samples] = []
        self._images: Tensor | None = None
        self._rows = 0

    def add(self, samples: Samples) -> Samples:
        """Keep the next samples; what is to be scored: the same, their images without a second copy where they are kept
        as they are."""
        images = samples.images
        if images is None:
            self._chunks.append(samples)
            return samples
        pictures = 4 * images[:1].numel() >= self._pictures_from
        kept = quantise(images) if pictures else images
        if len(samples) >= self._count:  # also of a sampler that makes other rows than were drawn
            self._chunks.append(replace(samples, images=kept))
            return samples
        if self._images is None:
            self._images = torch.empty(self._count, *images.shape[1:], dtype=kept.dtype)
        before, self._rows = self._rows, self._rows + len(samples)
        room = self._images[before : self._rows]
        room.copy_(kept)
        self._chunks.append(replace(samples, images=None))
        return samples if pictures else replace(samples, images=room)

    def all(self) -> Samples:
        """All of them, in order."""
        made = joined(self._chunks)
        return made if self._images is None else replace(made, images=self._images[: self._rows])
