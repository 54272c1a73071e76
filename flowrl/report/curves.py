"""Which charts a run's metrics make; the page draws them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flowrl.report.record import Metrics
from flowrl.runtime.metric_rows import PHASES

BUSY = "time/reward_busy"
"""Of older runs: seconds in rewards that were scored in the background, no part of the iteration's own time."""
UNPLOTTED = ("step", "samples", "time", "images")
BANDS = (("p10", "p90", "10 % to 90 % of the samples"), ("min", "max", "smallest to largest"))
"""Metrics beside a mean that are the edges of its band, the first pair that was logged."""

DIAGNOSTICS = (
    ("First ratio", ("ratio/first_max_deviation",), None, "max |ρ − 1| before any update: 0 up to rounding"),
    ("Mean ratio", ("ratio/mean",), 1.0, "new over old likelihood"),
    ("Clipped decisions", ("clip_fraction",), None, "share with no gradient left"),
    ("KL", ("kl/",), None, "distance to other weight sets"),
    ("Length of predictions", ("norm_growth/",), 0.0, "over another weight set's, less 1: what is hacked grows"),
    ("Gradient norm", ("grad_norm",), None, "before clipping"),
    ("Entropy", ("entropy",), None, "nats per token: near 0, sampling no longer explores"),
    ("Loss", ("loss",), None, "not comparable between algorithms"),
    ("Companions", ("companion/",), None, "loss and gradient norm of weights that learn beside the policy"),
    ("Flat groups", ("zero_std_fraction",), None, "share whose samples score the same"),
    ("Rounds of sampling", ("sampling/rounds",), None, "until enough groups are not flat"),
    ("Forwards of sampling", ("sampling/forwards",), None, "made, and saved by what samples of a tree share"),
    ("Advantage", ("advantage/",), None, "of samples"),
)


@dataclass(frozen=True)
class Curve:
    """One line of a chart."""

    key: str
    """Of the metrics."""
    label: str
    low: str = ""
    high: str = ""
    """Keys of the edges of its band."""
    spread: str = ""
    """Or the key of a standard deviation: the band is the curve plus and minus it."""
    dots: bool = False
    """Its values are far apart, such as those of evaluations: they are marked and joined."""


@dataclass(frozen=True)
class Figure:
    """A chart with its words."""

    group: str
    """Section of the page."""
    title: str
    note: str
    curves: Sequence[Curve]
    rule: float | None = None
    """Where a horizontal line is drawn."""
    stacked: bool = False
    unit: str = ""


def figures(metrics: Metrics) -> list[Figure]:
    """All charts of a run, in the order of the page."""
    return [*reward_figures(metrics), *diagnostic_figures(metrics), *other_figures(metrics), *time_figures(metrics)]


def reward_figures(metrics: Metrics) -> list[Figure]:
    """One per reward and one of the total."""
    names = [key.split("/")[1] for key in metrics.starting("reward/", "/mean") if key.count("/") == 2]
    names += [key.split("/")[1] for key in metrics.starting("eval/", "/mean") if key.count("/") == 2]
    names = [name for name in dict.fromkeys(names) if name != "reward"]
    found = [_reward(metrics, name, f"reward/{name}/mean", f"eval/{name}/mean") for name in names]
    total = _reward(metrics, "total", "reward/mean", "eval/reward/mean")
    if total.curves and not any(_is_total(metrics, name) for name in names):
        found.insert(0, total)
    return found


def _is_total(metrics: Metrics, name: str) -> bool:
    """Whether a reward is the only weighted one, so that a chart of the total would repeat it."""
    keys = ((f"reward/{name}/mean", "reward/mean"), (f"eval/{name}/mean", "eval/reward/mean"))
    return all(np.allclose(metrics[one], metrics[all_], equal_nan=True) for one, all_ in keys)


def diagnostic_figures(metrics: Metrics) -> list[Figure]:
    """Small multiples, each with the reading of a healthy run."""
    out = []
    for title, patterns, rule, note in DIAGNOSTICS:
        keys = [key for pattern in patterns for key in _matching(metrics, pattern)]
        if keys:
            out.append(Figure("diagnostics", title, note, _curves(keys), rule=rule))
    return out


