"""The report's section about reward hacking: which alarms were raised, and how far every statistic has moved."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowrl.config.schema import MonitorConfig
from flowrl.monitor.alarms import WHERE, Check, sentence
from flowrl.monitor.statistics import STATISTICS
from flowrl.report.curves import Curve, Figure
from flowrl.report.numbers import number
from flowrl.report.record import Metrics

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
    """``bad``: raised at its last check, ``unclear``: was raised before, or nothing."""


def watched(metrics: Metrics, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the monitor found; None for a run that was not watched."""
    names = [key.removeprefix("alarm/") for key in metrics.starting("alarm/")]
    if not names:
        return None
    options = settings(config)
    return {
        "alarms": alarms(metrics, names, options),
        "rows": rows(metrics, names),
        "checked": len(names),
        "limit": options.limit,
    }


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
        still = bool(at == np.flatnonzero(np.isfinite(column))[-1])
        found.append((raised[0], Alarm(_when(metrics, raised, still), text, still)))
    return [alarm for _, alarm in sorted(found, key=lambda pair: pair[0])]


def figures(metrics: Metrics, config: Mapping[str, Any]) -> list[Figure]:
    """How far statistics moved, in robust standard deviations beyond sampling; a chart of held-out and of training
    samples."""
    out, limit = [], settings(config).limit
    note = "robust standard deviations of the base model that a median moved beyond what sampling explains"
    for where, words in WHERE.items():
        keys = metrics.starting(f"monitor/{where}/", "/z")
        keys = sorted(keys, key=lambda key: -float(np.nanmax(np.abs(metrics[key]), initial=0.0)))[:SHOWN]
        if keys:
            curves = [Curve(key, key.split("/")[2], dots=where == "heldout") for key in keys]
            out.append(
                Figure("alarms", words[:1].upper() + words[1:], f"{note}; alarm at ±{limit:g}", curves, rule=limit)
            )
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
