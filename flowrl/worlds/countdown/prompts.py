"""Countdown tasks split by (numbers, target): no task of the test prompts is in the train prompts.

"Held out" means held out from RL training: pre-training draws from all tasks, so the test split measures whether what
RL improves carries over to tasks it never rewarded.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from typing import Any, Literal, get_args

from flowrl.worlds.countdown.solver import random_term

Split = Literal["train", "test", "pairs", "pairs_test"]
SPLITS: tuple[str, ...] = get_args(Split)
TAGS = ("3", "4")
"""How many numbers."""
LARGEST = 7
"""Numbers are 1 to 7."""
TARGETS = range(1, 51)
TRAIN_SIZE, TEST_SIZE = 400, 120  # tasks per tag
PAIRS, TEST_PAIRS = 8000, 400
MALFORMED = 0.25
"""Share of rejected answers that are no expression of exactly the given numbers; the others have another value."""
PROMPT_LENGTH = 13  # characters, the same for all tasks
LENGTH = 12
"""Characters of a completion: the longest expression, `(1+2)*(3+4)`, and an <eos>."""


def prompts(split: Split) -> list[dict[str, Any]]:
    """The fixed prompt list of a split: `prompt`, `numbers` (ascending), `target`, `tag`. Every task is solvable.
    `pairs` also have a right answer, `chosen`, and a wrong one, `rejected`: of any tasks but those of `test`;
    `pairs_test` of those alone.

    Raises ValueError for another split.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, found {split!r}")
    if split.startswith("pairs"):
        return _pairs(split == "pairs_test")
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


def _pairs(held_out: bool) -> list[dict[str, Any]]:
    tested = {(tuple(row["numbers"]), row["target"]) for row in prompts("test")}
    rng, rows = random.Random(f"countdown pairs {held_out}"), []
    count = TEST_PAIRS if held_out else PAIRS
    while len(rows) < count:
        tag = TAGS[len(rows) * len(TAGS) // count]
        numbers, target, right = random_task(int(tag), rng)
        if ((numbers, target) in tested) != held_out:
            continue
        answers = {"chosen": right, "rejected": _wrong(numbers, target, rng)}
        rows.append(
            {"prompt": text(numbers, target), "numbers": list(numbers), "target": target, "tag": tag, **answers}
        )
    return rows


def _wrong(numbers: Sequence[int], target: int, rng: random.Random) -> str:
    """An expression that misses the target, or takes a number too often, not at all or another one."""
    used = list(numbers)
    if rng.random() < MALFORMED:
        place = rng.randrange(len(used))
        others = [n for n in range(1, LARGEST + 1) if n != used[place]]
        used[place : place + 1] = rng.choice([[], [rng.choice(others)], [used[place]] * 2])
    while True:
        term = random_term(used, rng)
        if (sorted(used) != sorted(numbers) or term.value != target) and len(term.text) < LENGTH:
            return term.text


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
