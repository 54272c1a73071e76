"""Moving over the grid: cells, and moves to one of the eight around."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flowrl.environments.protocol import Answer, Array
from flowrl.math.random import derive
from flowrl.types import Prompt

SIZE, GOAL = 25, 2
"""Cells of a side; rows of cells at the bottom and at the top that are the goals."""
PAID, LIMIT = 20.0, 100
"""Reward of a goal, and steps after which an episode is cut."""
MIDDLE = SIZE // 2
SADDLE = tuple(range(2, SIZE - 2, 2))
"""Columns of the eleven cells of the middle row from which both goals are equally far."""


class Grid:
    """``count`` rows. An observation is the cell, each of its two numbers within 1, and an action where to go, cut to 1
    and rounded: one cell in each direction, none, or both.

    A goal ends an episode and pays 20; nothing else does (the map ``two_walls`` of akanazawa/fpo, gridworld). The
    ``mode`` is the goal reached: 0 at the bottom, 1 at the top. A prompt's column ``start`` is the cell to begin in;
    without one it is any that is no goal.
    """

    observation_size, action_size = 2, 2

    def __init__(self, count: int) -> None:
        self._count = count

    def reset(self, seeds: Sequence[int], prompts: Sequence[Prompt]) -> Array:
        """[N, 2]"""
        self._cell = np.array([_start(*each) for each in zip(seeds, prompts, strict=True)])
        self._time = np.zeros(len(self._cell), dtype=np.int64)
        return observation(self._cell)

    def step(self, actions: Array, rows: Array) -> Answer:
        """One step of some rows."""
        moved = np.clip(self._cell[rows] + np.round(np.clip(actions, -1, 1)).astype(np.int64), 0, SIZE - 1)
        self._cell[rows], self._time[rows] = moved, self._time[rows] + 1
        top, bottom = moved[:, 1] >= SIZE - GOAL, moved[:, 1] < GOAL
        done = top | bottom
        known = {"success": done.astype(np.float64), "mode": np.where(done, top.astype(np.int64), -1)}
        return observation(moved), PAID * done, done, ~done & (self._time[rows] >= LIMIT), known


def _start(seed: int, prompt: Prompt) -> tuple[int, int]:
    asked = prompt.columns.get("start")
    if asked is not None:
        across, up = asked
        if not (0 <= across < SIZE and GOAL <= up < SIZE - GOAL):
            raise ValueError(f"start {asked} is no cell between the goals of {SIZE} x {SIZE}")
        return int(across), int(up)
    number = derive(seed, "start") % (SIZE * (SIZE - 2 * GOAL))
    return number % SIZE, GOAL + number // SIZE


def observation(cell: Array) -> Array:
    """[n, 2] of cells [n, 2]."""
    return (cell - MIDDLE) / MIDDLE


def make(count: int) -> Grid:
    """The environment, of so many rows."""
    return Grid(count)
