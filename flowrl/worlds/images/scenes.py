"""Scenes of coloured figures in a grid of slots, their renderer, and the relations between figures."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Metadata = dict[str, Any]
Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 in pixels, y downward."""

SLOT = 16  # side of a slot in pixels; a figure never leaves its slot
SUPERSAMPLE = 4
CROSS_ARM = 0.38  # half width of a cross' arm, relative to its half extent

CLASSES = ("circle", "square", "triangle", "cross")
PLURALS = {"circle": "circles", "square": "squares", "triangle": "triangles", "cross": "crosses"}
COLORS = {
    "red": (0.90, 0.12, 0.12),
    "green": (0.10, 0.75, 0.15),
    "blue": (0.12, 0.20, 0.95),
    "yellow": (0.95, 0.90, 0.10),
    "purple": (0.75, 0.10, 0.85),
    "cyan": (0.10, 0.85, 0.90),
}
RELATIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}


@dataclass(frozen=True)
class Thing:
    """One solid figure; `x`, `y` is the centre of its bounding box in pixels, y grows downward."""

    shape: str
    color: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Scene:
    """Things on a grey background of level `grey` with a faint gradient `slope` (per image side)."""

    things: tuple[Thing, ...]
    grey: float = 0.5
    slope: tuple[float, float] = (0.0, 0.0)


Inside = Callable[[str, Tensor, Tensor, Tensor], Tensor]
"""(figure, x, y, radius) to which of the points, relative to the figure's centre, are the figure's."""


def on_grey(things: Sequence[Thing], rng: random.Random) -> Scene:
    """The things on a random background."""
    return Scene(tuple(things), rng.uniform(0.42, 0.58), (rng.uniform(-0.04, 0.04), rng.uniform(-0.04, 0.04)))


def render(
    scenes: Sequence[Scene], size: int, palette: Mapping[str, tuple[float, float, float]], inside: Inside
) -> Tensor:  # [N, 3, size, size] in [0, 1]
    """Antialiased images: coverage is the share of SUPERSAMPLE^2 points per pixel inside the figure."""
    axis = (torch.arange(size) + 0.5) / size - 0.5
    grey = torch.tensor([[s.grey, *s.slope] for s in scenes])[:, :, None, None]
    image = grey[:, 0] + grey[:, 1] * axis[None, None, :] + grey[:, 2] * axis[None, :, None]
    images = image[:, None].repeat(1, 3, 1, 1)
    colors, names = torch.tensor(list(palette.values())), list(palette)
    for shape in sorted({thing.shape for scene in scenes for thing in scene.things}):
        owners = [(i, t) for i, scene in enumerate(scenes) for t in scene.things if t.shape == shape]
        numbers = torch.tensor([[t.x, t.y, t.radius] for _, t in owners])
        corner = (numbers[:, :2] / SLOT).floor().long() * SLOT
        alpha = _coverage(shape, numbers[:, :2] - corner, numbers[:, 2], inside)  # [M, SLOT, SLOT]
        owner = torch.tensor([i for i, _ in owners])[:, None, None]
        pixel = torch.arange(SLOT)
        where = (owner, corner[:, 1, None, None] + pixel[:, None], corner[:, 0, None, None] + pixel)
        color = colors[[names.index(t.color) for _, t in owners]]
        for channel in range(3):
            plane = images[:, channel]
            plane[where] = plane[where] * (1 - alpha) + alpha * color[:, channel, None, None]
    return images


def _coverage(shape: str, centre: Tensor, radius: Tensor, inside: Inside) -> Tensor:  # [M, SLOT, SLOT]
    points = (torch.arange(SLOT * SUPERSAMPLE) + 0.5) / SUPERSAMPLE
    x = points[None, None, :] - centre[:, 0, None, None]
    y = points[None, :, None] - centre[:, 1, None, None]
    covered = inside(shape, x, y, radius[:, None, None])
    return torch.nn.functional.avg_pool2d(covered.float(), SUPERSAMPLE)


def inside_shape(shape: str, x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    """Whether points lie in one of the four shapes of half extent `r` around the origin."""
    if shape == "circle":
        return x * x + y * y <= r * r
    if shape == "square":
        return torch.maximum(x.abs(), y.abs()) <= 0.9 * r
    if shape == "triangle":
        return (y <= r) & (2 * x.abs() <= y + r)
    long, short = x.abs(), y.abs()
    arm = CROSS_ARM * r
    return ((long <= r) & (short <= arm)) | ((long <= arm) & (short <= r))


def relates(relation: str, offset: tuple[float, float]) -> bool:
    """GenEval's rule on subject minus reference: within 60 degrees of the relation's direction."""
    return alignment(relation, offset) > 0.5


def alignment(relation: str, offset: tuple[float, float]) -> float:
    """Cosine between the relation's direction and `offset`; 0 for coinciding centres."""
    dx, dy = RELATIONS[relation]
    length = math.hypot(*offset)
    return (dx * offset[0] + dy * offset[1]) / length if length > 1e-6 else 0.0


def box_alignment(relation: str, subject: Box, reference: Box) -> float:
    """`alignment` of the direction between the boxes' centres, shrunk by a margin of a tenth of their sizes.

    GenEval's own rule (`flowrl.detection.rules`) divides by the length before shrinking, so it is a little stricter.
    """
    (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) = subject, reference
    dx, dy = (ax0 + ax1 - bx0 - bx1) / 2, (ay0 + ay1 - by0 - by1) / 2
    shrink_x, shrink_y = 0.1 * (ax1 - ax0 + bx1 - bx0), 0.1 * (ay1 - ay0 + by1 - by0)
    dx = math.copysign(max(0.0, abs(dx) - shrink_x), dx)
    dy = math.copysign(max(0.0, abs(dy) - shrink_y), dy)
    return alignment(relation, (dx, dy)) if relation in RELATIONS else 0.0


def relation_score(relation: str, subject: Box, reference: Box) -> float:
    """1 if the boxes' direction is within 60 degrees of the relation's axis, else up to 1/2 by how nearly it is."""
    cosine = box_alignment(relation, subject, reference)
    return 1.0 if cosine > 0.5 else max(0.0, cosine)


def noun(shape: str, count: int = 1, color: str | None = None) -> Metadata:
    """One include clause."""
    return {"class": shape, "count": count} | ({"color": color} if color else {})
