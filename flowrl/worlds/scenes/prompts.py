"""Eight kinds of prompts about shapes and words, split into train and test.

"Held out" means held out from RL training: pre-training draws its captions from the whole space, so the test
split measures whether what RL improves carries over to prompts it never rewarded.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Literal

from flowrl.worlds.images.scenes import CLASSES, COLORS, PLURALS, RELATIONS, Metadata, noun
from flowrl.worlds.scenes.glyphs import GLYPHS
from flowrl.worlds.scenes.scenes import LONGEST, TEXT

NUMBERS = {1: "a", 2: "two", 3: "three", 4: "four", 5: "five"}
MOST_OF_TWO = 3  # of either shape where two are counted
TRAIN_SIZE = 48  # train prompts per tag where there are so many
FEW = {"colors": len(CLASSES) * len(COLORS)}  # all there are
TEST_SIZE = 12  # test prompts per tag


def prompts(split: Literal["train", "test"]) -> list[Metadata]:
    """The fixed prompt list of a split: per tag, combinations drawn without repetition, test ones first."""
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', found {split!r}")
    rows = []
    for tag in TAGS:
        rng = random.Random(f"scenes-{tag}")
        found: dict[str, Metadata] = {}
        while len(found) < min(TEST_SIZE + TRAIN_SIZE, FEW.get(tag, TEST_SIZE + TRAIN_SIZE)):
            row = draw(tag, rng)
            found.setdefault(row["prompt"], row)
        every = list(found.values())
        rows += every[:TEST_SIZE] if split == "test" else every[TEST_SIZE:]
    return rows


def vocabulary() -> list[str]:
    """Every word any caption may use but the words in quotes, which are spelled."""
    words = {"and", "the", "text", '"', *CLASSES, *PLURALS.values(), *COLORS, *NUMBERS.values()}
    return sorted(words | {word for relation in RELATIONS for word in relation.split()})


def draw(tag: str, rng: random.Random) -> Metadata:
    """A random prompt of a kind, of the whole space."""
    include = _DRAW[tag](rng)
    return {"tag": tag, "include": include, "prompt": wording(include)}


def wording(include: list[Metadata]) -> str:
    """The caption of include clauses. A relation is said between its subject, which is the last, and the first."""
    if "position" in include[-1]:
        return f"{_phrase(include[1])} {include[1]['position'][0]} {_phrase(include[0])}"
    return " and ".join(map(_phrase, include))


def asks_for_text(metadata: Metadata) -> str | None:
    """The word a prompt asks for."""
    return next((item["text"] for item in metadata["include"] if item["class"] == TEXT), None)


def word_clause(word: str) -> Metadata:
    """An include clause that asks for a word."""
    return {"class": TEXT, "count": 1, "text": word}


def random_letters(rng: random.Random) -> str:
    """A word of any length up to the longest."""
    return "".join(rng.choice(list(GLYPHS)) for _ in range(rng.randint(1, LONGEST)))


def _phrase(item: Metadata) -> str:
    if item["class"] == TEXT:
        return f'the text "{item["text"]}"'
    shape = item["class"] if item["count"] == 1 else PLURALS[item["class"]]
    return f"{NUMBERS[item['count']]} {item['color']} {shape}"


def _shapes(rng: random.Random, *counts: int) -> list[Metadata]:
    """Clauses of different shapes in different colours."""
    shapes, colors = rng.sample(CLASSES, len(counts)), rng.sample(list(COLORS), len(counts))
    return [noun(*parts) for parts in zip(shapes, counts, colors, strict=True)]


def _colors(rng: random.Random) -> list[Metadata]:
    return _shapes(rng, 1)


def _counting(rng: random.Random) -> list[Metadata]:
    return _shapes(rng, rng.randint(2, max(NUMBERS)))


def _color_attr(rng: random.Random) -> list[Metadata]:
    return _shapes(rng, 1, 1)


def _three_object(rng: random.Random) -> list[Metadata]:
    return _shapes(rng, 1, 1, 1)


def _two_counts(rng: random.Random) -> list[Metadata]:
    counts = rng.randint(1, MOST_OF_TWO), rng.randint(1, MOST_OF_TWO)
    return _shapes(rng, *counts) if max(counts) > 1 else _two_counts(rng)


def _position(rng: random.Random) -> list[Metadata]:
    reference, subject = _shapes(rng, 1, 1)
    return [reference, subject | {"position": [rng.choice(list(RELATIONS)), 0]}]


def _text(rng: random.Random) -> list[Metadata]:
    return [word_clause(random_letters(rng))]


def _text_position(rng: random.Random) -> list[Metadata]:
    position = {"position": [rng.choice(list(RELATIONS)), 0]}
    return [*_shapes(rng, 1), word_clause(random_letters(rng)) | position]


_DRAW: dict[str, Callable[[random.Random], list[Metadata]]] = {
    "colors": _colors,
    "counting": _counting,
    "color_attr": _color_attr,
    "three_object": _three_object,
    "two_counts": _two_counts,
    "position": _position,
    "text": _text,
    "text_position": _text_position,
}
TAGS = tuple(_DRAW)
