"""Reads figures back from pixels.

Background estimate -> contrast mask -> connected components -> palette colour by projection -> figure by the overlap
(soft IoU) with templates of the component's own area and centroid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from scipy import ndimage
from torch import Tensor, nan_to_num

from flowrl.worlds.images.scenes import CROSS_ARM, Box

CONTRAST = 0.22  # RGB distance from the background that makes a pixel foreground
SPECK = 3  # components of fewer pixels are ignored
PURE = 0.12  # largest share of a component's energy that its colour may leave unexplained
OFF_PALETTE = 0.25  # largest RGB distance of a component's core from its palette colour
IDENTIFIED = 0.75  # quality from which a component counts as a shape


@dataclass(frozen=True)
class Detection:
    """One connected component; `shape` is None for junk: a blob that is no figure or has no single colour."""

    shape: str | None
    color: str | None
    box: Box
    quality: float  # template overlap in [0, 1], 0 if the colour is mixed or off the palette
    guess: str  # the best template even if junk


@dataclass(frozen=True)
class Match:
    """What components [M] resemble most."""

    names: Sequence[str]
    overlaps: np.ndarray  # [M] in [0, 1]
    thresholds: np.ndarray  # [M], the overlap from which it is one


@dataclass(frozen=True)
class Detector:
    """What is looked for in the images of a world."""

    size: int  # image side in pixels
    palette: Mapping[str, tuple[float, float, float]]
    match: Callable[[np.ndarray, Sequence[str]], Match]
    """(coverage [M, window, window], colours) to figures."""
    window: int  # side of the window in which a component is compared; a larger one is compared in part

    def __call__(self, images: Tensor) -> list[list[Detection]]:
        """Everything that stands out from the background of each image [N, 3, size, size] in [0, 1]."""
        if images.ndim != 4 or tuple(images.shape[1:]) != (3, self.size, self.size):
            wanted = f"[N, 3, {self.size}, {self.size}]"
            raise ValueError(f"expected images of shape {wanted} in [0, 1], found {tuple(images.shape)}")
        pixels = nan_to_num(images.detach().float().cpu()).clamp(0, 1).permute(0, 2, 3, 1).numpy()
        background = _background(pixels)
        offset = pixels - background
        labels, owner = _components(np.square(offset).sum(-1) > CONTRAST**2)
        found: list[list[Detection]] = [[] for _ in range(len(images))]
        if len(owner):
            for i, detection in zip(owner, self._describe(offset, background, labels, owner), strict=True):
                found[i].append(detection)
        return found

    def _describe(
        self, offset: np.ndarray, background: np.ndarray, labels: np.ndarray, owner: np.ndarray
    ) -> Iterator[Detection]:
        """One Detection per component, all components at once. [M, window, window] arrays throughout."""
        boxes = ndimage.find_objects(labels)
        corner = np.array([[(s.start + s.stop) // 2 for s in box[1:]] for box in boxes]) - self.window // 2
        corner = corner.clip(0, self.size - self.window)
        step = np.arange(self.window)
        rows, columns = corner[:, :1, None] + step[:, None], corner[:, 1:, None] + step
        where = owner[:, None, None], rows, columns
        number = np.arange(1, len(owner) + 1)[:, None, None]
        # one pixel wider: the antialiased rim lies below the contrast threshold but belongs to the area
        grown = ndimage.maximum_filter(labels[where], size=(1, 3, 3))
        local = offset[where] * (grown == number)[..., None]
        energy = np.square(local).sum(-1)
        weight = np.square(energy)  # favours the solid core over the rim
        mean = np.einsum("mhw,mhwc->mc", weight, local) / weight.sum((1, 2))[:, None]
        palette = np.array(list(self.palette.values()), np.float32)
        direction = palette[None] - background[owner, 0, 0][:, None]  # [M, colours, 3]
        distance = np.linalg.norm(mean[:, None] - direction, axis=-1)
        best = distance.argmin(1)
        v = direction[np.arange(len(owner)), best]
        alpha = np.einsum("mhwc,mc->mhw", local, v) / np.square(v).sum(1)[:, None, None]
        residual = np.square(local - alpha[..., None] * v[:, None, None]).sum((1, 2, 3)) / energy.sum((1, 2))
        solid = (distance.min(1) < OFF_PALETTE) & (residual < PURE)
        colors = [list(self.palette)[i] for i in best]
        match = self.match(alpha.clip(0, 1), colors)
        for m, (_, y, x) in enumerate(boxes):
            quality = float(match.overlaps[m]) if solid[m] else 0.0
            box = float(x.start), float(y.start), float(x.stop), float(y.stop)
            known = match.names[m] if quality >= match.thresholds[m] else None
            yield Detection(known, colors[m] if solid[m] else None, box, quality, match.names[m])


def _background(pixels: np.ndarray) -> np.ndarray:  # [N, 1, 1, 3]
    """Median of the border ring, which few figures reach."""
    ring = np.ones(pixels.shape[1:3], bool)
    ring[1:-1, 1:-1] = False
    return np.median(pixels[:, ring], axis=1)[:, None, None]


def _components(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels [N, H, W] from 1 up, consecutive, and the image each component lies in."""
    structure = np.zeros((3, 3, 3), bool)
    structure[1] = True  # 8-connected within an image, never across images
    labels, count = cast("tuple[np.ndarray, int]", ndimage.label(mask, structure))
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    areas[0] = 0
    kept = areas >= SPECK
    labels = (np.cumsum(kept) * kept)[labels]
    owner = np.zeros(kept.sum(), int)
    image, row, column = np.nonzero(labels)
    owner[labels[image, row, column] - 1] = image
    return labels, owner


def centred(alpha: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coverage [M, W, W] to (area [M, 1, 1], x [M, 1, W] and y [M, W, 1] of the pixels from its centroid)."""
    area = alpha.sum((1, 2))[:, None, None] + 1e-6
    axis = np.arange(alpha.shape[-1], dtype=np.float32) + 0.5
    x = axis[None, None, :] - (alpha * axis[None, None, :]).sum((1, 2), keepdims=True) / area
    y = axis[None, :, None] - (alpha * axis[None, :, None]).sum((1, 2), keepdims=True) / area
    return area, x, y


def overlap(distance: np.ndarray, alpha: np.ndarray) -> np.ndarray:  # [K, M, W, W], [M, W, W] -> [M, K]
    """Soft IoU of coverage with templates of signed distance (negative inside)."""
    templates = (0.5 - distance).clip(0, 1)
    both = np.minimum(templates, alpha).sum((2, 3))
    return (both / (np.maximum(templates, alpha).sum((2, 3)) + 1e-6)).T


def shape_distance(x: np.ndarray, y: np.ndarray, area: np.ndarray) -> np.ndarray:  # [4, M, W, W], in CLASSES' order
    """Signed distance (up to corner rounding) to shapes of `area` with their centroid at the origin."""
    ax, ay = np.abs(x), np.abs(y)
    circle = np.hypot(x, y) - np.sqrt(area / np.pi)
    square = np.maximum(ax, ay) - np.sqrt(area) / 2
    s = np.sqrt(area / 2)  # triangle of base and height 2s: the centroid is s/3 below the box centre
    triangle = np.maximum(y - 2 * s / 3, (2 * ax - y - 4 * s / 3) / np.sqrt(5))
    s = np.sqrt(area / (8 * CROSS_ARM - 4 * CROSS_ARM**2))
    w = CROSS_ARM * s
    cross = np.minimum(np.maximum(ax - s, ay - w), np.maximum(ax - w, ay - s))
    return np.stack(np.broadcast_arrays(circle, square, triangle, cross))
