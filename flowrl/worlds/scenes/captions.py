"""Pre-training captions and their deliberately noisy scenes."""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass

from torch import Tensor

from flowrl.worlds.images.scenes import CLASSES, COLORS, Metadata, noun
from flowrl.worlds.scenes.glyphs import GLYPHS
from flowrl.worlds.scenes.latents import latents_of
from flowrl.worlds.scenes.prompts import NUMBERS, TAGS, draw
from flowrl.worlds.scenes.scenes import TEXT, random_scene

SHARES = {
    "colors": 0.08,
    "counting": 0.13,
    "color_attr": 0.12,
    "three_object": 0.11,
    "two_counts": 0.12,
    "position": 0.18,
    "text": 0.13,
    "text_position": 0.13,
}
"""Of captions, by kind."""


@dataclass(frozen=True)
class Noise:
    """How often the scene contradicts its caption.

    It makes the base learn right and wrong modes side by side; choosing between them is what RL can add and further
    pre-training cannot.
    """

    extra: float = 0.05  # an unrequested shape
    wrong_count: float = 0.12  # of a clause that asks for several
    swapped_colors: float = 0.06  # of two or three shapes
    wrong_color: float = 0.04
    any_layout: float = 0.10  # placed at random, which still satisfies a third of relations
    wrong_letter: float = 0.10  # of a word: one letter replaced


NOISY = Noise()
"""What the base is finished on, and the control experiment's data."""

CLEAN = Noise(0.02, 0.05, 0.0, 0.0, 0.0, 0.02)
"""Nearly clean: layout, binding and letters are learned from this."""


def draw_pairs(size: int, rng: random.Random, noise: Noise = NOISY) -> tuple[Tensor, list[str]]:
    """(clean latents, captions)."""
    kinds = rng.choices(TAGS, [SHARES[tag] for tag in TAGS], k=size)
    rows = [draw(tag, rng) for tag in kinds]
    return latents_of([random_scene(corrupt(row, rng, noise), rng) for row in rows]), [row["prompt"] for row in rows]


def corrupt(metadata: Metadata, rng: random.Random, noise: Noise = NOISY) -> Metadata:
    """What the scene shows instead of `metadata`; the caption stays."""
    shown = copy.deepcopy(metadata)
    include = shown["include"]
    shapes = [item for item in include if item["class"] != TEXT]
    for item in include:
        if item["count"] > 1 and rng.random() < noise.wrong_count:
            item["count"] += 1 if item["count"] < max(NUMBERS) and rng.random() < 0.5 else -1
        if item["class"] == TEXT and rng.random() < noise.wrong_letter:
            i = rng.randrange(len(item["text"]))
            item["text"] = item["text"][:i] + rng.choice(list(GLYPHS)) + item["text"][i + 1 :]
    if "position" in include[-1] and rng.random() < noise.any_layout:
        del include[-1]["position"]
    if len(shapes) > 1 and rng.random() < noise.swapped_colors:
        a, b = rng.sample(shapes, 2)
        a["color"], b["color"] = b["color"], a["color"]
    if shapes and rng.random() < noise.wrong_color:
        rng.choice(shapes)["color"] = rng.choice(list(COLORS))
    if rng.random() < noise.extra:
        include.append(noun(rng.choice(CLASSES)))
    return shown
