"""Which charts a run's metrics make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from flowrl.report.charts import SMALL, Line, line_chart, stacked_chart
from flowrl.report.record import Metrics
from flowrl.runtime.metric_rows import PHASES

COLORS = 8  # classes c0..c7 of the style sheet
TRAIN, HELD_OUT = 0, 1
BUSY = "time/reward_busy"
"""Of older runs: seconds in rewards that were scored in the background, no part of the iteration's own time."""
UNPLOTTED = ("step", "samples", "time", "images")

DIAGNOSTICS = (
    ("First ratio", ("ratio/first_max_deviation",), None, "max |ρ − 1| before any update: 0 up to rounding"),
    ("Mean ratio", ("ratio/mean",), 1.0, "new over old likelihood"),
    ("Clipped decisions", ("clip_fraction",), None, "share with no gradient left"),
    ("KL", ("kl/",), None, "distance to other weight sets"),
    ("Gradient norm", ("grad_norm",), None, "before clipping"),
    ("Entropy", ("entropy",), None, "nats per token: near 0, sampling no longer explores"),
    ("Loss", ("loss",), None, "not comparable between algorithms"),
    ("Flat groups", ("zero_std_fraction",), None, "share whose samples score the same"),
    ("Rounds of sampling", ("sampling/rounds",), None, "until enough groups are not flat"),
    ("Advantage", ("advantage/",), None, "of samples"),
)


@dataclass(frozen=True)
class Figure:
    """A chart with its words."""

    title: str
    note: str
    svg: Markup
    legend: Sequence[tuple[str, int]]
    """Label and colour class of every curve."""
    latest: str = ""
    """The last value, for a chart of one curve."""


def reward_figures(metrics: Metrics) -> list[Figure]:
    """One per reward and one of the total, against iterations."""
    names = [key.split("/")[1] for key in metrics.starting("reward/", "/mean") if key.count("/") == 2]
    names += [key.split("/")[1] for key in metrics.starting("eval/", "/mean") if key.count("/") == 2]
    names = [name for name in dict.fromkeys(names) if name != "reward"]
    figures = [_reward(metrics, name, f"reward/{name}/mean", f"eval/{name}/mean", "step") for name in names]
    total = _reward(metrics, "total", "reward/mean", "eval/reward/mean", "step")
    if total.legend and not any(_is_total(metrics, name) for name in names):
        figures.insert(0, total)
    return figures


def _is_total(metrics: Metrics, name: str) -> bool:
    """Whether a reward is the only weighted one, so that a chart of the total would repeat it."""
    keys = ((f"reward/{name}/mean", "reward/mean"), (f"eval/{name}/mean", "eval/reward/mean"))
    return all(np.allclose(metrics[one], metrics[all_], equal_nan=True) for one, all_ in keys)


def reward_against_samples(metrics: Metrics) -> Figure | None:
    """The total reward against samples generated: the axis on which algorithms are compared."""
    if "samples" not in metrics:
        return None
    figure = _reward(metrics, "total against samples", "reward/mean", "eval/reward/mean", "samples")
    return figure if figure.legend else None


def diagnostic_figures(metrics: Metrics) -> list[Figure]:
    """Small multiples, each with the reading of a healthy run."""
    out = []
    for title, patterns, rule, note in DIAGNOSTICS:
        keys = [key for pattern in patterns for key in _matching(metrics, pattern)]
        if keys:
            out.append(_figure(metrics, title, note, keys, rule))
    return out


def other_figures(metrics: Metrics) -> list[Figure]:
    """Everything else that was logged, one chart per key."""
    shown = {key for _, patterns, _, _ in DIAGNOSTICS for p in patterns for key in _matching(metrics, p)}
    plotted = {*UNPLOTTED, *metrics.starting("time/"), *metrics.starting("eval/", "/mean")}
    plotted |= {*metrics.starting("reward/", "mean"), *metrics.starting("reward/", "std")}
    plotted |= {*metrics.starting("monitor/"), *metrics.starting("alarm/"), *metrics.starting("check/")}
    keys = [key for key in metrics.columns if key not in shown | plotted]
    return [_figure(metrics, key, "", [key], None) for key in keys if np.isfinite(metrics[key]).any()]


def time_figure(metrics: Metrics) -> Figure | None:
    """Seconds of every phase of an iteration, stacked."""
    keys = [key for key in metrics.starting("time/") if key not in ("time/total", "time/iteration", BUSY)]
    if not keys:
        return None
    keys.sort(key=lambda key: -float(np.nansum(metrics[key])))
    names = [key.removeprefix("time/") for key in keys]
    lines = [_line(metrics, f"time/{name}", PHASES.get(name, name), index) for index, name in enumerate(names)]
    parts = sum(float(np.nansum(metrics[key])) for key in keys)
    whole = float(np.nansum(metrics["time/iteration"])) if "time/iteration" in metrics else 0.0
    total = max(parts, whole) or 1.0
    shares = [f"{line.label} {np.nansum(line.y) / total:.0%}" for line in lines]
    legend = [(share, line.color) for share, line in zip(shares, lines, strict=True)]
    return Figure("Where the time goes", "seconds per iteration, by phase", stacked_chart(lines), legend)


def _reward(metrics: Metrics, name: str, train: str, held_out: str, axis: str) -> Figure:
    lines = []
    if train in metrics:
        mean, spread = metrics[train], metrics[train.removesuffix("mean") + "std"]
        # A missing std leaves the curve without its band, not without itself.
        lines.append(Line("training", metrics[axis], mean, mean - spread, mean + spread, TRAIN))
    if held_out in metrics:
        evaluated = np.isfinite(metrics[held_out])
        x, y = metrics[axis][evaluated], metrics[held_out][evaluated]
        lines.append(Line("held-out", x, y, color=HELD_OUT, dots=True, dashed=True))
    banded = any(line.low is not None and np.isfinite(line.low).any() for line in lines)
    note = "mean ± standard deviation over the samples of an iteration" if banded else "mean"
    label = "iteration" if axis == "step" else "samples generated"
    return Figure(name, note, line_chart(lines, label), [(line.label, line.color) for line in lines])


def _figure(metrics: Metrics, title: str, note: str, keys: Sequence[str], rule: float | None) -> Figure:
    labels = [key.split("/", 1)[1] if len(keys) > 1 else key for key in keys]
    lines = [_line(metrics, key, label, index) for index, (key, label) in enumerate(zip(keys, labels, strict=True))]
    legend = [(line.label, line.color) for line in lines] if len(lines) > 1 else []
    latest = f"{metrics.last(keys[0]):.4g}" if len(lines) == 1 else ""
    return Figure(title, note, line_chart(lines, rule=rule, size=SMALL), legend, latest)


def _line(metrics: Metrics, key: str, label: str, index: int) -> Line:
    return Line(label, metrics["step"], metrics[key], color=index % COLORS)


def _matching(metrics: Metrics, pattern: str) -> list[str]:
    if pattern.endswith("/"):
        return metrics.starting(pattern)
    return [pattern] if pattern in metrics else []
