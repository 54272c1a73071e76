"""The grid as a picture, and the paths of episodes on it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from flowrl.environments.protocol import Array, Episode
from flowrl.worlds.two_walls.grid import GOAL, MIDDLE, SIZE

CELL, FINER = 12, 3
"""Pixels of a cell; it is drawn so many times larger and shrunk, which smooths the lines."""
GROUND, RULE, GOALS = "#ffffff", "#e3e5e9", "#dcefdc"
BOTTOM, TOP, NEITHER = "#d8602c", "#1f6fb4", "#8a8f98"
ASIDE = 0.3
"""Of a cell: paths of many episodes are moved aside by up to so much, so that they do not cover each other."""


def draw(episodes: Sequence[Episode]) -> Array:
    """[H, W, 3] uint8: the goals green, paths to the top blue, to the bottom orange, to neither grey."""
    side = SIZE * CELL * FINER
    image = Image.new("RGB", (side, side), GROUND)
    pen = ImageDraw.Draw(image)
    for rows in ((0, GOAL), (SIZE - GOAL, SIZE)):
        pen.rectangle([(0, rows[0] * CELL * FINER), (side, rows[1] * CELL * FINER)], fill=GOALS)
    for line in range(1, SIZE):
        at = line * CELL * FINER
        pen.line([(at, 0), (at, side)], fill=RULE, width=1)
        pen.line([(0, at), (side, at)], fill=RULE, width=1)
    for number, episode in enumerate(episodes):
        aside = ASIDE * np.array([np.cos(2.4 * number), np.sin(2.4 * number)]) * (number / len(episodes)) ** 0.5
        across, up = ((episode.observed[:, :2] * MIDDLE + MIDDLE + 0.5 + aside) * CELL * FINER).T
        points = list(zip(across.tolist(), (side - up).tolist(), strict=True))
        colour = {0: BOTTOM, 1: TOP}.get(episode.mode, NEITHER)
        pen.line(points, fill=colour, width=(2 if len(episodes) == 1 else 1) * FINER, joint="curve")
        x, y = points[0]
        pen.ellipse([(x - 2 * FINER, y - 2 * FINER), (x + 2 * FINER, y + 2 * FINER)], fill=colour)
    return np.asarray(image.reduce(FINER))
