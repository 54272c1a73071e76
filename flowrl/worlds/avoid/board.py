"""Moving over the board: a point with inertia, pushed by noise, that must cross the line without touching anything."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from flowrl.environments.protocol import Answer, Array
from flowrl.math.random import normal
from flowrl.types import Prompt
from flowrl.worlds.avoid.layout import (
    CENTRES,
    FINISH,
    GAPS,
    RADIUS,
    ROWS,
    SIDE,
    SPACING,
    WAYS,
    gap_centre,
    obstacles,
    way_number,
)

STEP, GRIP, NOISE = 0.03, 0.4, 0.1
"""Distance of one step at full speed; share of the way to the asked velocity; deviation of what pushes a velocity."""
LIMIT = 160
"""Steps, after which an episode is cut."""
START = 0.05
"""Deviation of the place across at the start."""
STREAM = 1021  # of the noise of a world, far from those of samplers and estimators


class Board:
    """``count`` rows. An observation is place (2), velocity (2), how far up the next row or the line is, whether a way
    is asked for, and how far aside the asked gaps of the next row and of the one after it are (0 without). An action is
    the velocity to go to, each of two numbers within 1, else cut.

    The reward is 1 where the line is crossed by the asked way (any way, where the prompt has no column ``way``), and 0
    otherwise; an episode ends there, at a touch, and at another gap than the asked one. ``mode`` is the way taken.
    """

    observation_size, action_size = 8, 2

    def __init__(self, count: int) -> None:
        self._count = count

    def reset(self, seeds: Sequence[int], prompts: Sequence[Prompt]) -> Array:
        """[N, 8]"""
        noise = normal(torch.tensor(seeds, dtype=torch.int64), (LIMIT + 1, 2), stream=STREAM).double().numpy()
        self._noise = noise
        asked = [prompt.columns.get("way") for prompt in prompts]
        self._way = np.array([-1 if way is None else way_number(way) for way in asked])
        self._gaps = np.array(WAYS)[self._way] * (self._way >= 0)[:, None]
        self._place = np.stack([START * noise[:, LIMIT, 0], np.zeros(len(noise))], axis=1)
        self._velocity = np.zeros((len(noise), 2))
        self._taken = np.full((len(noise), 3), -1)
        self._time = np.zeros(len(noise), dtype=np.int64)
        return self._observed(np.arange(len(noise)))

    def step(self, actions: Array, rows: Array) -> Answer:
        """One step of some rows."""
        before, time = self._place[rows], self._time[rows]
        push = NOISE * self._noise[rows, time]
        velocity = self._velocity[rows] + GRIP * (np.clip(actions, -1, 1) - self._velocity[rows]) + push
        after = before + STEP * velocity
        taken, hit, wrong = self._passed(rows, before, after)
        hit |= (np.linalg.norm(after[:, None] - CENTRES, axis=2) < RADIUS).any(axis=1) | (np.abs(after[:, 0]) > SIDE)
        done = (after[:, 1] >= FINISH) & ~hit & ~wrong
        self._place[rows], self._velocity[rows], self._taken[rows], self._time[rows] = after, velocity, taken, time + 1
        ended = hit | wrong | done
        mode = np.where(done, taken @ np.array([GAPS[1] * GAPS[2], GAPS[2], 1]), -1)
        known = {"success": done.astype(np.float64), "mode": mode}
        return self._observed(rows), done.astype(np.float64), ended, ~ended & (time + 1 >= LIMIT), known

    def _passed(self, rows: Array, before: Array, after: Array) -> tuple[Array, Array, Array]:
        """Gaps taken so far [n, 3], and where a row's line was crossed in its wall or by another gap than asked [n]."""
        taken = self._taken[rows].copy()
        hit, wrong = np.zeros(len(rows), dtype=bool), np.zeros(len(rows), dtype=bool)
        for row, height in enumerate(ROWS):
            crossed = (before[:, 1] < height) & (after[:, 1] >= height)
            share = (height - before[:, 1]) / np.where(crossed, after[:, 1] - before[:, 1], 1)
            across = before[:, 0] + share * (after[:, 0] - before[:, 0])
            gap = np.floor((across - obstacles(row)[0]) / SPACING).astype(np.int64)
            hit |= crossed & ((gap < 0) | (gap >= GAPS[row]))
            wrong |= crossed & (self._way[rows] >= 0) & (gap != self._gaps[rows, row])
            taken[:, row] = np.where(crossed, gap, taken[:, row])
        return taken, hit, wrong

    def _observed(self, rows: Array) -> Array:
        return observation(self._place[rows], self._velocity[rows], self._way[rows])


def observation(place: Array, velocity: Array, way: Array) -> Array:
    """[n, 8] of places and velocities [n, 2], and the numbers of the asked ways [n], -1 for any."""
    asked, gaps = way >= 0, np.array(WAYS)[way]
    heights = np.array([*ROWS, FINISH, FINISH])
    following = (place[:, 1:] > np.array(ROWS) + RADIUS).sum(axis=1)
    centres = np.stack([gap_centre(row, gaps[:, row]) for row in range(3)], axis=1)
    aside = np.concatenate([centres - place[:, :1], np.zeros((len(place), 2))], axis=1) * asked[:, None]
    rows = np.arange(len(place))
    seen = (place, velocity, heights[following, None] - place[:, 1:], asked[:, None].astype(np.float64))
    return np.concatenate([*seen, aside[rows, following, None], aside[rows, following + 1, None]], axis=1)


def make(count: int) -> Board:
    """The environment, of so many rows."""
    return Board(count)
