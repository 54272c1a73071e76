"""Prompts of GenEval's six kinds with their metadata, mixed as Flow-GRPO trains on them (arXiv:2505.05470)."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any, Literal

from flowrl.detection.metadata import TAGS
from flowrl.detection.prompts import generate

SHARES = {"position": 7, "counting": 5, "color_attr": 3, "colors": 1, "two_object": 1}
"""7 : 5 : 3 : 1 : 1 in the paper, and no single objects."""
SIZE, TEST_SIZE = 400, 40
"""Prompts per share of the training set, and per kind of the test set."""


def geneval(split: Literal["train", "test"]) -> list[dict[str, Any]]:
    """6,800 prompts to train on in the paper's proportions (counting has 200 different ones, each ten times), 240 to
    test on, 40 of each kind. Columns are GenEval's: `tag`, `include`, `exclude`, which the reward `geneval` reads."""
    held = generate(1, TEST_SIZE)
    if split == "test":
        return held
    weights = {tag: float(SHARES.get(tag, 0)) for tag in TAGS}
    found = generate(0, SIZE, weights=weights, deny=[row["prompt"] for row in held])
    counts = Counter(row["tag"] for row in found)
    by_tag = {tag: [row for row in found if row["tag"] == tag] for tag in counts}
    # counting has few different prompts: they are repeated to keep the proportions
    mixed = [by_tag[tag][i % counts[tag]] for tag, share in SHARES.items() for i in range(share * SIZE)]
    random.Random("geneval").shuffle(mixed)
    return mixed
