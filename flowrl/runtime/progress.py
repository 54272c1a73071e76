"""What a person watching a run sees: a live table in a terminal, one line per iteration elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

ROWS = (
    ("reward", "reward/mean"),
    ("eval", "eval/reward/mean"),
    ("rounds", "sampling/rounds"),
    ("ratio off by", "ratio/first_max_deviation"),
    ("steps skipped", "scaler/skipped_steps"),
    ("KL", "kl/reference"),
    ("clipped", "clip_fraction"),
    ("loss", "loss"),
    ("gradient", "grad_norm"),
)
"""What is shown, if it was measured: label and metric."""
COMPARED = ("reward/mean", "eval/reward/mean")
"""Metrics shown with their change since the first time."""


class Display:
    """Shows the progress of a run. ``console`` decides where; a console that is no terminal gets plain lines."""

    def __init__(self, name: str, iterations: int, done: int = 0, console: Console | None = None) -> None:
        self._name, self._iterations, self._start = name, iterations, done
        self._console = console or Console(stderr=True)
        self._live = Live(console=self._console, auto_refresh=False) if self._console.is_terminal else None
        self._first: dict[str, float] = {}
        self._latest: dict[str, float] = {}
        self._began = time.perf_counter()

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def update(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """Show the metrics of a finished iteration (counted from 1); earlier ones stay where this one has none."""
        self._latest |= metrics
        for key in COMPARED:
            if key in metrics:
                self._first.setdefault(key, metrics[key])
        if self._live:
            self._live.update(self._table(iteration), refresh=True)
        else:
            self._console.print(self._line(iteration, metrics), highlight=False, soft_wrap=True)

    def note(self, text: str) -> None:
        """A sentence above the table."""
        self._console.print(text, highlight=False, soft_wrap=True)

    def _line(self, iteration: int, metrics: Mapping[str, float]) -> str:
        parts = [f"{label} {self._value(key)}" for label, key in ROWS if key in metrics]
        phases = _phases(metrics)
        times = " ".join(f"{name} {seconds:.1f}s" for name, seconds in phases.items())
        left = f"left {_duration(self._remaining(iteration))}"
        return " | ".join([f"{self._name} {iteration}/{self._iterations}", *parts, times, left])

    def _table(self, iteration: int) -> Group:
        left = _duration(self._remaining(iteration))
        head = Text(f"{self._name}   iteration {iteration} of {self._iterations}   {left} left", style="bold")
        table = Table.grid(padding=(0, 2))
        for label, key in ROWS:
            if key in self._latest:
                table.add_row(Text(label, style="dim"), self._value(key))
        phases = _phases(self._latest)
        table.add_row(Text("time", style="dim"), "  ".join(f"{name} {value:.1f} s" for name, value in phases.items()))
        return Group(head, ProgressBar(self._iterations, iteration, width=60), table)

    def _value(self, key: str) -> str:
        value = self._latest[key]
        if key not in self._first or self._first[key] == value:
            return f"{value:.4g}"
        change = value - self._first[key]
        return f"{value:.4g} ({'↑' if change > 0 else '↓'} {change:+.3g})"

    def _remaining(self, iteration: int) -> float:
        """Seconds, at the pace of this process."""
        made = iteration - self._start
        pace = (time.perf_counter() - self._began) / made if made > 0 else 0.0
        return pace * (self._iterations - iteration)


def _phases(metrics: Mapping[str, float]) -> dict[str, float]:
    """Seconds by phase, without the sum."""
    times = {key.removeprefix("time/"): value for key, value in metrics.items() if key.startswith("time/")}
    return {name: value for name, value in times.items() if name != "iteration"}


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
