"""Countdown tasks split by (numbers, target): no task of the test prompts is in the train prompts.

"Held out" means held out from RL training: pre-training draws from all tasks, so the test split measures whether what
RL improves carries over to tasks it never rewarded.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from typing import Any, Literal

from flowrl.worlds.countdown.solver import random_term

TAGS = ("3", "4")
"""How many numbers."""
LARGEST = 7
"""Numbers are 1 to 7."""
TARGETS = range(1, 51)
TRAIN_SIZE, TEST_SIZE = 400, 120  # tasks per tag
PROMPT_LENGTH = 13  # characters, the same for all tasks
LENGTH = 12
"""Characters of a completion: the longest expression, `(1+2)*(3+4)`, and an <eos>."""


def prompts(split: Literal["train", "test"]) -> list[dict[str, Any]]:
    """The fixed prompt list of a split: `prompt`, `numbers` (ascending), `target`, `tag`. Every task is solvable.

    Raises ValueError for another split.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', found {split!r}")
    rows = []
    for tag, tasks in _tasks():
        for numbers, target in tasks[:TEST_SIZE] if split == "test" else tasks[TEST_SIZE:]:
            rows.append({"prompt": text(numbers, target), "numbers": list(numbers), "target": target, "tag": tag})
    return rows


@cache
def _tasks() -> tuple[tuple[str, list[tuple[tuple[int, ...], int]]], ...]:
    """The (numbers, target) of either split by tag, in the order drawn."""
    rng, found = random.Random("countdown"), []
    for tag in TAGS:
        tasks: dict[tuple[tuple[int, ...], int], None] = {}
        while len(tasks) < TRAIN_SIZE + TEST_SIZE:
            numbers, target, _ = random_task(int(tag), rng)
            tasks[numbers, target] = None
        found.append((tag, list(tasks)))
    return tuple(found)


def random_task(count: int, rng: random.Random) -> tuple[tuple[int, ...], int, str]:
    """(numbers ascending, target, an expression that reaches it), drawn as a random expression of suitable value."""
    while True:
        numbers = tuple(sorted(rng.randint(1, LARGEST) for _ in range(count)))
        term = random_term(numbers, rng)
        if term.value in TARGETS:
            return numbers, int(term.value), term.text


def text(numbers: Sequence[int], target: int) -> str:
    """The prompt of a task, of fixed length: `2 3 5   = 13:` or `2 3 5 7 =  9:`."""
    return f"{' '.join(map(str, numbers)):<7} = {target:>2}:"
