"""Pictures of up to nine figures in a 4x4 grid: coloured shapes and one word in black letters."""

from __future__ import annotations

import random
from collections.abc import Sequence

from torch import Tensor

from flowrl.worlds.images import scenes as shared
from flowrl.worlds.images.scenes import (
    CLASSES,
    COLORS,
    SLOT,
    Box,
    Metadata,
    Scene,
    Thing,
    box_alignment,
    inside_shape,
    on_grey,
)
from flowrl.worlds.scenes.glyphs import GLYPHS, inside_glyph

SIZE = 64  # image side in pixels
SIDE = SIZE // SLOT
SLOTS = tuple((column, row) for row in range(SIDE) for column in range(SIDE))
JITTER = 1.5  # pixels, of a shape
RADIUS = (4.0, 5.6)  # half extent of a shape in pixels

TEXT = "text"
"""The class of an include clause that asks for a word."""
INK = "black"
PALETTE = {**COLORS, INK: (0.0, 0.0, 0.0)}
FIGURES = (*CLASSES, *GLYPHS)
LONGEST = 3  # letters of a word
PITCH = 14.0  # pixels between letters; they stay in their slots
LETTER_JITTER = 1.0  # pixels, of a whole word
LETTER_RADIUS = (5.2, 6.2)  # half height
LETTER_WIDTH = 0.7  # of a letter, relative to its height

CLEAR = 0.6  # cosine of a relation that is asked for; the verifier accepts above .5


def render(scenes: Sequence[Scene]) -> Tensor:  # [N, 3, SIZE, SIZE] in [0, 1]
    """Antialiased images of the scenes."""
    return shared.render(scenes, SIZE, PALETTE, _inside)


def _inside(figure: str, x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    return (inside_glyph if figure in GLYPHS else inside_shape)(figure, x, y, radius)


def random_scene(metadata: Metadata, rng: random.Random) -> Scene:
    """A scene that satisfies `metadata` exactly: what is asked for, nothing else; the rest is random."""
    include = metadata["include"]
    number = sum(len(item["text"]) if item["class"] == TEXT else item["count"] for item in include)
    if not 0 < number <= len(SLOTS):
        raise ValueError(f"a scene holds 1 to {len(SLOTS)} figures, the metadata asks for {number}")
    while True:
        groups = _place(include, rng)
        boxes = [span(group) for group in groups]
        if all(_clear(item, box, boxes) for item, box in zip(include, boxes, strict=True)):
            return on_grey([thing for group in groups for thing in group], rng)


def random_shape(shape: str, color: str, slot: tuple[int, int], rng: random.Random) -> Thing:
    """A shape of random size near the centre of `slot`."""
    x, y = ((c + 0.5) * SLOT + rng.uniform(-JITTER, JITTER) for c in slot)
    return Thing(shape, color, x, y, rng.uniform(*RADIUS))


def random_word(word: str, slot: tuple[int, int], rng: random.Random) -> list[Thing]:
    """The letters of `word`, the first in `slot`, as one line of random size."""
    column, row = slot
    x, y = (rng.uniform(-LETTER_JITTER, LETTER_JITTER) for _ in "xy")
    middle, radius = (column + len(word) / 2) * SLOT + x, rng.uniform(*LETTER_RADIUS)
    return [
        Thing(letter, INK, middle + (i - (len(word) - 1) / 2) * PITCH, (row + 0.5) * SLOT + y, radius)
        for i, letter in enumerate(word)
    ]


def any_scene(rng: random.Random) -> Scene:
    """Figures of any kind in about half of the slots: more varied than what any caption asks for."""
    things: list[Thing] = []
    for slot in SLOTS:
        if rng.random() < 0.3:
            things.append(random_shape(rng.choice(CLASSES), rng.choice(list(COLORS)), slot, rng))
        elif rng.random() < 0.25:
            aside = (LONGEST - 1) / 2 * (SLOT - PITCH)  # how far a letter of a word may be from its slot's centre
            letter = random_word(rng.choice(list(GLYPHS)), slot, rng)[0]
            things.append(Thing(letter.shape, INK, letter.x + rng.uniform(-aside, aside), letter.y, letter.radius))
    return on_grey(things, rng)


def span(things: Sequence[Thing]) -> Box:
    """The box around all of `things`."""
    width = [thing.radius * (LETTER_WIDTH if thing.shape in GLYPHS else 1) for thing in things]
    return (
        min(thing.x - w for thing, w in zip(things, width, strict=True)),
        min(thing.y - thing.radius for thing in things),
        max(thing.x + w for thing, w in zip(things, width, strict=True)),
        max(thing.y + thing.radius for thing in things),
    )


def _place(include: Sequence[Metadata], rng: random.Random) -> list[list[Thing]]:
    """The things of every clause: a word takes neighbouring slots of one row, shapes any of the others."""
    words = {i: item["text"] for i, item in enumerate(include) if item["class"] == TEXT}
    starts = {i: (rng.randint(0, SIDE - len(word)), rng.randrange(SIDE)) for i, word in words.items()}
    taken = {(starts[i][0] + k, starts[i][1]) for i, word in words.items() for k in range(len(word))}
    free = [slot for slot in SLOTS if slot not in taken]
    rng.shuffle(free)
    groups = []
    for i, item in enumerate(include):
        if i in words:
            groups.append(random_word(words[i], starts[i], rng))
            continue
        colors = [item.get("color") or rng.choice(list(COLORS)) for _ in range(item["count"])]
        groups.append([random_shape(item["class"], color, free.pop(), rng) for color in colors])
    return groups


def _clear(item: Metadata, box: Box, boxes: Sequence[Box]) -> bool:
    if not item.get("position"):
        return True
    relation, reference = item["position"]
    return box_alignment(relation, box, boxes[reference]) > CLEAR
