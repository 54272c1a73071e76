"""Objects of a user's that are told how a run goes, and may ask it to save and stop."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowrl.config import Config
from flowrl.errors import UserError, describe_exception, first_line, short_repr
from flowrl.exit_guard import catch_exit

EVENTS = ("start", "iteration", "evaluation", "samples", "end")
"""Methods of a `Callback`."""


@dataclass(frozen=True)
class Stop:
    """Why a run ends here. A callback that returns one ends the run after its iteration."""

    reason: str
    save: bool = True
    """Whether the state of now becomes a checkpoint."""


@dataclass(frozen=True)
class Started:
    """A run that is about to train."""

    path: Path
    """Its directory."""
    config: Config
    done: int
    """Iterations that were finished before: more than 0 where the run is resumed."""
    end: int
    """The iteration after which it ends."""


class Callback:
    """What is told of a run, by its methods, all of which do nothing here. Any object with one of them will do.

    Each may return `Stop`, and the run saves and ends after its iteration. An exception does the same, and is then
    raised by `flowrl.train` with the name of the callback. They are called between iterations, in the trainer's thread:
    the run waits for them.
    """

    def start(self, run: Started) -> Stop | None:
        """Before the first evaluation and iteration, once the model is loaded."""

    def iteration(self, metrics: dict[str, float]) -> Stop | None:
        """After an iteration: its line of ``metrics.jsonl`` (``step``, ``reward/mean``, ``loss``, ...)."""

    def evaluation(self, metrics: dict[str, float]) -> Stop | None:
        """After an evaluation on held-out prompts: ``step`` (0: before training) and all that begins with ``eval/``."""

    def samples(self, folder: Path) -> Stop | None:
        """After samples were saved: their folder, ``samples/step_000010`` of trained ones or ``heldout/step_000010`` of
        an evaluation, with a line for each in ``samples.jsonl``."""

    def end(self, reason: str) -> None:
        """Last: ``finished``, or why it ended before."""


class Callbacks:
    """Callbacks of a run. What they raise becomes `stop`, so that the run saves first; `raise_failure` then tells it.

    Raises `UserError` for an object with none of the methods.
    """

    def __init__(self, callbacks: Sequence[object] = ()) -> None:
        self.stop: Stop | None = None
        """What one of them asked for, the first."""
        self._all = tuple(callbacks)
        self._failure: tuple[str, BaseException] | None = None
        for callback in self._all:
            if isinstance(callback, type) or not any(callable(getattr(callback, event, None)) for event in EVENTS):
                remedy = f"give {callback.__name__}()" if isinstance(callback, type) else "see flowrl.Callback"
                raise UserError(
                    f"callbacks: {short_repr(callback)} is no callback: an object with a method of {', '.join(EVENTS)};"
                    f" {remedy}"
                )

    @contextmanager
    def told(self, run: Started) -> Iterator[None]:
        """Around training: they hear of its start and, however it ends, of its end."""
        self._tell("start", run)
        try:
            yield
        except BaseException as error:
            self._tell("end", first_line(error) or type(error).__name__)
            raise

    def publish(self, line: Mapping[str, Any], folders: Sequence[Path]) -> None:
        """A line of ``metrics.jsonl`` was written, and before it the samples in ``folders``."""
        heldout = {name: value for name, value in line.items() if name.startswith("eval/")}
        if line["step"]:
            self._tell("iteration", dict(line))
        if heldout:
            self._tell("evaluation", {"step": line["step"], **heldout})
        for folder in folders:
            self._tell("samples", folder)

    def conclude(self, reason: str, saved: int) -> None:
        """The run ended by itself, and iteration ``saved`` is saved (0: there is none). Raises `UserError` for what a
        callback raised."""
        self._tell("end", self.stop.reason if self.stop else reason)
        if self._failure is not None:
            what, error = self._failure
            state = f"saved after iteration {saved}; go on with resume='auto'" if saved else "nothing was trained yet"
            raise UserError(f"{what}: {describe_exception(error)}; {state}") from error

    def _tell(self, event: str, told: Any) -> None:
        for callback in self._all:
            method = getattr(callback, event, None)
            if method is None or (self._failure is not None and event != "end"):
                continue
            try:
                with catch_exit():
                    answer = method(dict(told) if isinstance(told, dict) else told)
                if answer is not None and not isinstance(answer, Stop):
                    raise TypeError(f"it returned {short_repr(answer)}; return None, or flowrl.Stop('why')")
            except (Exception, SystemExit) as error:  # whatever a user's code raises is told as theirs, chained
                self._fail(f"callback {type(callback).__name__}.{event}", error)
                continue
            self.stop = self.stop or answer

    def _fail(self, what: str, error: BaseException) -> None:
        if self._failure is None:
            self._failure = (what, error)
            self.stop = Stop(f"{what} failed")
