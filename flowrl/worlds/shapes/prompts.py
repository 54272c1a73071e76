"""GenEval's six kinds of prompts about shapes, split into train and test, and captions for pre-training.

"Held out" means held out from RL training: pre-training draws its captions from the whole space, so the test
split measures whether what RL improves carries over to prompts it never rewarded.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import permutations, product
from typing import Literal

from flowrl.worlds.images.scenes import CLASSES, COLORS, PLURALS, RELATIONS, Metadata, noun

Plain = tuple[list[Metadata], str]  # include clauses and the shortest wording

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
NUMBERS = {2: "two", 3: "three", 4: "four"}
FRAMES = ("{}", "a picture of {}", "a photo of {}", "a drawing of {}")
TRAIN_SIZE = 48  # largest number of train prompts per tag, so that uniform draws are roughly balanced
TEST_SIZE = 12  # test prompts per tag


def prompts(split: Literal["train", "test"]) -> list[Metadata]:
    """The fixed prompt list of a split; every tag holds out combinations whose words all occur in train."""
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', found {split!r}")
    rows = []
    for tag in TAGS:
        held_out, rest = _split(tag)
        rows += held_out if split == "test" else rest
    return rows


def vocabulary() -> list[str]:
    """Every word any caption may use."""
    words = {word for frame in FRAMES for word in frame.format("a one and").split()}
    words |= {*CLASSES, *PLURALS.values(), *COLORS, *NUMBERS.values()}
    return sorted(words | {word for relation in RELATIONS for word in relation.split()})


def _split(tag: str) -> tuple[list[Metadata], list[Metadata]]:
    """(test, train) of one tag. A combination (not a wording of it) is held out wherever there are enough."""
    rng = random.Random(f"shapes-{tag}")
    rows = list(_all(tag))
    if tag == "colors":  # the combinations are (shape, colour): hold out one shape per colour
        order = rng.sample(CLASSES, len(CLASSES))
        pairs = {(order[i % len(order)], color) for i, color in enumerate(COLORS)}
        held = [r for r in rows if (r["include"][0]["class"], r["include"][0]["color"]) in pairs]
    elif tag == "color_attr":
        held = rng.sample(rows, 60)
    else:  # few combinations: hold out evenly over the first noun (and its wordings)
        held = []
        nouns = list(dict.fromkeys(r["include"][-1]["class"] for r in rows))
        for noun in nouns:
            own = [r for r in rows if r["include"][-1]["class"] == noun]
            held += rng.sample(own, TEST_SIZE // len(nouns))
    texts = {r["prompt"] for r in held}
    rest = [r for r in rows if r["prompt"] not in texts]
    return rng.sample(held, min(len(held), TEST_SIZE)), rng.sample(rest, min(len(rest), TRAIN_SIZE))


def _all(tag: str) -> Iterator[Metadata]:
    frames = FRAMES if tag in ("single_object", "two_object", "counting", "colors") else FRAMES[:1]
    for include, text in _PLAIN[tag]():
        for frame in frames:
            # fewer wordings of "one": it stands for the same count as "a"
            if not (text.startswith("one") and frame == "a photo of {}"):
                yield entry(tag, include, frame.format(text))


def _single_object() -> Iterator[Plain]:
    for shape, article in product(CLASSES, ("a", "one")):
        yield [noun(shape)], f"{article} {shape}"


def _two_object() -> Iterator[Plain]:
    for a, b in permutations(CLASSES, 2):
        yield [noun(a), noun(b)], f"a {a} and a {b}"


def _counting() -> Iterator[Plain]:
    for shape, n in product(CLASSES, NUMBERS):
        yield [noun(shape, n)], f"{NUMBERS[n]} {PLURALS[shape]}"


def _colors() -> Iterator[Plain]:
    for shape, color in product(CLASSES, COLORS):
        yield [noun(shape, 1, color)], f"a {color} {shape}"


def _position() -> Iterator[Plain]:
    for (a, b), relation in product(permutations(CLASSES, 2), RELATIONS):
        yield [noun(b), noun(a) | {"position": [relation, 0]}], f"a {a} {relation} a {b}"


def _color_attr() -> Iterator[Plain]:
    for (a, b), (ca, cb) in product(permutations(CLASSES, 2), permutations(COLORS, 2)):
        yield [noun(a, 1, ca), noun(b, 1, cb)], f"a {ca} {a} and a {cb} {b}"


_PLAIN: dict[str, Callable[[], Iterator[Plain]]] = dict(
    zip(TAGS, (_single_object, _two_object, _counting, _colors, _position, _color_attr), strict=True)
)


def entry(tag: str, include: list[Metadata], text: str) -> Metadata:
    """One line of GenEval metadata; counting also excludes one more than asked for."""
    row: Metadata = {"tag": tag, "include": include}
    if tag == "counting":
        row["exclude"] = [{"class": i["class"], "count": i["count"] + 1} for i in include]
    return row | {"prompt": text}
