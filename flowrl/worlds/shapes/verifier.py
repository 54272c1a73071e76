"""Reads shapes back from pixels and verifies them by GenEval's clauses plus strictness: nothing unasked for."""

from __future__ import annotations

from collections.abc import Sequence

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
from flowrl.worlds.images.scenes import CLASSES, COLORS, Metadata
from flowrl.worlds.images.verdict import verify
from flowrl.worlds.shapes.scenes import SIZE


def score(images: Tensor, metadata: Sequence[Metadata]) -> tuple[Tensor, Tensor]:
    """Strict 0/1 and graded score per image [N]; NaN where the image is not finite."""
    return verdict.score(images, metadata, detect)


def _match(alpha: np.ndarray, colors: Sequence[str]) -> Match:
    area, x, y = centred(alpha)
    each = overlap(shape_distance(x, y, area), alpha)
    names = [CLASSES[i] for i in each.argmax(1)]
    return Match(names, each.max(1), np.full(len(colors), IDENTIFIED))


detect = Detector(SIZE, COLORS, _match, window=SIZE)
"""Everything that stands out from the background of each image [N, 3, 32, 32] in [0, 1]."""

__all__ = ["Detection", "detect", "score", "verify"]
