"""The board of the world avoid as a picture, and the paths of episodes on it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from flowrl.environments.protocol import Array, Episode
from flowrl.worlds.avoid.layout import CENTRES, FINISH, RADIUS, ROWS, SIDE, WAYS, gap_centre, obstacles, way_number

SCALE, FINER = 116, 3
"""Pixels of 1; it is drawn so many times larger and shrunk, which smooths the lines."""
LOW, HIGH = -0.12, 2.3
"""Heights that are shown."""
SIZE = round(2 * (SIDE + 0.06) * SCALE), round((HIGH - LOW) * SCALE)
GROUND, STONE, LINE, ASKED = "#ffffff", "#8a8f98", "#3a3f47", "#dcefdc"
ARRIVED, FAILED = "#1f6fb4", "#d8602c"
Point = tuple[float, float]


def draw(episodes: Sequence[Episode]) -> Array:
    """[H, W, 3] uint8: obstacles and the walls beyond them grey, the line to cross at the top, paths blue where they
    arrived and orange where they did not, with a cross at their end. One episode has its asked gaps marked green, and
    a dot for each of its decisions; many are drawn thin, those that failed below."""
    image = Image.new("RGB", (SIZE[0] * FINER, SIZE[1] * FINER), GROUND)
    pen = ImageDraw.Draw(image)
    single = len(episodes) == 1
    if single:
        _asked(pen, episodes[0])
    _board(pen)
    for episode in sorted(episodes, key=lambda each: each.success):
        _path(pen, episode, single)
    return np.asarray(image.reduce(FINER))


def _at(x: float, y: float) -> Point:
    return (x + SIDE + 0.06) * SCALE * FINER, (HIGH - y) * SCALE * FINER


def _asked(pen: ImageDraw.ImageDraw, episode: Episode) -> None:
    name = episode.prompt.columns.get("way")
    if name is not None:
        for row, gap in enumerate(WAYS[way_number(name)]):
            middle = float(gap_centre(row, gap))
            pen.rectangle([_at(middle - 0.09, ROWS[row] + 0.16), _at(middle + 0.09, ROWS[row] - 0.16)], fill=ASKED)


def _board(pen: ImageDraw.ImageDraw) -> None:
    for row, height in enumerate(ROWS):
        ends = obstacles(row)[[0, -1]]
        for near, far in ((ends[0], -SIDE - 0.06), (ends[1], SIDE + 0.06)):
            pen.line([_at(near, height), _at(far, height)], fill=STONE, width=round(0.025 * SCALE * FINER))
    for x, y in CENTRES.tolist():
        pen.ellipse([_at(x - RADIUS, y + RADIUS), _at(x + RADIUS, y - RADIUS)], fill=STONE)
    for side in (-SIDE, SIDE):
        pen.line([_at(side, LOW), _at(side, HIGH)], fill=STONE, width=2 * FINER)
    pen.line([_at(-SIDE, FINISH), _at(SIDE, FINISH)], fill=LINE, width=2 * FINER)


def _path(pen: ImageDraw.ImageDraw, episode: Episode, single: bool) -> None:
    arrived = not episode.success <= 0  # of one that goes on, NaN, nothing is known
    colour, width = ARRIVED if arrived else FAILED, (2 if single else 1) * FINER
    points = [_at(float(x), float(y)) for x, y in episode.observed[:, :2]]
    pen.line(points, fill=colour, width=width, joint="curve")
    if single:
        for x, y in points[:-1]:
            pen.ellipse([(x - 2 * FINER, y - 2 * FINER), (x + 2 * FINER, y + 2 * FINER)], fill=colour)
    if not arrived:
        (x, y), arm = points[-1], (5 if single else 3) * FINER
        for slope in (-1, 1):
            pen.line([(x - arm, y - slope * arm), (x + arm, y + slope * arm)], fill=colour, width=width)
