"""What a run comes to: headline numbers, its method and settings, and the tables of its evaluation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from flowrl.composition import build, describe, paper, summary
from flowrl.errors import UserError
from flowrl.evaluation.table import VARIANTS, decimals, format_estimate, nested, notes, rows
from flowrl.report.numbers import duration, number
from flowrl.report.record import Metrics

RATIO_TOLERANCE = 1e-3
"""Above this the sampler and the trainer disagree about the same policy (the trainer's own check is stricter)."""


@dataclass(frozen=True)
class Tile:
    """One headline number."""

    label: str
    value: str
    note: str = ""
    good: bool | None = None
    wide: bool = False


def settings(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The settings a reader asks for first."""
    algorithm = config.get("algorithm")
    out = [("algorithm", algorithm.get("use") if isinstance(algorithm, Mapping) else algorithm)]
    model = config.get("model")
    out.append(("model", model.get("path") if isinstance(model, Mapping) else model))
    out.append(("rewards", ", ".join(_rewards(config.get("rewards")))))
    for section in ("data", "optimizer", "train"):
        values = config.get(section)
        out += [(f"{section}.{key}", value) for key, value in flat(values if isinstance(values, Mapping) else {})]
    return [(label, str(value)) for label, value in out if value not in (None, "", "None")]


def method(spec: Any) -> dict[str, Any] | None:
    """The parts of the run's algorithm; None where this version of flowrl no longer knows it."""
    try:
        algorithm = build(spec)
        name = spec if isinstance(spec, str) else spec["use"]
        source, line = paper(name), summary(name)
    except (UserError, TypeError):
        return None
    described = describe(algorithm)
    parts = [(slot, _part(value)) for slot, value in described.items() if slot != "use" and value not in ([], ())]
    return {"name": name, "paper": source, "summary": line, "parts": parts}


def tiles(metrics: Metrics, evaluation: Mapping[str, Any]) -> list[Tile]:
    """The headline of a run."""
    return [*progress_tiles(metrics), *evaluation_tiles(evaluation), *check_tiles(metrics)]


def progress_tiles(metrics: Metrics) -> list[Tile]:
    """Where the run got to."""
    if not len(metrics):
        return []
    first, last = metrics.first("reward/mean"), metrics.last("reward/mean")
    tiles = [
        Tile("iterations", number(metrics.last("step"))),
        Tile("samples generated", number(metrics.last("samples"))),
    ]
    if not math.isnan(metrics.last("time")):
        tiles.append(Tile("time", duration(metrics.last("time"))))
    tiles.append(Tile("training reward", number(last), f"{number(first)} at the start"))
    held_out = metrics.last("eval/reward/mean")
    if not math.isnan(held_out):
        start = metrics.first("eval/reward/mean")
        tiles.append(Tile("held-out reward", number(held_out), f"{number(start)} at the start"))
    return tiles


def check_tiles(metrics: Metrics) -> list[Tile]:
    """The outcome of the self-checks that leave a trace in the metrics."""
    worst = metrics.worst("ratio/first_max_deviation")
    if math.isnan(worst):
        return []
    good = worst <= RATIO_TOLERANCE
    return [
        Tile("ratio off 1 before an update", number(worst), "self-check: at most; should be 0 but for rounding", good)
    ]


def evaluation_tiles(evaluation: Mapping[str, Any]) -> list[Tile]:
    """Headline of every suite."""
    out = []
    for suite in evaluation.get("suites", {}).values():
        path = (suite["primary"], "overall")
        arms = suite["arms"]
        values = [(name, nested(arms[name]["measures"], path)) for name in VARIANTS if name in arms]
        text = " → ".join(f"{value['value']:.3f}" for _, value in values if value and value["value"] is not None)
        gain = format_estimate(nested(suite["difference"], path), signed=True)
        partial = " (partial)" if suite["partial"] else ""
        note = " → ".join(name for name, _ in values) + (f", difference {gain}" if gain != "-" else "")
        out.append(Tile(suite["title"] + partial, text or "–", note, wide=True))
    return out


def table(suite: Mapping[str, Any]) -> dict[str, Any]:
    """A suite's table: header, lines of cells, notes and failure reasons."""
    arms = {name: suite["arms"][name] for name in VARIANTS if name in suite["arms"]}
    compared = bool(suite["difference"])
    lines = []
    for label, prompts, path, last in rows(suite):
        places = decimals(path)
        cells = [format_estimate(nested(each["measures"], path), places=places) for each in arms.values()]
        change = _change(nested(suite["difference"], path) if compared else None, places)
        lines.append({"label": label, "prompts": prompts, "cells": cells, "last": last, "change": change})
    reasons = dict.fromkeys(reason for each in arms.values() for reason in each["reasons"])
    counted = [(reason, [each["reasons"].get(reason, 0) for each in arms.values()]) for reason in reasons]
    counted.sort(key=lambda item: -max(item[1]))
    return {
        "title": suite["title"] + (" (partial)" if suite["partial"] else ""),
        "variants": list(arms),
        "compared": compared,
        "lines": lines,
        "notes": notes(suite),
        "reasons": counted[:15],
    }


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested keys joined by dots, values as text."""
    for key, value in values.items():
        if isinstance(value, list) and any(isinstance(each, Mapping) for each in value):
            value = {str(place): each for place, each in enumerate(value)}
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        elif value is not None:
            yield f"{prefix}{key}", str(value)


def _change(estimate: Mapping[str, Any] | None, places: int) -> dict[str, str]:
    """A difference, and whether its interval leaves zero out."""
    text = format_estimate(estimate, signed=True, places=places)
    if estimate is None or estimate["low"] is None or estimate["low"] <= 0 <= estimate["high"]:
        return {"text": text, "sign": "unclear"}
    return {"text": text, "sign": "up" if estimate["low"] > 0 else "down"}


def _rewards(specs: object) -> list[str]:
    out = []
    for spec in specs if isinstance(specs, list) else [specs]:
        if isinstance(spec, Mapping):
            weight = spec.get("weight", 1)
            out.append(f"{spec.get('name') or spec.get('use')}" + ("" if weight == 1 else f" × {weight}"))
        elif spec is not None:
            out.append(str(spec))
    return out


def _part(value: object) -> str:
    """``Clipped(low=0.0001, high=0.0001)`` from a described part; unset fields are left out."""
    if isinstance(value, list):
        return ", ".join(_part(item) for item in value)
    if not isinstance(value, Mapping):
        return str(value)
    inner = ", ".join(f"{k}={_part(v)}" for k, v in value.items() if k != "use" and v is not None)
    return f"{value['use']}({inner})"
