"""Pre-training captions and their deliberately noisy scenes."""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass

from torch import Tensor

from flowrl.worlds.images.autoencoder import Vae, encode
from flowrl.worlds.images.scenes import CLASSES, COLORS, PLURALS, RELATIONS, Metadata, noun
from flowrl.worlds.shapes.prompts import FRAMES, NUMBERS, entry
from flowrl.worlds.shapes.scenes import SLOTS, random_scene, render


@dataclass(frozen=True)
class Mix:
    """Which captions, and how often the scene contradicts its caption.

    Label noise makes the base learn right and wrong modes side by side; choosing between them is what RL can add
    and further pre-training cannot.
    """

    single_object: float = 0.07  # the first seven are shares of captions
    two_object: float = 0.10
    counting: float = 0.17
    colors: float = 0.12
    position: float = 0.24
    color_attr: float = 0.20
    colored_position: float = 0.10
    extra: float = 0.25  # noise: an unrequested shape, any caption but counting
    wrong_count: float = 0.45
    wrong_class: float = 0.12  # two_object: one of the two is another shape
    wrong_color: float = 0.10
    any_layout: float = 0.33  # position: placed at random, which still satisfies a third of them
    swapped_colors: float = 0.22


NOISY = Mix()
"""What the base is finished on, and the control experiment's data."""

LAYOUT = Mix(
    single_object=0.03,
    two_object=0.05,
    counting=0.10,
    colors=0.07,
    position=0.25,
    color_attr=0.20,
    colored_position=0.30,
    extra=0.05,
    wrong_count=0.2,
    wrong_class=0.05,
    wrong_color=0.03,
    any_layout=0.0,
    swapped_colors=0.0,
)
"""Nearly clean and mostly about layout and binding, which are not learned at all from the noisy mix alone."""

KINDS = (
    "single_object",
    "two_object",
    "counting",
    "colors",
    "position",
    "color_attr",
    "colored_position",
)


def caption(rng: random.Random, mix: Mix = NOISY) -> Metadata:
    """A truthful caption of a random kind, drawn from the whole prompt space (both splits and more)."""
    kind = rng.choices(KINDS, [getattr(mix, kind) for kind in KINDS])[0]
    a, b = rng.sample(CLASSES, 2)
    ca, cb = rng.sample(list(COLORS), 2)
    relation = rng.choice(list(RELATIONS))
    frame = rng.choice(FRAMES)
    if kind == "single_object":
        return entry(kind, [noun(a)], frame.format(f"{rng.choice(('a', 'one'))} {a}"))
    if kind == "two_object":
        return entry(kind, [noun(a), noun(b)], frame.format(f"a {a} and a {b}"))
    if kind == "counting":
        n = rng.choice(list(NUMBERS))
        return entry(kind, [noun(a, n)], frame.format(f"{NUMBERS[n]} {PLURALS[a]}"))
    if kind == "colors":
        return entry(kind, [noun(a, 1, ca)], frame.format(f"a {ca} {a}"))
    if kind == "color_attr":
        return entry(kind, [noun(a, 1, ca), noun(b, 1, cb)], f"a {ca} {a} and a {cb} {b}")
    if kind == "position":
        subject = noun(a) | {"position": [relation, 0]}
        return entry(kind, [noun(b), subject], f"a {a} {relation} a {b}")
    subject = noun(a, 1, ca) | {"position": [relation, 0]}
    return entry(kind, [noun(b, 1, cb), subject], f"a {ca} {a} {relation} a {cb} {b}")


def corrupt(metadata: Metadata, rng: random.Random, mix: Mix = NOISY) -> Metadata:
    """What the scene shows instead of `metadata`; the caption stays."""
    shown = copy.deepcopy(metadata)
    include, tag = shown["include"], shown["tag"]
    if tag == "counting":
        n = include[0]["count"]
        if rng.random() < mix.wrong_count:
            include[0]["count"] = rng.choice([m for m in (n - 1, n + 1) if m <= len(SLOTS)])
        return shown
    if tag == "two_object" and rng.random() < mix.wrong_class:
        rng.choice(include)["class"] = rng.choice(CLASSES)
    if tag == "colors" and rng.random() < mix.wrong_color:
        include[0]["color"] = rng.choice(list(COLORS))
    if "position" in include[-1] and rng.random() < mix.any_layout:
        del include[-1]["position"]
    if len(include) == 2 and "color" in include[0] and rng.random() < mix.swapped_colors:
        include[0]["color"], include[1]["color"] = include[1]["color"], include[0]["color"]
    if rng.random() < mix.extra:
        include.append(noun(rng.choice(CLASSES)))
    return shown


def draw_pairs(size: int, rng: random.Random, vae: Vae, mix: Mix = NOISY) -> tuple[Tensor, list[str]]:
    """(clean latents [size, C, 4, 4], captions)."""
    rows = [caption(rng, mix) for _ in range(size)]
    images = render([random_scene(corrupt(row, rng, mix), rng) for row in rows])
    return encode(vae, images), [row["prompt"] for row in rows]