def other_figures(metrics: Metrics) -> list[Figure]:
    """Everything else that was logged, one chart per key."""
    shown = {key for _, patterns, _, _ in DIAGNOSTICS for p in patterns for key in _matching(metrics, p)}
    plotted = {*UNPLOTTED, *metrics.starting("time/"), *metrics.starting("eval/", "/mean")}
    plotted |= {*metrics.starting("monitor/"), *metrics.starting("alarm/"), *metrics.starting("check/")}
    for part in ("mean", "std", *(edge for low, high, _ in BANDS for edge in (low, high))):
        plotted |= {*metrics.starting("reward/", f"/{part}")}
    keys = [key for key in metrics.columns if key not in shown | plotted and np.isfinite(metrics[key]).any()]
    return [Figure("others", key, "", _curves([key])) for key in keys]


def time_figures(metrics: Metrics) -> list[Figure]:
    """Seconds of every phase of an iteration, stacked, the longest first."""
    keys = [key for key in metrics.starting("time/") if key not in ("time/total", "time/iteration", BUSY)]
    if not keys:
        return []
    keys.sort(key=lambda key: -float(np.nansum(metrics[key])))
    curves = [Curve(key, phase_name(key.removeprefix("time/"))) for key in keys]
    note = "seconds per iteration, by phase"
    return [Figure("time", "Where the time goes", note, curves, stacked=True, unit="s")]


def time_shares(metrics: Metrics) -> list[tuple[str, float, float]]:
    """``(phase, seconds, share of the iterations' time)``, the longest first."""
    found = time_figures(metrics)
    if not found:
        return []
    seconds = [(curve.label, float(np.nansum(metrics[curve.key]))) for curve in found[0].curves]
    whole = float(np.nansum(metrics["time/iteration"])) if "time/iteration" in metrics else 0.0
    total = max(sum(spent for _, spent in seconds), whole) or 1.0
    return [(label, spent, spent / total) for label, spent in seconds]


def memory_figures(peaks: Metrics) -> list[Figure]:
    """Of the columns of `columns.memory_row`: the most that was held in every phase, of a device and of the host."""
    out = []
    for where, title in (("device", "Memory of the accelerator"), ("host", "Memory of the host")):
        keys = [key for key in peaks.starting(f"{where}/") if np.nanmax(peaks[key], initial=0.0) > 0]
        if keys:
            note = "GiB, the most that was held in a phase" if where == "device" else "GiB, held at the end of a phase"
            curves = [Curve(key, phase_name(key.split("/", 1)[1])) for key in keys]
            out.append(Figure("memory", title, note, curves, unit="GiB"))
    return out


def phase_name(phase: str) -> str:
    """As in the terminal."""
    return PHASES.get(phase, phase)


def _reward(metrics: Metrics, name: str, train: str, held_out: str) -> Figure:
    curves, words = [], ""
    if train in metrics:
        curve, words = _banded(metrics, train)
        curves.append(curve)
    if held_out in metrics:
        curve, more = _banded(metrics, held_out, "held-out", dots=True)
        curves.append(curve)
        words = words or more
    return Figure("rewards", name, f"mean{words}", curves)


def _banded(metrics: Metrics, key: str, label: str = "training", dots: bool = False) -> tuple[Curve, str]:
    """A mean with what was logged of its spread, and the words for it."""
    stem = key.removesuffix("mean")
    for low, high, words in BANDS:
        if stem + low in metrics and stem + high in metrics:
            return Curve(key, label, stem + low, stem + high, dots=dots), f"; band: {words}"
    if np.isfinite(metrics[stem + "std"]).any():
        return Curve(key, label, spread=stem + "std", dots=dots), " ± standard deviation over the samples"
    return Curve(key, label, dots=dots), ""


def _curves(keys: Sequence[str]) -> list[Curve]:
    return [Curve(key, key.split("/", 1)[1] if len(keys) > 1 else key) for key in keys]


def _matching(metrics: Metrics, pattern: str) -> list[str]:
    if pattern.endswith("/"):
        return metrics.starting(pattern)
    return [pattern] if pattern in metrics else []
