"""The reward while a run trains, drawn in a notebook's cell."""

from __future__ import annotations

import importlib
import io
import math
import sys
import time
from typing import Any

from flowrl.records.directory import RunDirectory
from flowrl.runtime.callbacks import Callback, Started

REDRAW_S = 1.0
"""Least seconds between two drawings of iterations; evaluations and the end are drawn at once."""
TRAIN, HELDOUT = "#1f77b4", "#d62728"


class LiveCurve(Callback):
    """A callback that draws the reward of the samples that are trained on (line: their mean; band: one standard
    deviation of the samples on either side) and of the held-out prompts (points). In a notebook the picture is updated
    in place; elsewhere each iteration is a printed line.

    ``metric``: what is drawn, by default the total; ``shapes`` draws the reward of that name.
    """

    def __init__(self, metric: str | None = None) -> None:
        self._of = "reward" if metric is None else f"reward/{metric}"
        self._evaluated = "eval/reward/mean" if metric is None else f"eval/{metric}/mean"
        self._clear()

    def _clear(self) -> None:
        self.train: list[tuple[int, float, float]] = []
        """``(step, mean, standard deviation)`` of every iteration."""
        self.heldout: list[tuple[int, float]] = []
        self._name, self._end = "", 0
        self._handle: Any = None
        self._drawn = -math.inf

    def start(self, run: Started) -> None:
        """Begin anew, where a run is resumed with what it had reached."""
        self._clear()
        self._name, self._end = run.config.name, run.end
        for line in RunDirectory(run.path).metrics():
            if line["step"]:
                self._add(line)
            if line.get(self._evaluated) is not None:
                self.heldout.append((line["step"], line[self._evaluated]))

    def _add(self, line: dict[str, Any]) -> tuple[int, float, float]:
        mean, spread = (line.get(f"{self._of}/{what}") for what in ("mean", "std"))
        self.train.append((int(line["step"]), _number(mean), _number(spread)))
        return self.train[-1]

    def iteration(self, metrics: dict[str, float]) -> None:
        """A further point of the line."""
        step, mean, spread = self._add(metrics)
        if not in_notebook():
            print(f"{self._name} {step}/{self._end}: {self._of} {mean:.4f} (std {spread:.4f})", flush=True)
        elif time.monotonic() - self._drawn >= REDRAW_S:
            self._draw()

    def evaluation(self, metrics: dict[str, float]) -> None:
        """A further point of the held-out curve."""
        value = metrics.get(self._evaluated, math.nan)
        self.heldout.append((int(metrics["step"]), value))
        if in_notebook():
            self._draw()
        else:
            print(f"{self._name} {metrics['step']}/{self._end}: held-out {self._of} {value:.4f}", flush=True)

    def end(self, reason: str) -> None:
        """The last picture."""
        if in_notebook() and (self.train or self.heldout):
            self._draw()

    def picture(self) -> bytes:
        """The curve as PNG."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 3.2), dpi=100, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        if self.train:
            steps, means, spreads = zip(*self.train, strict=True)
            low, high = ([m + sign * s for m, s in zip(means, spreads, strict=True)] for sign in (-1, 1))
            axes.fill_between(steps, low, high, color=TRAIN, alpha=0.15, linewidth=0, label="± std of samples")
            axes.plot(steps, means, color=TRAIN, label="train")
        if self.heldout:
            axes.plot(*zip(*self.heldout, strict=True), color=HELDOUT, marker="o", markersize=4, label="held-out")
        axes.set(xlabel="iteration", ylabel=self._of, xlim=(0, max(self._end, 1)), title=self._name)
        axes.grid(alpha=0.3)
        if self.train or self.heldout:
            axes.legend(loc="best", fontsize="small")
        out = io.BytesIO()
        figure.savefig(out, format="png")
        return out.getvalue()

    def _draw(self) -> None:
        shows = importlib.import_module("IPython.display")  # nothing that flowrl needs elsewhere
        image = shows.Image(data=self.picture())
        if self._handle is None:
            self._handle = shows.display(image, display_id=True)
        else:
            self._handle.update(image)
        self._drawn = time.monotonic()


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def in_notebook() -> bool:
    """Whether a cell of a notebook runs this: IPython is there with a kernel that shows pictures."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None
