"""The report's section about reward hacking: which alarms were raised, and how far every statistic has moved."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from flowrl.config.schema import MonitorConfig
from flowrl.monitor.alarms import WHERE, Check, sentence
from flowrl.monitor.statistics import STATISTICS
from flowrl.report.charts import Line, line_chart, number
from flowrl.report.record import Metrics, Record
from flowrl.report.rendering import render

SHOWN = 8
"""Curves of a chart; those that moved most."""


@dataclass(frozen=True)
class Alarm:
    """One thing that raised an alarm."""

    when: str
    text: str
    raised: bool
    """Whether it still was when it was last checked."""


@dataclass(frozen=True)
class Row:
    """One statistic of held-out or training samples."""

    label: str
    where: str
    base: str
    last: str
    z: str
    state: str
    """Class of the style sheet: ``bad`` raised at its last check, ``unclear`` was raised before, or nothing."""


def section(record: Record) -> Markup:
    """The section as HTML; empty for a run that was not watched."""
    names = [key.removeprefix("alarm/") for key in record.metrics.starting("alarm/")]
    if not names:
        return Markup("")
    options = settings(record.config)
    values = {
        "alarms": alarms(record.metrics, names, options),
        "charts": charts(record.metrics, options),
        "rows": rows(record.metrics, names),
        "checked": len(names),
        "limit": options.limit,
    }
    return Markup(render("alarms.html.jinja", values))


def settings(config: Mapping[str, Any]) -> MonitorConfig:
    """The run's ``monitor`` section; keys that this version does not know are left out."""
    given = config.get("monitor")
    known = {key: value for key, value in (given or {}).items() if key in MonitorConfig.model_fields}
    return MonitorConfig(**known)


def alarms(metrics: Metrics, names: list[str], options: MonitorConfig) -> list[Alarm]:
    """What was raised, the earliest first, told by its last raised check."""
    found = []
    for name in names:
        column = metrics[f"alarm/{name}"]
        raised = np.flatnonzero(column == 1)
        if not len(raised):
            continue
        at = raised[-1]
        value, z = (float(metrics[f"monitor/{name}{part}"][at]) for part in ("", "/z"))
        text = sentence(Check(name, value, z, True, _base(metrics, name)), options)
        still = at == np.flatnonzero(np.isfinite(column))[-1]
        found.append((raised[0], Alarm(_when(metrics, raised, still), text, still)))
    return [alarm for _, alarm in sorted(found, key=lambda pair: pair[0])]


def charts(metrics: Metrics, options: MonitorConfig) -> list[dict[str, Any]]:
    """How far statistics moved, in robust standard deviations beyond sampling; a chart of held-out and of training
    samples."""
    out = []
    for where, words in WHERE.items():
        keys = metrics.starting(f"monitor/{where}/", "/z")
        if not keys:
            continue
        keys = sorted(keys, key=lambda key: -float(np.nanmax(np.abs(metrics[key]))))[:SHOWN]
        lines = []
        for color, key in enumerate(keys):
            seen = np.isfinite(metrics[key])
            label = key.split("/")[2]
            lines.append(Line(label, metrics["step"][seen], metrics[key][seen], color=color, dots=where == "heldout"))
        legend = [(line.label, line.color) for line in lines]
        out.append({"title": words, "svg": line_chart(lines, rule=options.limit), "legend": legend})
    return out


def rows(metrics: Metrics, names: list[str]) -> list[Row]:
    """Every statistic before and after, the most moved first."""
    found = []
    for name in names:
        where, _, statistic = name.partition("/")
        if where not in WHERE:
            continue
        z, last = metrics.last(f"monitor/{name}/z"), metrics.last(f"monitor/{name}")
        column = metrics[f"alarm/{name}"]
        state = "bad" if metrics.last(f"alarm/{name}") else "unclear" if bool((column == 1).any()) else ""
        base = _base(metrics, name)
        cells = (number(math.nan if base is None else base), number(last), f"{z:+.1f}" if z else "0")
        found.append((-abs(z), Row(STATISTICS[statistic].words, WHERE[where], *cells, state)))
    return [row for _, row in sorted(found, key=lambda pair: pair[0])]


def _base(metrics: Metrics, name: str) -> float | None:
    """The base model's value: the first that was logged, unless the log begins later (z is then not 0)."""
    return metrics.first(f"monitor/{name}") if metrics.first(f"monitor/{name}/z") == 0 else None


def _when(metrics: Metrics, raised: NDArray[np.int64], still: bool) -> str:
    first, last = (number(float(metrics["step"][i])) for i in (raised[0], raised[-1]))
    span = f"iteration {first}" if first == last else f"iterations {first} to {last}"
    return span if still else f"{span}, then over"
