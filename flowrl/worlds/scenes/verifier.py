"""Reads coloured shapes and one line of letters back from pixels and judges them by the clauses of a prompt."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from torch import Tensor

from flowrl.worlds.images import verdict
from flowrl.worlds.images.detection import (
    IDENTIFIED,
    Detection,
    Detector,
    Match,
    centred,
    overlap,
    shape_distance,
)
from flowrl.worlds.images.scenes import CLASSES, Metadata
from flowrl.worlds.images.verdict import Word
from flowrl.worlds.scenes.glyphs import GLYPHS, glyph_distance
from flowrl.worlds.scenes.scenes import INK, PALETTE, PITCH, SIZE, TEXT

WINDOW = 18  # pixels; the largest figure is 12.4 high
LEGIBLE = 0.6  # overlap from which a component counts as a letter: strokes have much rim
GAP = 1.4 * PITCH  # largest distance between the centres of neighbouring letters of a line
LINE = 4.0  # pixels by which they may differ in height


def score(images: Tensor, metadata: Sequence[Metadata]) -> tuple[Tensor, Tensor]:
    """Strict 0/1 and graded score per image [N]; NaN where the image is not finite."""
    return verdict.score(images, metadata, detect)


def detect(images: Tensor) -> list[list[Detection]]:
    """Shapes, words and junk of each image [N, 3, 64, 64] in [0, 1]."""
    return [_with_words(found) for found in _figures(images)]


def _match(alpha: np.ndarray, colors: Sequence[str]) -> Match:
    """Black components are compared with letters, the others with shapes."""
    ink = np.array([color == INK for color in colors])
    names, overlaps = np.empty(len(colors), object), np.zeros(len(colors), np.float32)
    for rows, known, distance in ((ink, tuple(GLYPHS), glyph_distance), (~ink, CLASSES, shape_distance)):
        if rows.any():
            area, x, y = centred(alpha[rows])
            each = overlap(distance(x, y, area), alpha[rows])
            names[rows], overlaps[rows] = np.array(known, object)[each.argmax(1)], each.max(1)
    return Match(list(names), overlaps, np.where(ink, LEGIBLE, IDENTIFIED))


_figures = Detector(SIZE, PALETTE, _match, WINDOW)


def _with_words(found: Sequence[Detection]) -> list[Detection]:
    """Letters become words, lines of neighbours from left to right; junk ink looks like a word."""
    letters = sorted((d for d in found if d.shape in GLYPHS), key=lambda d: d.box[0])
    lines: list[list[Detection]] = []
    for letter in letters:
        line = next((line for line in lines if _follows(letter, line[-1])), None)
        if line is None:
            lines.append([letter])
        else:
            line.append(letter)
    rest = [d for d in found if d.shape not in GLYPHS]
    junk = [Detection(None, d.color, d.box, d.quality, TEXT) if d.guess in GLYPHS else d for d in rest]
    return [*junk, *map(_word, lines)]


def _follows(letter: Detection, before: Detection) -> bool:
    (ax, ay), (bx, by) = _centre(letter), _centre(before)
    return abs(ay - by) <= LINE and 0 < ax - bx <= GAP


def _centre(found: Detection) -> tuple[float, float]:
    x0, y0, x1, y1 = found.box
    return (x0 + x1) / 2, (y0 + y1) / 2


def _word(line: Sequence[Detection]) -> Word:
    def side(i: int) -> Iterable[float]:
        return (d.box[i] for d in line)

    box = min(side(0)), min(side(1)), max(side(2)), max(side(3))
    text = "".join(str(d.shape) for d in line)
    return Word(TEXT, INK, box, min(d.quality for d in line), TEXT, text)
