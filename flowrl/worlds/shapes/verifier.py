"""Reads shapes back from pixels and verifies them by GenEval's clauses plus strictness: nothing unasked for.

Background estimate -> contrast mask -> connected components -> palette colour by projection -> shape by the
overlap (soft IoU) with four templates of the component's own area and centroid.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from flowrl.worlds.shapes.scenes import CLASSES, COLORS, CROSS_ARM, RELATIONS, SIZE, Metadata, alignment

CONTRAST = 0.22  # RGB distance from the background that makes a pixel foreground
SPECK = 3  # components of fewer pixels are ignored
IDENTIFIED = 0.75  # quality from which a component counts as a shape
PURE = 0.12  # largest share of a component's energy that its colour may leave unexplained
OFF_PALETTE = 0.25  # largest RGB distance of a component's core from its palette colour
_PALETTE = np.array(list(COLORS.values()), np.float32)


@dataclass(frozen=True)
class Detection:
    """One connected component; `shape` is None for junk: a blob that is no shape or has no single colour."""

    shape: str | None
    color: str | None
    box: tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels
    quality: float  # template overlap in [0, 1], 0 if the colour is mixed or off the palette
    guess: str  # the best template even if junk


@dataclass(frozen=True)
class ShapesVerdict:
    """Whether the image is exactly right, how close it is (1.0 iff strict), and what is wrong."""

    strict: bool
    score: float
    reason: str


def score(images: Tensor, metadata: Sequence[Metadata]) -> tuple[Tensor, Tensor]:
    """Strict 0/1 and graded score per image [N]; NaN where the image is not finite."""
    if len(images) != len(metadata):
        raise ValueError(f"{len(images)} images but {len(metadata)} metadata entries; pass one per image")
    finite = torch.isfinite(images).flatten(1).all(1)
    verdicts = [verify(found, wanted) for found, wanted in zip(detect(images), metadata, strict=True)]
    strict = torch.tensor([float(v.strict) for v in verdicts])
    graded = torch.tensor([v.score for v in verdicts])
    nan = torch.tensor(float("nan"))
    keep = finite.cpu()
    return torch.where(keep, strict, nan), torch.where(keep, graded, nan)


def detect(images: Tensor) -> list[list[Detection]]:
    """Everything that stands out from the background of each image [N, 3, 32, 32] in [0, 1]."""
    if images.ndim != 4 or tuple(images.shape[1:]) != (3, SIZE, SIZE):
        raise ValueError(f"expected images of shape [N, 3, {SIZE}, {SIZE}] in [0, 1], found {tuple(images.shape)}")
    pixels = torch.nan_to_num(images.detach().float().cpu()).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    background = _background(pixels)
    offset = pixels - background
    labels, owner = _components(np.linalg.norm(offset, axis=-1) > CONTRAST)
    found: list[list[Detection]] = [[] for _ in range(len(images))]
    if len(owner):
        for i, detection in zip(owner, _describe(offset, background, labels, owner), strict=True):
            found[i].append(detection)
    return found


def verify(detections: Sequence[Detection], metadata: Metadata) -> ShapesVerdict:
    """GenEval's include and exclude clauses, all evaluated; strict also fails on anything extra."""
    shapes = sorted((d for d in detections if d.shape), key=lambda d: -d.quality)
    groups, used, parts, reasons = [], [], [], []
    for item in metadata["include"]:
        group, credit, reason = _clause(item, shapes, used, groups)
        groups.append(group)
        used.extend(group)
        reasons.extend(reason)
        almost = [d for d in detections if not d.shape and d.guess == item["class"]]
        if len(group) < item["count"] and almost:  # a gradient towards shapes that are nearly readable
            credit += 0.3 * max(d.quality for d in almost) / item["count"] / len(metadata["include"])
        parts.append(credit)
    for item in metadata.get("exclude") or ():
        number = sum(d.shape == item["class"] for d in shapes)
        if number >= item["count"]:
            reasons.append(f"found {number} {item['class']}, wanted fewer than {item['count']}")
    wanted = sum(item["count"] for item in metadata["include"])
    extra, junk = max(0, len(shapes) - wanted), len(detections) - len(shapes)
    if len(shapes) > wanted:
        reasons.append(f"{extra} shapes too many")
    if junk:
        reasons.append(f"{junk} unidentifiable blobs")
    if not reasons:
        return ShapesVerdict(True, 1.0, "")
    graded = sum(parts) / len(parts) / (1 + 0.5 * extra + 0.5 * junk)
    return ShapesVerdict(False, min(0.95, graded), "; ".join(reasons))


