"""Numbers as a person reads them, and which of many are shown."""

from __future__ import annotations

import math


def number(value: float) -> str:
    """Short reading form: 0.123, 1.23e-07, 12.3k, 4.56M; an en dash for NaN."""
    if not math.isfinite(value):
        return "–" if math.isnan(value) else str(value)
    size = abs(value)
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= limit:
            scale = 1e3 if suffix == "k" else limit
            return f"{value / scale:.3g}{suffix}"
    if size >= 1000:
        return f"{value:.0f}"
    return f"{value:.3g}"


def duration(seconds: float) -> str:
    """``90 s``, ``12 min`` or ``3.4 h``."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def spaced(count: int, wanted: int) -> list[int]:
    """At most ``wanted`` of ``count`` indices, evenly, with both ends."""
    if count <= wanted:
        return list(range(count))
    return [round(i * (count - 1) / (wanted - 1)) for i in range(wanted)]
