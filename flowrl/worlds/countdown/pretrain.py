"""Trains a base model of the world: `python -m flowrl.worlds.countdown.pretrain --family causal --out DIR`."""

from __future__ import annotations

import random
from collections.abc import Iterator

from flowrl.worlds.countdown.prompts import LENGTH, PROMPT_LENGTH, TAGS, random_task, text
from flowrl.worlds.countdown.solver import random_term
from flowrl.worlds.text.commands import train
from flowrl.worlds.text.pretraining import Pair, Shape

CHARACTERS = "0123456789+-*/() =:"
SHAPE = Shape(prompt=PROMPT_LENGTH, completion=LENGTH, width=96, layers=4)
MINUTES = {"causal": 7.0, "masked": 10.0}
NOISE = {"3": 0.25, "4": 0.15}
"""Share of wrong completions by tag. The base learns right and wrong modes side by side; choosing between them is what
RL can add and further pre-training cannot."""


def pairs(batch_size: int, seed: int) -> Iterator[list[Pair]]:
    """Endless batches of random tasks and expressions; a wrong one uses the same numbers for another value."""
    rng = random.Random(seed)
    while True:
        yield [_pair(rng) for _ in range(batch_size)]


def _pair(rng: random.Random) -> Pair:
    tag = rng.choice(TAGS)
    numbers, target, expression = random_task(int(tag), rng)
    if rng.random() < NOISE[tag]:
        wrong = random_term(numbers, rng)
        while wrong.value == target:
            wrong = random_term(numbers, rng)
        expression = wrong.text
    return text(numbers, target), expression


def main() -> None:
    """Trains and writes the base that the command line asks for."""
    train(CHARACTERS, SHAPE, MINUTES, pairs)


if __name__ == "__main__":
    main()
