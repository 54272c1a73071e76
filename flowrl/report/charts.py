"""Line and stacked charts as inline SVG, coloured by the page's CSS so that they follow its theme."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

Floats = NDArray[np.float64]

WIDE, SMALL = (460, 240), (290, 190)  # sizes in user units; the page scales them to its columns
LEFT, RIGHT, TOP, BOTTOM = 54, 12, 10, 38  # room for tick labels
BINS = 300  # longer curves are averaged into this many points, with their range as a band


@dataclass(frozen=True)
class Line:
    """One curve; NaN breaks it."""

    label: str
    x: Floats
    y: Floats
    low: Floats | None = None
    high: Floats | None = None
    """Edges of a shaded band around the curve."""
    color: int = 0
    dots: bool = False
    dashed: bool = False


@dataclass(frozen=True)
class Frame:
    """Maps data to the pixels of the plot area."""

    x: tuple[float, float]
    y: tuple[float, float]
    size: tuple[int, int] = WIDE

    def at(self, x: float, y: float) -> str:
        """``"px,py"`` of a point, as SVG wants it."""
        across = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        px = LEFT + across * (self.size[0] - LEFT - RIGHT)
        py = self.size[1] - BOTTOM - up * (self.size[1] - TOP - BOTTOM)
        return f"{px:.1f},{py:.1f}"


def line_chart(
    lines: Sequence[Line], x_label: str = "iteration", rule: float | None = None, size: tuple[int, int] = WIDE
) -> Markup:
    """Curves in one frame; ``rule`` draws a horizontal line. Says so where there is nothing finite."""
    lines = [_binned(line) for line in lines]
    points = np.concatenate([np.stack([line.x, line.y]) for line in lines], axis=1) if lines else np.empty((2, 0))
    finite = np.isfinite(points).all(axis=0)
    if not finite.any():
        return Markup('<p class="empty">no finite values</p>')
    edges = [edge for line in lines for edge in (line.low, line.high) if edge is not None]
    heights = np.concatenate([points[1, finite], *(edge[np.isfinite(edge)] for edge in edges)])
    reach = heights if rule is None else np.append(heights, rule)
    frame = Frame(_span(points[0, finite], 0.0), _span(reach, 0.06), size)
    parts = [_axes(frame, x_label)]
    parts += [_band(line, frame) for line in lines]
    if rule is not None:
        start, end = frame.at(frame.x[0], rule), frame.at(frame.x[1], rule)
        parts.append(f'<polyline class="rule" points="{start} {end}"/>')
    parts += [_curve(line, frame) for line in lines]
    return _svg(parts, frame, ", ".join(line.label for line in lines))


def stacked_chart(lines: Sequence[Line], x_label: str = "iteration") -> Markup:
    """Areas on top of each other, first at the bottom; a missing value counts as 0."""
    if not lines:
        return Markup('<p class="empty">no finite values</p>')
    lines = [_binned(line) for line in lines]
    x = lines[0].x
    tops = np.cumsum([np.nan_to_num(line.y) for line in lines], axis=0)
    frame = Frame(_span(x, 0.0), _span(np.append(tops.ravel(), 0.0), 0.04, floor=0.0))
    parts = [_axes(frame, x_label)]
    bottom = np.zeros_like(tops[0])
    for line, top in zip(lines, tops, strict=True):
        area = Line(line.label, x, top, bottom, top, line.color)
        parts.append(_bars(area, frame) if len(x) == 1 else _band(area, frame, "area"))
        bottom = top
    return _svg(parts, frame, ", ".join(line.label for line in lines))


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


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) inside ``[low, high]``."""
    raw = (high - low) / wanted
    power = 10 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _span(values: Floats, margin: float, floor: float | None = None) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    if high - low <= 1e-6 * max(abs(high), abs(low)):  # a constant, but for rounding, still needs a frame with height
        pad = abs(high) * 0.1 or 0.5
        low, high = low - pad, high + pad
    pad = (high - low) * margin
    return (low - pad if floor is None else floor), high + pad


def _binned(line: Line) -> Line:
    if len(line.x) <= BINS:
        return line
    chunks = np.array_split(np.arange(len(line.x)), BINS)

    def bins(values: Floats, reduce: Callable[[Floats], float]) -> Floats:
        kept = [values[chunk][np.isfinite(values[chunk])] for chunk in chunks]
        return np.array([reduce(chunk) if len(chunk) else math.nan for chunk in kept])

    low = bins(line.y, np.min) if line.low is None else bins(line.low, np.mean)
    high = bins(line.y, np.max) if line.high is None else bins(line.high, np.mean)
    return Line(
        line.label,
        bins(line.x, np.mean),
        bins(line.y, np.mean),
        low,
        high,
        line.color,
        line.dots,
        line.dashed,
    )


