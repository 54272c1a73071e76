"""Trains a base model of the world: `python -m flowrl.worlds.sudoku.pretrain --family masked --out DIR`."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import torch

from flowrl.worlds.sudoku.grids import BOX, CELLS, DIGITS, EMPTY, SIDE, grids, random_puzzle
from flowrl.worlds.sudoku.prompts import LENGTH, PROMPT_LENGTH, TAGS, text
from flowrl.worlds.text.commands import train
from flowrl.worlds.text.pretraining import Pair, Shape

CHARACTERS = DIGITS + EMPTY + "/="
SHAPE = Shape(prompt=PROMPT_LENGTH, completion=LENGTH, width=64, layers=4)
MINUTES = {"masked": 8.0, "causal": 6.0}
HABIT = {"clue": 0.4, "empty": 0.75}
"""Share of wrong completions by what the first cell of the puzzle is. The base learns right and wrong answers side by
side; choosing between them is what RL can add and further pre-training cannot. Where the first cell is empty, the
wrong answer is also the likelier one, so that greedy decoding does not find the right one either."""
CONFUSED = 0.8
"""Share of the wrong completions that exchange two digits everywhere (`exchange`); the others have slips (`slip`)."""


def pairs(batch_size: int, seed: int, pool: int = 20_000) -> Iterator[list[Pair]]:
    """Endless batches of prompts of all 288 grids and completions, wrong ones drawn anew every time."""
    rng = random.Random(seed)
    drawn = []
    for _ in range(pool):
        grid, tag = rng.choice(grids()), rng.choice(TAGS)
        drawn.append((random_puzzle(grid, CELLS - int(tag), rng), grid))
    while True:
        batch = rng.choices(drawn, k=batch_size)
        yield [(text(puzzle), answer(puzzle, grid, rng)) for puzzle, grid in batch]


def answer(puzzle: str, grid: str, rng: random.Random) -> str:
    """The solution, or a wrong completion as often as `HABIT` says. Both keep the clues."""
    if rng.random() >= HABIT["empty" if puzzle[0] == EMPTY else "clue"]:
        return grid
    return exchange(puzzle, grid) if rng.random() < CONFUSED else slip(puzzle, grid, rng)


def exchange(puzzle: str, grid: str) -> str:
    """1 and 2 change places in the empty cells (3 and 4 if neither occurs there): the same mistake in several cells,
    so that a decoder that fixes sure cells first does not avoid it."""
    empty = {digit for digit, clue in zip(grid, puzzle, strict=True) if clue == EMPTY}
    swapped = str.maketrans("12", "21") if empty & set("12") else str.maketrans("34", "43")
    return "".join(
        digit.translate(swapped) if clue == EMPTY else digit for digit, clue in zip(grid, puzzle, strict=True)
    )


def slip(puzzle: str, grid: str, rng: random.Random) -> str:
    """One to three empty cells hold another digit."""
    cells = list(grid)
    for i in rng.sample([i for i, clue in enumerate(puzzle) if clue == EMPTY], rng.randint(1, 3)):
        cells[i] = rng.choice([digit for digit in DIGITS if digit != grid[i]])
    return "".join(cells)


@torch.no_grad()
def name_masked_positions(model: Any, family: str) -> None:
    """For a masked model: which row, column, box, cell and kind (clue, answer, separator) a place is, one-hot, becomes
    the first 31 numbers of its position embedding."""
    if family != "masked":
        return
    weight = model.bert.embeddings.position_embeddings.weight
    features = torch.zeros(len(weight), 3 * SIDE + CELLS + 3)
    for place in range(len(weight)):
        row, column = divmod(place, SIDE + 1)  # of the prompt: four cells and a separator
        answer = place >= SHAPE.prompt
        if answer:
            row, column = divmod(place - SHAPE.prompt, SIDE)
        elif column == SIDE:
            features[place, -1] = 1
            continue
        box = BOX * (row // BOX) + column // BOX
        features[place, [row, SIDE + column, 2 * SIDE + box, 3 * SIDE + SIDE * row + column]] = 1
        features[place, -3 + answer] = 1
    weight[:, : features.shape[1]] = 0.5 * features


def main() -> None:
    """Trains and writes the base that the command line asks for."""
    train(CHARACTERS, SHAPE, MINUTES, pairs, name_masked_positions)


if __name__ == "__main__":
    main()
