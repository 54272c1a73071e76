"""The curve that a recipe is expected to show: values of a few seeds, the band around their mean, and the verdict on
another run."""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flowrl.config.yaml_text import read_yaml
from flowrl.errors import UserError
from flowrl.files import write_atomically

FOLDER = "curves"
"""Beside the configs."""
DEVIATIONS = 3.0
"""Half a band's width, in standard deviations of what a further run shows."""
FLOOR = 0.05
"""Half a band's least width, as a share of the curve's range: that of the first point, at which all seeds are equal but
other machines round differently."""


@dataclass(frozen=True)
class Point:
    """What is expected after ``step`` iterations: of a metric that is logged every iteration, its mean since the point
    before."""

    step: int
    mean: float
    low: float
    high: float
    values: tuple[float, ...]
    """Of the seeds."""


@dataclass(frozen=True)
class Curve:
    """A committed curve."""

    points: Mapping[str, tuple[Point, ...]]
    """By metric; the first is what the recipe is judged by, the reward in training shows what that cannot: samples of
    weights that are not those in training may teach as well."""
    command: str
    """Records it anew."""
    recipe: str
    """`digest` of the config that was run."""
    seeds: tuple[int, ...]
    seconds: tuple[float, ...]
    """Of the runs."""
    memory: Mapping[str, int]
    """Bytes held at most, on the host and on each device."""
    machine: Mapping[str, Any]
    """As in a run's ``environment.json``."""

    @property
    def metric(self) -> str:
        """What the recipe is judged by."""
        return next(iter(self.points))

    @property
    def expected(self) -> tuple[Point, ...]:
        """Its points."""
        return self.points[self.metric]

    @property
    def smoke(self) -> int:
        """The first step at which the band has left that of the first point: a shorter run cannot tell whether it
        learns. The last step where none does."""
        first, *later = self.expected
        apart = [p.step for p in later if p.low > first.high or p.high < first.low]
        return (apart or [self.expected[-1].step])[0]


@dataclass(frozen=True)
class Place:
    """A point of a run against the band."""

    metric: str
    point: Point
    value: float

    @property
    def outside(self) -> float:
        """How far the value lies above the band, or (negative) below it; 0 inside."""
        point = self.point
        return max(self.value - point.high, 0.0) + min(self.value - point.low, 0.0)


def points_of(steps: Sequence[int], runs: Sequence[Sequence[float]]) -> tuple[Point, ...]:
    """The points [T] of ``runs`` [S][T], S >= 3.

    Half a band is `DEVIATIONS` s sqrt(1 + 1/S), where s is the standard deviation of the seeds at the step, or that of
    all steps but 0 (root mean square) if it is larger: three seeds tell little of their spread, all steps
    together tell more. The root is that of a further run's distance from a mean of S.
    """
    columns = [tuple(column) for column in zip(*runs, strict=True)]
    spread = [statistics.stdev(column) for column in columns]
    means = [statistics.fmean(column) for column in columns]
    trained = [s for step, s in zip(steps, spread, strict=True) if step]
    typical = math.sqrt(statistics.fmean(s * s for s in trained)) if trained else 0.0
    floor = FLOOR * (max(means) - min(means))
    made = []
    for place, (step, mean, column) in enumerate(zip(steps, means, columns, strict=True)):
        s = max(spread[place], typical if step else 0.0)
        half = max(DEVIATIONS * s * math.sqrt(1 + 1 / len(runs)), floor)
        made.append(Point(step, mean, mean - half, mean + half, column))
    return tuple(made)


def values_at(steps: Sequence[int], lines: Sequence[Mapping[str, Any]], metric: str) -> dict[int, float]:
    """A metric of a run's ``lines`` at ``steps``: the mean of all values since the step before. Steps without any are
    left out."""
    found = {}
    for before, step in zip([-1, *steps], steps, strict=False):
        values = [line[metric] for line in lines if before < line["step"] <= step and line.get(metric) is not None]
        if values and max(line["step"] for line in lines) >= step:
            found[step] = statistics.fmean(values)
    return found


def place(curve: Curve, lines: Sequence[Mapping[str, Any]], until: int | None = None) -> list[Place]:
    """Every point of the curve, up to step ``until``, against the ``lines`` of a run. A step that the run did not reach
    or measure is outside by infinity."""
    steps = [point.step for point in curve.expected]
    last = steps[-1] if until is None else until
    return [
        Place(metric, point, values_at(steps, lines, metric).get(point.step, -math.inf))
        for metric, points in curve.points.items()
        for point in points
        if point.step <= last
    ]


def file_of(config: Path) -> Path:
    """Where the curve of a config is committed."""
    return config.parent / FOLDER / f"{config.stem}.json"


def digest(config: Path) -> str:
    """sha256 of what a config file says, comments and formatting apart."""
    return hashlib.sha256(json.dumps(read_yaml(config), sort_keys=True).encode()).hexdigest()


def read(config: Path) -> Curve:
    """The committed curve of a config. Raises `UserError` if there is none, or the config has changed since."""
    path = file_of(config)
    if not path.is_file():
        raise UserError(
            f"{config}: no curve is committed ({path} does not exist), so there is nothing to compare with; "
            f"flowrl reproduce {config} --record 0,1,2 makes one"
        )
    curve = parse(path)
    if curve.recipe != digest(config):
        raise UserError(f"{config} has changed since its curve was recorded; renew it: {curve.command}")
    return curve


def parse(path: Path) -> Curve:
    """The curve in a file. Raises `UserError` if it is none."""
    try:
        values = json.loads(path.read_text("utf-8"))
        points = {
            metric: tuple(Point(**{**point, "values": tuple(point["values"])}) for point in listed)
            for metric, listed in values.pop("points").items()
        }
        several = {key: tuple(values.pop(key)) for key in ("seeds", "seconds")}
        return Curve(points=points, **several, **values)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path} is not a curve that flowrl reproduce --record wrote: {error!r}") from error


def write(config: Path, curve: Curve) -> Path:
    """Commit a curve beside its config; returns the file."""
    path = file_of(config)
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, json.dumps(asdict(curve), indent=1) + "\n")
    return path