def _axes(frame: Frame, x_label: str) -> str:
    width, height = frame.size
    parts = []
    for tick, label in _labelled(ticks(*frame.y, wanted=4)):
        start, end = frame.at(frame.x[0], tick), frame.at(frame.x[1], tick)
        x, y = (float(part) for part in start.split(","))
        parts.append(f'<polyline class="grid" points="{start} {end}"/>')
        parts.append(f'<text class="tick" text-anchor="end" x="{x - 6:.1f}" y="{y + 4:.1f}">{label}</text>')
    counted = [tick for tick in ticks(*frame.x, wanted=5) if tick == round(tick)]  # iterations and samples are whole
    for tick, label in _labelled(counted):
        x, y = (float(part) for part in frame.at(tick, frame.y[0]).split(","))
        parts.append(f'<text class="tick" text-anchor="middle" x="{x:.1f}" y="{y + 16:.1f}">{label}</text>')
    middle = (LEFT + width - RIGHT) / 2
    parts.append(f'<text class="label" text-anchor="middle" x="{middle}" y="{height - 5}">{escape(x_label)}</text>')
    return "".join(parts)


def _labelled(values: Sequence[float]) -> list[tuple[float, str]]:
    """Ticks with as many decimals as tell them apart."""
    largest = max((abs(value) for value in values), default=0.0)
    if len(values) < 2 or not 1e-4 <= largest < 1e4:
        return [(value, number(value).replace("e-0", "e-")) for value in values]
    places = max(0, -math.floor(math.log10(values[1] - values[0]) + 1e-9))
    return [(value, f"{value + 0.0:.{places}f}") for value in values]


def _band(line: Line, frame: Frame, style: str = "band") -> str:
    if line.low is None or line.high is None:
        return ""
    out = []
    for run in _runs(np.isfinite(line.x) & np.isfinite(line.low) & np.isfinite(line.high)):
        there = [frame.at(line.x[i], line.high[i]) for i in run]
        back = [frame.at(line.x[i], line.low[i]) for i in reversed(run)]
        title = f"<title>{escape(line.label)}</title>"
        out.append(f'<polygon class="{style} c{line.color}" points="{" ".join(there + back)}">{title}</polygon>')
    return "".join(out)


def _bars(area: Line, frame: Frame) -> str:
    """A stacked chart of one iteration: a column instead of an area without width."""
    assert area.low is not None and area.high is not None
    reach = frame.x[1] - frame.x[0]
    sides = np.array([frame.x[0] + 0.3 * reach, frame.x[0] + 0.7 * reach])
    low, high = np.repeat(area.low, 2), np.repeat(area.high, 2)
    return _band(Line(area.label, sides, high, low, high, area.color), frame, "area")


def _curve(line: Line, frame: Frame) -> str:
    style = f"curve c{line.color}" + (" dashed" if line.dashed else "")
    good = np.isfinite(line.x) & np.isfinite(line.y)
    out = []
    for run in _runs(good):
        if len(run) > 1:
            points = " ".join(frame.at(line.x[i], line.y[i]) for i in run)
            out.append(f'<polyline class="{style}" points="{points}"/>')
        if len(run) == 1 or line.dots:
            out += [_dot(line, i, frame) for i in run]
    return "".join(out)


def _dot(line: Line, index: int, frame: Frame) -> str:
    x, y = frame.at(line.x[index], line.y[index]).split(",")
    title = f"{line.label} at {number(line.x[index])}: {number(line.y[index])}"
    return f'<circle class="dot c{line.color}" cx="{x}" cy="{y}" r="2.6"><title>{escape(title)}</title></circle>'


def _runs(good: NDArray[np.bool_]) -> list[list[int]]:
    """Maximal stretches of consecutive good indices."""
    cuts = np.flatnonzero(~good)
    pieces = np.split(np.arange(len(good)), cuts)
    return [run for run in ([int(i) for i in piece if good[i]] for piece in pieces) if run]


def _svg(parts: Sequence[str], frame: Frame, label: str) -> Markup:
    width, height = frame.size
    head = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">'
    return Markup(head + "".join(parts) + "</svg>")
