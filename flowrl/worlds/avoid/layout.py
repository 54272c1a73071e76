"""The board of the world avoid: three rows of round obstacles, and the ways between them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

RADIUS, SPACING = 0.12, 0.4
"""Of an obstacle, and from one to the next: every gap is 0.16 wide."""
ROWS = (0.5, 1.1, 1.7)
"""Height of each row of obstacles; the start is at 0."""
FINISH, SIDE = 2.1, 1.3
"""Height of the line to cross, and how far from the middle the board reaches."""
INNER = (1, 2, 3)
"""Obstacles in a row, as in D3IL's Avoiding, besides one at either end: beyond those there is wall."""
GAPS = tuple(inner + 1 for inner in INNER)
WAYS = tuple(product(*map(range, GAPS)))
"""The 24 ways, as the gap of each row from the left."""


def obstacles(row: int) -> NDArray[np.floating]:
    """Places across of the obstacles of a row, those at its ends included."""
    count = INNER[row] + 2
    return (np.arange(count) - (count - 1) / 2) * SPACING


def gap_centre(row: int, gap: int | NDArray[np.int64]) -> NDArray[np.floating]:
    """Where a gap's middle is."""
    return obstacles(row)[0] + SPACING * (np.asarray(gap) + 0.5)


CENTRES = np.concatenate([np.stack([obstacles(row), np.full(INNER[row] + 2, ROWS[row])], axis=1) for row in range(3)])
"""[9 + 3, 2] of all obstacles."""


def way_name(way: Sequence[int]) -> str:
    """``1-0-2``: the gaps from the left, row by row."""
    return "-".join(map(str, way))


def way_number(name: object) -> int:
    """Place of a way in `WAYS`. Raises `ValueError` for what is none."""
    for number, way in enumerate(WAYS):
        if way_name(way) == name:
            return number
    raise ValueError(f"there is no way {name!r}; ways look like {way_name(WAYS[0])}")