def _clause(
    item: Metadata, shapes: list[Detection], used: list[Detection], groups: list[list[Detection]]
) -> tuple[list[Detection], float, list[str]]:
    """The shapes matched to one include clause, its credit in [0, 1], and what failed."""
    free = [d for d in shapes if d.shape == item["class"] and d not in used]
    free.sort(key=lambda d: d.color != item.get("color", d.color))  # stable: right colours first
    group, reasons = free[: item["count"]], []
    presence = len(group) / item["count"]
    if presence < 1:
        reasons.append(f"found {len(group)} of {item['count']} {item['class']}")
    checks = [presence]
    if item.get("color"):
        right = sum(d.color == item["color"] for d in group)
        checks.append(right / item["count"])
        if right < item["count"]:
            reasons.append(f"{right} of {item['count']} {item['class']} are {item['color']}")
    if item.get("position"):
        relation, reference = item["position"]
        holds = [relation_score(relation, a, b) for a in group for b in groups[reference]]
        checks.append(min(holds, default=0.0))
        if min(holds, default=0.0) < 1:
            reasons.append(f"{item['class']} is not {relation} the target")
    return group, sum(checks) / len(checks), reasons


def relation_holds(relation: str, subject: Detection, reference: Detection) -> bool:
    """The position rule on the two boxes, see `relation_score`."""
    return relation_score(relation, subject, reference) == 1.0


def relation_score(relation: str, subject: Detection, reference: Detection) -> float:
    """1 if the direction between the boxes' centres, shrunk by a margin, is within 60 degrees of the relation's axis,
    else up to 1/2 by how nearly it points that way.

    GenEval's own rule (`flowrl.detection.rules`) divides by the length before shrinking, so it is a little stricter.
    """
    (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) = subject.box, reference.box
    dx, dy = (ax0 + ax1 - bx0 - bx1) / 2, (ay0 + ay1 - by0 - by1) / 2
    shrink_x, shrink_y = 0.1 * (ax1 - ax0 + bx1 - bx0), 0.1 * (ay1 - ay0 + by1 - by0)
    dx = np.sign(dx) * max(0.0, abs(dx) - shrink_x)
    dy = np.sign(dy) * max(0.0, abs(dy) - shrink_y)
    cosine = alignment(relation, (dx, dy)) if relation in RELATIONS else 0.0
    return 1.0 if cosine > 0.5 else max(0.0, cosine)


def _background(pixels: np.ndarray) -> np.ndarray:  # [N, 1, 1, 3]
    """Median of the border ring, which shapes do not reach."""
    ring = np.ones((SIZE, SIZE), bool)
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


def _describe(offset: np.ndarray, background: np.ndarray, labels: np.ndarray, owner: np.ndarray) -> Iterator[Detection]:
    """One Detection per component, all components at once. [M, H, W] arrays throughout."""
    core_mask = labels[owner] == np.arange(1, len(owner) + 1)[:, None, None]
    # one pixel wider: the antialiased rim lies below the contrast threshold but belongs to the area
    grown = ndimage.maximum_filter(labels, size=(1, 3, 3))
    mask = (grown[owner] == np.arange(1, len(owner) + 1)[:, None, None])[..., None]
    local = offset[owner] * mask
    energy = np.square(local).sum(-1)
    weight = np.square(energy)  # favours the solid core over the rim
    mean = np.einsum("mhw,mhwc->mc", weight, local) / weight.sum((1, 2))[:, None]
    direction = _PALETTE[None] - background[owner, 0, 0][:, None]  # [M, 6, 3]
    distance = np.linalg.norm(mean[:, None] - direction, axis=-1)
    best = distance.argmin(1)
    v = direction[np.arange(len(owner)), best]
    alpha = np.einsum("mhwc,mc->mhw", local, v) / np.square(v).sum(1)[:, None, None]
    residual = np.square(local - alpha[..., None] * v[:, None, None]).sum((1, 2, 3)) / energy.sum((1, 2))
    overlap = _overlap(alpha.clip(0, 1))
    solid = (distance.min(1) < OFF_PALETTE) & (residual < PURE)
    colors = list(COLORS)
    for m in range(len(owner)):
        shape = CLASSES[overlap[m].argmax()]
        quality = float(overlap[m].max()) if solid[m] else 0.0
        known = quality >= IDENTIFIED
        color = colors[best[m]] if solid[m] else None
        yield Detection(shape if known else None, color, _box(core_mask[m]), quality, shape)


def _box(mask: np.ndarray) -> tuple[float, float, float, float]:
    rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def _overlap(alpha: np.ndarray) -> np.ndarray:  # [M, H, W] -> [M, 4]
    """Soft IoU with each class' template of equal area and centroid."""
    area = alpha.sum((1, 2))[:, None, None] + 1e-6
    axis = np.arange(SIZE, dtype=np.float32) + 0.5
    x = axis[None, None, :] - (alpha * axis[None, None, :]).sum((1, 2), keepdims=True) / area
    y = axis[None, :, None] - (alpha * axis[None, :, None]).sum((1, 2), keepdims=True) / area
    templates = (0.5 - _distance(x, y, area)).clip(0, 1)  # [4, M, H, W]
    both = np.minimum(templates, alpha).sum((2, 3))
    return (both / (np.maximum(templates, alpha).sum((2, 3)) + 1e-6)).T


def _distance(x: np.ndarray, y: np.ndarray, area: np.ndarray) -> np.ndarray:  # [4, M, H, W], in CLASSES' order
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
