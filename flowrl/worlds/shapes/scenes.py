"""Scenes of one to four coloured shapes, and scenes drawn to satisfy GenEval metadata."""

from __future__ import annotations

import random
from collections.abc import Sequence

from torch import Tensor

from flowrl.worlds.images import scenes as shared
from flowrl.worlds.images.scenes import COLORS, SLOT, Metadata, Scene, Thing, inside_shape, on_grey, relates

SIZE = 32  # image side in pixels
SLOTS = tuple((column, row) for row in range(SIZE // SLOT) for column in range(SIZE // SLOT))
JITTER = 1.5  # pixels; small enough that diagonal neighbours satisfy both of their relations
RADIUS = (4.0, 5.6)  # half extent of a shape in pixels


def render(scenes: Sequence[Scene]) -> Tensor:  # [N, 3, SIZE, SIZE] in [0, 1]
    """Antialiased images of the scenes."""
    return shared.render(scenes, SIZE, COLORS, inside_shape)


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
    return on_grey(things, rng)


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
