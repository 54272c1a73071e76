"""What a person sees of a command at work: a few lines that change in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from flowrl.errors import first_line, printable
from flowrl.runtime.metric_rows import PHASES, MetricRows

BAR = 60
"""Columns of the bar, where there are so many."""
SECONDS_BETWEEN_LINES = 30.0
"""Seconds between two lines about the same thing, where there is no terminal."""


class Display:
    """Shows how far a command is. ``console`` decides where; a console that is no terminal gets plain lines.

    Before the first iteration it says what is being loaded (`stage`), then how training goes
    (`start_iterations`, `update`). A ``silent`` one shows nothing: of several processes one speaks.
    """

    def __init__(
        self,
        name: str = "flowrl",
        iterations: int = 0,
        done: int = 0,
        console: Console | None = None,
        silent: bool = False,
    ) -> None:
        self._name, self._iterations, self._start, self._iteration = name, iterations, done, done
        self._console = console or Console(stderr=True, quiet=silent)
        self._spinner = Spinner("dots")
        self._rows = MetricRows()
        self._began = time.perf_counter()
        self._now, self._since = "", time.perf_counter()
        self._done = self._total = 0
        self._stopping = False
        self._depth = 0
        self._listener: Callable[[str], None] | None = None
        self._live = (
            Live(console=self._console, get_renderable=self._render, refresh_per_second=4, transient=not iterations)
            if self._console.is_terminal and not silent
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
        if self._listener and log:
            self._listener(text)
        if self._live is None and log:
            self._print(f"{self._name}: {text}")

    @contextmanager
    def counting(self, text: str, total: int) -> Iterator[Callable[[int], None]]:
        """Something with so many parts; call what is given with how many more are done. Where there is no terminal, a
        line at the start, one every `SECONDS_BETWEEN_LINES` seconds and one at the end."""
        self.stage(text, log=False)
        self._done, self._total, said = 0, total, time.perf_counter()
        if self._live is None:
            self._print(f"{self._name}: {text}")

        def advance(count: int) -> None:
            nonlocal said
            self._done += count
            if self._live is None and time.perf_counter() - said > SECONDS_BETWEEN_LINES and self._done < total:
                said = time.perf_counter()
                self._print(f"{self._name}: {text}: {self._done} of {total}, {self._pace()}")

        try:
            yield advance
            spent = time.perf_counter() - self._since
            if self._live is None and spent > SECONDS_BETWEEN_LINES:
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
        self._iteration = iteration
        self._rows.update(metrics)
        if iteration == self._start:  # the evaluation before training, which is no iteration
            self._began = time.perf_counter()
        if self._live:
            self._live.refresh()
        else:
            self._print(self._line(iteration, metrics))

    def stopping(self) -> None:
        """The run was asked to stop. Safe in a signal handler: it is shown with the next refresh."""
        self._stopping = True

    def note(self, text: str) -> None:
        """A sentence above the rest."""
        if self._listener:
            self._listener(text)
        self._print(text)

    @contextmanager
    def heard_by(self, listener: Callable[[str], None] | None) -> Iterator[None]:
        """Inside, ``listener`` gets every stage, sentence and warning as well, and why the block was left early."""
        shown = warnings.showwarning

        def heard(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
            if listener is not None and issubclass(category, UserWarning):
                listener(f"warning: {message}")
            shown(message, category, *where, **more)

        self._listener, warnings.showwarning = listener, heard
        try:
            yield
        except BaseException as error:
            if listener is not None:
                listener(f"ended: {first_line(error)}")
            raise
        finally:
            self._listener = None
            if warnings.showwarning is heard:
                warnings.showwarning = shown

    def _print(self, text: str) -> None:
        """Names and prompts of users are text: neither markup nor escape codes."""
        self._console.print(printable(text), highlight=False, markup=False, emoji=False, soft_wrap=self._live is None)

    def _line(self, iteration: int, metrics: Mapping[str, float]) -> str:
        left = self._time_left(iteration)
        return " | ".join(
            [f"{self._name} {iteration}/{self._iterations}", *self._rows.parts(metrics), *([left] if left else [])]
        )

    def _render(self) -> RenderableType:
        """All that is shown in a terminal, as of now."""
        working = self._working()
        if not self._iterations:
            return working
        head = f"{self._name}   iteration {self._iteration} of {self._iterations}"
        left = self._time_left(self._iteration)
        bar = Table.grid(padding=(0, 1))
        share = f"{self._iteration / self._iterations:.0%}"
        bar.add_row(ProgressBar(self._iterations, self._iteration, width=min(BAR, self._console.width - 6)), share)
        table = self._rows.table(times=self._iteration > self._start)  # not of the first evaluation
        parts = [Text(f"{head}   {left}" if left else head, style="bold"), bar, table, working]
        if self._stopping and self._now:
            parts.append(Text("stopping after this iteration, which is saved; Ctrl-C again stops at once", "yellow"))
        return Group(*parts)

    def _working(self) -> RenderableType:
        if not self._now:
            return Text()
        spent = time.perf_counter() - self._since
        if self._total:
            counted = f"{self._now}   {self._done} of {self._total}   {self._pace()}".rstrip()
            bar = ProgressBar(self._total, self._done, width=min(BAR, self._console.width - 6))
            return Group(Text(printable(counted)), bar)
        self._spinner.update(text=Text(printable(f"{self._now}  {_duration(spent)}" if spent >= 1 else self._now)))
        return self._spinner

    def _pace(self) -> str:
        """How long the rest of what is counted takes, once some of it is done."""
        spent = time.perf_counter() - self._since
        ahead = self._total - self._done
        return _remaining(spent / self._done * ahead) if self._done and ahead else ""

    def _time_left(self, iteration: int) -> str:
        """``1 min 03 s left`` at the pace of this process; nothing before there is one, and at the end."""
        made, ahead = iteration - self._start, self._iterations - iteration
        if made <= 0 or ahead <= 0:
            return ""
        return _remaining((time.perf_counter() - self._began) / made * ahead)


def print_error(sentence: str) -> None:
    """Print a sentence of an error on standard error, in red in a terminal."""
    Console(stderr=True).print(Text(printable(f"error: {sentence}"), style="red"), soft_wrap=True)


def _remaining(seconds: float) -> str:
    return f"{_duration(max(seconds, 1))} left"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
