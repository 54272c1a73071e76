"""A recipe run again, and its curve held against the committed band; or the band recorded anew."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowrl.config import Config
from flowrl.errors import UserError, did_you_mean
from flowrl.recipes import curve as curves
from flowrl.recipes.curve import Curve, Place, Point
from flowrl.records.directory import RunDirectory
from flowrl.records.sample_files import read_json_lines

OUT = Path("runs/reproduce")
HELDOUT, TRAIN = "eval/reward/mean", "reward/mean"
Train = Callable[[Config, int | None], Path]
"""Runs a config, all of it or until an iteration; returns the run directory."""


@dataclass(frozen=True)
class Verdict:
    """A run against the band of its recipe."""

    run: Path
    curve: Curve
    places: tuple[Place, ...]

    @property
    def inside(self) -> bool:
        """Whether every point is."""
        return not any(place.outside for place in self.places)

    @property
    def sentence(self) -> str:
        """Inside or outside, where and by how much."""
        last, end = self.places[-1].point.step, self.curve.expected[-1].step
        part = f"; stopped at iteration {last} of {end}, which says nothing of the rest" if last < end else ""
        count = len(self.places)
        if self.inside:
            return f"inside: {' and '.join(self.curve.points)} are within their bands at all {count} points{part}"
        wrong = [place for place in self.places if place.outside]
        worst = max(wrong, key=lambda place: abs(place.outside) / (place.point.high - place.point.low))
        point, side = worst.point, "above" if worst.outside > 0 else "below"
        if not math.isfinite(worst.value):
            return f"outside: the run has no {worst.metric} at iteration {point.step}{part}"
        return (
            f"outside at {len(wrong)} of {count} points, farthest {worst.metric} at iteration {point.step}: "
            f"{worst.value:.4g} is {abs(worst.outside):.4g} {side} {point.low:.4g} to {point.high:.4g} "
            f"(expected {point.mean:.4g}){part}"
        )


def reproduce(
    file: Path, overrides: Sequence[str], seed: int | None, smoke: bool, out: Path | None, train: Train
) -> Verdict:
    """Run a recipe and compare. ``smoke`` stops at the first iteration at which the band tells learning from standing
    still. Raises `UserError` where no curve is committed, the run's folder exists, or the run cannot start."""
    curve = curves.read(file)
    config = Config.load(file, overrides)
    seed = config.train.seed if seed is None else seed
    folder = out or _free(OUT / f"{config.name}-seed{seed}")
    until = curve.smoke if smoke else None
    run = train(Config.load(file, [*overrides, f"train.seed={seed}", f"out={folder}"]), until)
    return Verdict(run, curve, tuple(curves.place(curve, RunDirectory.open(run).metrics(), until)))


def record(file: Path, seeds: Sequence[int], metric: str | None, out: Path | None, train: Train) -> Curve:
    """Run a recipe with several seeds below ``out`` and commit its curve.

    metric: by default that of the present curve, else the held-out reward, else that of training. Raises `UserError`
    for less than three seeds, or a curve that does not rise beyond its band.
    """
    if len(set(seeds)) < 3 or len(set(seeds)) < len(seeds):
        raise UserError(
            f"--record {','.join(map(str, seeds))}: a band needs three or more different seeds, as in 0,1,2"
        )
    folder = out or _free(OUT / f"{Config.load(file).name}-record")
    runs = [train(Config.load(file, [f"train.seed={seed}", f"out={folder / f'seed{seed}'}"]), None) for seed in seeds]
    metric = metric or _present_metric(file) or _metric_of(runs[0])
    points = {name: _points(runs, metric, name) for name in dict.fromkeys((metric, TRAIN))}
    if len({point.mean for point in points[TRAIN]}) == 1 and metric != TRAIN:
        del points[TRAIN]  # what a data set says of its samples, which no training changes
    first, last = points[metric][0], points[metric][-1]
    if last.low <= first.high:
        raise UserError(
            f"{metric} goes from {first.mean:.4g} to {last.mean:.4g}, within its band of {last.low:.4g} to "
            f"{last.high:.4g}: that is not learning; train longer, or take more seeds"
        )
    curve = Curve(
        command=f"flowrl reproduce {file} --record {','.join(map(str, seeds))} --metric {metric}",
        recipe=curves.digest(file),
        seeds=tuple(seeds),
        points=points,
        seconds=tuple(round(RunDirectory.open(run).metrics()[-1]["time"], 1) for run in runs),
        memory=peak_memory(runs),
        machine=_machine_of(runs[0]),
    )
    curves.write(file, curve)
    return curve


def _points(runs: Sequence[Path], headline: str, metric: str) -> tuple[Point, ...]:
    """The points of a metric, where the headline's are."""
    lines = [RunDirectory.open(run).metrics() for run in runs]
    steps = sorted({line["step"] for line in lines[0] if line.get(headline) is not None})
    found = [curves.values_at(steps, each, metric) for each in lines]
    if not found[0] or any(one.keys() != found[0].keys() for one in found):
        known = {name for line in lines[0] for name in line}
        raise UserError(f"the runs have no {metric} at the same iterations{did_you_mean(metric, known)}")
    return curves.points_of(list(found[0]), [list(one.values()) for one in found])


def peak_memory(runs: Sequence[Path]) -> Mapping[str, int]:
    """Bytes that any of the runs held at most, on the host and on each device."""
    peaks: dict[str, int] = {}
    for run in runs:
        for line in read_json_lines(RunDirectory.open(run).memory_path):
            for place, held in {"host": line["host"], **line["devices"]}.items():
                peaks[place] = max(peaks.get(place, 0), held)
    return peaks


def _machine_of(run: Path) -> dict[str, Any]:
    """What the run noted of the machine, versions and commit."""
    noted = json.loads((run / "environment.json").read_text("utf-8"))
    return {key: value for key, value in noted.items() if key != "started"}


def _free(folder: Path) -> Path:
    """``folder``, or with a number where it exists: a verdict is never on the run of another day."""
    numbered = (folder.with_name(f"{folder.name}-{number}") for number in itertools.count(2))
    return next(place for place in itertools.chain([folder], numbered) if not place.exists())


def _present_metric(file: Path) -> str | None:
    path = curves.file_of(file)
    return curves.parse(path).metric if path.is_file() else None


def _metric_of(run: Path) -> str:
    return HELDOUT if any(line.get(HELDOUT) is not None for line in RunDirectory.open(run).metrics()) else TRAIN
