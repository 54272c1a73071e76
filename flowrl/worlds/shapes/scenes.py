"""Scenes of one to four coloured shapes, their renderer, and scenes drawn to satisfy GenEval metadata."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Metadata = dict[str, Any]

SIZE = 32  # image side in pixels
SLOT = 16  # objects live in a 2x2 grid of slots of this side
SLOTS = tuple((column, row) for row in range(SIZE // SLOT) for column in range(SIZE // SLOT))
JITTER = 1.5  # pixels; small enough that diagonal neighbours satisfy both of their relations
RADIUS = (4.0, 5.6)  # half extent of a shape in pixels
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
    """One solid shape; `x`, `y` is the centre of its bounding box in pixels, y grows downward."""

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


def render(scenes: Sequence[Scene]) -> Tensor:  # [N, 3, SIZE, SIZE] in [0, 1]
    """Antialiased images: coverage is the share of SUPERSAMPLE^2 points per pixel inside the shape."""
    axis = (torch.arange(SIZE) + 0.5) / SIZE - 0.5
    grey = torch.tensor([[s.grey, *s.slope] for s in scenes])[:, :, None, None]
    image = grey[:, 0] + grey[:, 1] * axis[None, None, :] + grey[:, 2] * axis[None, :, None]
    images = image[:, None].repeat(1, 3, 1, 1)
    palette = torch.tensor(list(COLORS.values()))
    names = list(COLORS)
    for shape in CLASSES:
        owners = [(i, t) for i, scene in enumerate(scenes) for t in scene.things if t.shape == shape]
        if not owners:
            continue
        numbers = torch.tensor([[t.x, t.y, t.radius] for _, t in owners])
        corner = (numbers[:, :2] / SLOT).floor().long() * SLOT  # a thing never leaves its slot
        alpha = _coverage(shape, numbers[:, :2] - corner, numbers[:, 2])  # [M, SLOT, SLOT]
        owner = torch.tensor([i for i, _ in owners])[:, None, None]
        pixel = torch.arange(SLOT)
        where = (owner, corner[:, 1, None, None] + pixel[:, None], corner[:, 0, None, None] + pixel)
        color = palette[[names.index(t.color) for _, t in owners]]
        for channel in range(3):
            plane = images[:, channel]
            plane[where] = plane[where] * (1 - alpha) + alpha * color[:, channel, None, None]
    return images


def _coverage(shape: str, centre: Tensor, radius: Tensor) -> Tensor:  # [M, SLOT, SLOT]
    points = (torch.arange(SLOT * SUPERSAMPLE) + 0.5) / SUPERSAMPLE
    x = points[None, None, :] - centre[:, 0, None, None]
    y = points[None, :, None] - centre[:, 1, None, None]
    r = radius[:, None, None]
    if shape == "circle":
        inside = x * x + y * y <= r * r
    elif shape == "square":
        inside = torch.maximum(x.abs(), y.abs()) <= 0.9 * r
    elif shape == "triangle":
        inside = (y <= r) & (2 * x.abs() <= y + r)
    else:
        long, short = x.abs(), y.abs()
        arm = CROSS_ARM * r
        inside = ((long <= r) & (short <= arm)) | ((long <= arm) & (short <= r))
    return torch.nn.functional.avg_pool2d(inside.float(), SUPERSAMPLE)


def random_scene(metadata: Metadata, rng: random.Random) -> Scene:
    """A scene that satisfies `metadata` exactly: what is asked for, nothing else; the rest is random."""
    include = metadata["include"]
    wanted = [(clause, k) for clause, item in enumerate(include) for k in range(item["count"])]
    if not 0 < len(wanted) <= len(SLOTS):
        raise ValueError(f"a scene holds 1 to {len(SLOTS)} shapes, the metadata asks for {len(wanted)}")
    while True:
        slots = rng.sample(SLOTS, len(wanted))
        cells = [[s for s, (c, _) in zip(slots, wanted, strict=True) if c == i] for i in range(len(include))]
        if all(_holds(cells, i, item) for i, item in enumerate(include)):
            break
    things = []
    for (clause, _), slot in zip(wanted, slots, strict=True):
        item = include[clause]
        color = item.get("color") or rng.choice(list(COLORS))
        things.append(random_thing(item["class"], color, slot, rng))
    return Scene(tuple(things), rng.uniform(0.42, 0.58), (rng.uniform(-0.04, 0.04), rng.uniform(-0.04, 0.04)))


def random_thing(shape: str, color: str, slot: tuple[int, int], rng: random.Random) -> Thing:
    """A shape of random size near the centre of `slot`."""
    x, y = ((c + 0.5) * SLOT + rng.uniform(-JITTER, JITTER) for c in slot)
    return Thing(shape, color, x, y, rng.uniform(*RADIUS))


def _holds(cells: list[list[tuple[int, int]]], index: int, item: Metadata) -> bool:
    if not item.get("position"):
        return True
    relation, reference = item["position"]
    pairs = [(a, b) for a in cells[index] for b in cells[reference]]
    return all(relates(relation, (a[0] - b[0], a[1] - b[1])) for a, b in pairs)


def relates(relation: str, offset: tuple[float, float]) -> bool:
    """GenEval's rule on subject minus reference: within 60 degrees of the relation's direction."""
    return alignment(relation, offset) > 0.5


def alignment(relation: str, offset: tuple[float, float]) -> float:
    """Cosine between the relation's direction and `offset`; 0 for coinciding centres."""
    dx, dy = RELATIONS[relation]
    length = math.hypot(*offset)
    return (dx * offset[0] + dy * offset[1]) / length if length > 1e-6 else 0.0
