"""Eight capital letters as strokes with round ends."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

HALF_WIDTH = 0.2  # of a stroke, relative to a letter's half height

LEFT, RIGHT, TOP, BOTTOM = -0.5, 0.5, -0.8, 0.8  # where strokes end: a stroke's half width inside the box
Stroke = tuple[tuple[float, float], tuple[float, float]]
GLYPHS: dict[str, tuple[Stroke, ...]] = {
    "E": (
        ((LEFT, TOP), (LEFT, BOTTOM)),
        ((LEFT, TOP), (RIGHT, TOP)),
        ((LEFT, 0), (RIGHT, 0)),
        ((LEFT, BOTTOM), (RIGHT, BOTTOM)),
    ),
    "F": (((LEFT, TOP), (LEFT, BOTTOM)), ((LEFT, TOP), (RIGHT, TOP)), ((LEFT, 0), (RIGHT, 0))),
    "H": (((LEFT, TOP), (LEFT, BOTTOM)), ((RIGHT, TOP), (RIGHT, BOTTOM)), ((LEFT, 0), (RIGHT, 0))),
    "K": (((LEFT, TOP), (LEFT, BOTTOM)), ((LEFT, 0.15), (RIGHT, TOP)), ((-0.2, -0.1), (RIGHT, BOTTOM))),
    "N": (((LEFT, TOP), (LEFT, BOTTOM)), ((LEFT, TOP), (RIGHT, BOTTOM)), ((RIGHT, TOP), (RIGHT, BOTTOM))),
    "U": (((LEFT, TOP), (LEFT, BOTTOM)), ((LEFT, BOTTOM), (RIGHT, BOTTOM)), ((RIGHT, TOP), (RIGHT, BOTTOM))),
    "X": (((LEFT, TOP), (RIGHT, BOTTOM)), ((LEFT, BOTTOM), (RIGHT, TOP))),
    "Z": (((LEFT, TOP), (RIGHT, TOP)), ((RIGHT, TOP), (LEFT, BOTTOM)), ((LEFT, BOTTOM), (RIGHT, BOTTOM))),
}
"""Strokes in a box of [-1, 1] by [-1, 1], y downward. No two of these letters begin a word of the world's captions, so
its tokenizer reads a text letter by letter."""


def inside_glyph(letter: str, x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    """Whether points lie in the letter of half height `r` around the origin."""
    squared = [_squared_distance(x / r, y / r, stroke) for stroke in GLYPHS[letter]]
    return torch.stack(squared).amin(0) <= HALF_WIDTH**2


def glyph_distance(x: np.ndarray, y: np.ndarray, area: np.ndarray) -> np.ndarray:  # [8, M, W, W], in GLYPHS' order
    """Signed distance to letters of `area` with their centroid at the origin."""
    found = []
    for letter, strokes in GLYPHS.items():
        unit_area, middle_x, middle_y = _MOMENTS[letter]
        r = np.sqrt(area / unit_area)
        u, v = x / r + middle_x, y / r + middle_y
        nearest = np.sqrt(np.minimum.reduce([_squared_distance(u, v, stroke) for stroke in strokes]))
        found.append((nearest - HALF_WIDTH) * r)
    return np.stack(found)


def _squared_distance(x: Any, y: Any, stroke: Stroke) -> Any:
    """From points to a stroke's middle line."""
    (ax, ay), (bx, by) = stroke
    dx, dy = bx - ax, by - ay
    along = (((x - ax) * dx + (y - ay) * dy) / (dx * dx + dy * dy)).clip(0, 1)
    return (x - ax - along * dx) ** 2 + (y - ay - along * dy) ** 2


def _moments(letter: str) -> tuple[float, float, float]:
    """(area, centroid's x and y) of a letter of half height 1, from a fine grid."""
    axis = (torch.arange(400) + 0.5) / 200 - 1
    inside = inside_glyph(letter, axis[None, :], axis[:, None], torch.tensor(1.0)).float()
    total = inside.sum()
    centroid = [float((inside * points).sum() / total) for points in (axis[None, :], axis[:, None])]
    return float(total) / 200**2, centroid[0], centroid[1]


_MOMENTS = {letter: _moments(letter) for letter in GLYPHS}
