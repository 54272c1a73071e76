"""Sizes tried one after the other, each twice the one before, until a larger one is no faster or does not fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

GAIN = 0.03
"""Least share of the time that a larger size has to save."""
PATIENCE = 2
"""Sizes in a row that save less, after which no larger one is tried; one may have been disturbed."""
HEADROOM = 0.95
"""Share of the memory that may be filled."""


@dataclass(frozen=True)
class Cost:
    """What a size costs."""

    seconds: float
    """Per sample."""
    memory: int = 0
    """Bytes at the peak; 0 where nobody knows."""


@dataclass(frozen=True)
class Tried:
    """A size, and what came of it."""

    size: int
    cost: Cost | None
    """``None``: it does not fit, or was not tried because it would not."""
    why: str = ""


class DoesNotFitError(Exception):
    """Raised by a measurement that ran out of memory."""


def double(measure: Callable[[int], Cost], most: int, room: int | None = None) -> list[Tried]:
    """The sizes 1, 2, 4, ... and at last ``most``, as far as they were tried, with their costs.

    The last one tried is the second in a row (`PATIENCE`) that saves less than `GAIN` over the fastest, runs out of
    memory (`DoesNotFitError`), or is ``most``. A size is not tried where the growth of the memory by the last doubling
    says that it takes more than `HEADROOM` of ``room`` bytes.
    """
    found: list[Tried] = []
    size = 1
    while True:
        expected = _expected(found, size)
        if room is not None and expected > HEADROOM * room:
            found.append(Tried(size, None, f"not tried: would take about {expected / 2**30:.1f} GiB"))
            return found
        try:
            cost = measure(size)
        except DoesNotFitError:
            found.append(Tried(size, None, "out of memory"))
            return found
        found.append(Tried(size, cost))
        best = fastest(found)
        if size >= most or best in found[:-PATIENCE]:
            return found
        size = min(2 * size, most)


def fastest(tried: Sequence[Tried]) -> Tried | None:
    """The one that takes the least time; the smaller one, which takes less memory, where a larger saves less than
    `GAIN`. ``None`` where none fits."""
    best: Tried | None = None
    for each in tried:
        if each.cost is None:
            continue
        if best is None or best.cost is None or each.cost.seconds <= (1 - GAIN) * best.cost.seconds:
            best = each
    return best


def _expected(tried: Sequence[Tried], size: int) -> float:
    """Bytes that a size takes if memory goes on to grow in proportion to it."""
    known = [(each.size, each.cost.memory) for each in tried if each.cost is not None and each.cost.memory]
    if len(known) < 2:
        return 0.0
    (a, low), (b, high) = known[-2:]
    return high + max(high - low, 0) / (b - a) * (size - b)
