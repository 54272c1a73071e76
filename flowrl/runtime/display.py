"""What a person sees of a command at work: a few lines that change in a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from flowrl.errors import printable

ROWS = (
    ("reward", "reward/mean"),
    ("held-out", "eval/reward/mean"),
    ("rounds", "sampling/rounds"),
    ("ratio off by", "ratio/first_max_deviation"),
    ("steps skipped", "scaler/skipped_steps"),
    ("KL", "kl/reference"),
    ("clipped", "clip_fraction"),
    ("loss", "loss"),
    ("gradient", "grad_norm"),
    ("entropy", "entropy"),
)
"""What is shown, if it was measured: label and metric."""
UNUSUAL = {"ratio/first_max_deviation": 1e-3}
"""Metrics that are shown only where they are larger: self-checks, which say nothing while all is well."""
COMPARED = ("reward/mean", "eval/reward/mean")
"""Metrics shown with their change since the first time."""
PHASES = {
    "sample": "sampling",
    "decode": "decoding",
    "reward": "waiting for rewards",
    "advantage": "advantages",
    "update": "update",
    "monitor": "monitor",
    "eval": "evaluation",
}
"""What the phases of an iteration are called."""
BAR = 60
"""Columns of the bar, where there are so many."""
PATIENCE = 30.0
"""Seconds between two lines about the same thing, where there is no terminal."""
SINGLE = 4
"""Rewards whose means are shown one by one, at most, beside the total."""


class Display:
    """Shows how far a command is. ``console`` decides where; a console that is no terminal gets plain lines.

    Before the first iteration it says what is being loaded (`stage`), then how training goes
    (`start_iterations`, `update`).
    """

    def __init__(
        self, name: str = "flowrl", iterations: int = 0, done: int = 0, console: Console | None = None
    ) -> None:
        self._name, self._iterations, self._start, self._iteration = name, iterations, done, done
        self._console = console or Console(stderr=True)
        self._spinner = Spinner("dots")
        self._first: dict[str, float] = {}
        self._latest: dict[str, float] = {}
        self._began = time.perf_counter()
        self._now, self._since = "", time.perf_counter()
        self._done = self._total = 0
        self._stopping = False
        self._depth = 0
        self._live = (
            Live(console=self._console, get_renderable=self._shown, refresh_per_second=4, transient=not iterations)
            if self._console.is_terminal
            else None
        )

    def __enter__(self) -> Self:
        """Begin to show; inside another ``with`` of the same display it does nothing."""
        self._depth += 1
        if self._live and self._depth == 1:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._now = ""
            if self._live:
                self._live.stop()

    def stage(self, text: str, *, log: bool = True) -> None:
        """What the command does now, such as loading a model; where there is no terminal, a line of its own if
        ``log``."""
        if text == self._now:
            return
        self._now, self._since = text, time.perf_counter()
        if self._live is None and log:
            self._print(f"{self._name}: {text}")

    @contextmanager
    def counting(self, text: str, total: int) -> Iterator[Callable[[int], None]]:
        """Something with so many parts; call what is given with how many more are done. Where there is no terminal, a
        line at the start, one every `PATIENCE` seconds and one at the end."""
        self.stage(text, log=False)
        self._done, self._total, said = 0, total, time.perf_counter()
        if self._live is None:
            self._print(f"{self._name}: {text}")

        def advance(count: int) -> None:
            nonlocal said
            self._done += count
            if self._live is None and time.perf_counter() - said > PATIENCE and self._done < total:
                said = time.perf_counter()
                self._print(f"{self._name}: {text}: {self._done} of {total}, {self._pace()}")

        try:
            yield advance
            spent = time.perf_counter() - self._since
            if self._live is None and spent > PATIENCE:
                self._print(f"{self._name}: {text}: done in {_duration(spent)}")
        finally:
            self._now, self._total = "", 0

    def phase(self, name: str) -> None:
        """The part of an iteration that begins now; shown in a terminal only."""
        self._now, self._since = PHASES.get(name, name), time.perf_counter()

    def start_iterations(self, name: str, iterations: int, done: int = 0) -> None:
        """From now on iterations of a run are shown, of which so many are done."""
        self._name, self._iterations, self._start, self._iteration = name, iterations, done, done
        self._began = time.perf_counter()
        if self._live:
            self._live.transient = False

    def update(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """Show the metrics of a finished iteration (counted from 1); earlier ones stay where this one has none."""
        kept = {key: value for key, value in self._latest.items() if not key.startswith("time/")}
        self._iteration, self._latest = iteration, {**kept, **metrics}
        if iteration == self._start:  # the evaluation before training, which is no iteration
            self._began = time.perf_counter()
        for key in COMPARED:
            if key in metrics:
                self._first.setdefault(key, metrics[key])
        if self._live:
            self._live.refresh()
        else:
            self._print(self._line(iteration, metrics))

    def stopping(self) -> None:
        """The run was asked to stop. Safe in a signal handler: it is shown with the next refresh."""
        self._stopping = True

    def note(self, text: str) -> None:
        """A sentence above the rest."""
        self._print(text)

    def _print(self, text: str) -> None:
        """Names and prompts of users are text: neither markup nor escape codes."""
        self._console.print(printable(text), highlight=False, markup=False, emoji=False, soft_wrap=self._live is None)

    def _line(self, iteration: int, metrics: Mapping[str, float]) -> str:
        parts = [f"{label} {self._value(key)}" for label, key in ROWS if _telling(key, metrics)]
        spent = metrics.get("time/iteration")
        parts += [f"{spent:.1f} s"] if spent is not None else []
        left = self._left(iteration)
        return " | ".join([f"{self._name} {iteration}/{self._iterations}", *parts, *([left] if left else [])])

    def _shown(self) -> RenderableType:
        """All that is shown in a terminal, as of now."""
        working = self._working()
        if not self._iterations:
            return working
        head = f"{self._name}   iteration {self._iteration} of {self._iterations}"
        left = self._left(self._iteration)
        bar = Table.grid(padding=(0, 1))
        share = f"{self._iteration / self._iterations:.0%}"
        bar.add_row(ProgressBar(self._iterations, self._iteration, width=min(BAR, self._console.width - 6)), share)
        parts = [Text(f"{head}   {left}" if left else head, style="bold"), bar, self._table(), working]
        if self._stopping and self._now:
            parts.append(Text("stopping after this iteration, which is saved; Ctrl-C again stops at once", "yellow"))
        return Group(*parts)

    def _working(self) -> RenderableType:
        if not self._now:
            return Text()
        spent = time.perf_counter() - self._since
        if self._total:
            told = f"{self._now}   {self._done} of {self._total}   {self._pace()}".rstrip()
            bar = ProgressBar(self._total, self._done, width=min(BAR, self._console.width - 6))
            return Group(Text(printable(told)), bar)
        self._spinner.update(text=Text(printable(f"{self._now}  {_duration(spent)}" if spent >= 1 else self._now)))
        return self._spinner

    def _pace(self) -> str:
        """How long the rest of what is counted takes, once some of it is done."""
        spent = time.perf_counter() - self._since
        ahead = self._total - self._done
        return _left(spent / self._done * ahead) if self._done and ahead else ""

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 2))
        table.add_column(style="dim", no_wrap=True)
        table.add_column(overflow="fold")
        for label, key in ROWS:
            if _telling(key, self._latest):
                table.add_row(label, self._value(key))
                if key == "reward/mean":
                    for name, mean in self._single():
                        table.add_row(Text(f"  {printable(name)}"), mean)
        if "time/iteration" in self._latest and self._iteration > self._start:  # not of the first evaluation
            table.add_row("time", self._times())
        return table

    def _single(self) -> list[tuple[str, str]]:
        """The rewards one by one, where there are several."""
        keys = [
            key for key in self._latest if key.startswith("reward/") and key.endswith("/mean") and key.count("/") > 1
        ]
        named = [(key.removeprefix("reward/").removesuffix("/mean"), f"{self._latest[key]:.4g}") for key in keys]
        return named[:SINGLE] if len(named) > 1 else []

    def _times(self) -> str:
        """Where the last iteration's seconds went, the longest first; what is less than 1 % is left out."""
        whole = self._latest["time/iteration"]
        spent = {name: self._latest.get(f"time/{key}", 0.0) for key, name in PHASES.items()}
        parts = sorted((-seconds, name) for name, seconds in spent.items() if seconds >= 0.01 * whole)
        return f"{whole:.1f} s: " + ", ".join(f"{name} {-seconds / whole:.0%}" for seconds, name in parts)

    def _value(self, key: str) -> str:
        value = self._latest[key]
        if key not in self._first or self._first[key] == value:
            return f"{value:.4g}"
        change = value - self._first[key]
        return f"{value:.4g} ({'↑' if change > 0 else '↓'} {change:+.3g})"

    def _left(self, iteration: int) -> str:
        """``1 min 03 s left`` at the pace of this process; nothing before there is one, and at the end."""
        made, ahead = iteration - self._start, self._iterations - iteration
        if made <= 0 or ahead <= 0:
            return ""
        return _left((time.perf_counter() - self._began) / made * ahead)


def _telling(key: str, metrics: Mapping[str, float]) -> bool:
    return key in metrics and not metrics[key] <= UNUSUAL.get(key, -math.inf)


def _left(seconds: float) -> str:
    return f"{_duration(max(seconds, 1))} left"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
