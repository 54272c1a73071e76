"""Two or more configs, each trained with several seeds, side by side."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from flowrl.config import Config
from flowrl.errors import UserError
from flowrl.records.directory import RunDirectory

METRIC = "eval/reward/mean"


@dataclass(frozen=True)
class Result:
    """The last evaluation of one config over its seeds."""

    name: str
    start: tuple[float, ...]
    """First evaluation of each seed."""
    end: tuple[float, ...]
    """Last evaluation of each seed."""
    seconds: tuple[float, ...]
    """Training time of each seed."""
    samples: float
    """Samples made by a run."""

    @property
    def gain(self) -> tuple[float, ...]:
        """Last evaluation less first, of each seed."""
        return tuple(last - first for first, last in zip(self.start, self.end, strict=True))


def compare(
    configs: Sequence[Path], overrides: Sequence[str], seeds: int, out: Path, train: Callable[[Config], Path]
) -> list[Result]:
    """Train every config with seeds 0 to ``seeds - 1`` below ``out`` and read their evaluations.

    Finished runs are not trained again. ``train`` runs a config, going on where a run exists. Raises `UserError` if a
    run has no evaluation to compare by.
    """
    loaded = [Config.load(path, overrides) for path in configs]
    names = [config.name for config in loaded]
    if len(set(names)) < len(names):
        raise UserError(f"compare: the configs need different names, found {', '.join(names)}; change 'name' in one")
    results = []
    for path, name in zip(configs, names, strict=True):
        runs = []
        for seed in range(seeds):
            own = [f"train.seed={seed}", f"out={out / name / f'seed{seed}'}"]
            runs.append(train(Config.load(path, [*overrides, *own])))
        results.append(_result(name, runs))
    return results


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error (NaN for one value)."""
    mean = statistics.fmean(values)
    return mean, statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def _result(name: str, runs: Sequence[Path]) -> Result:
    starts, ends, seconds, samples = [], [], [], 0.0
    for run in runs:
        lines = RunDirectory.open(run).metrics()
        values = [line[METRIC] for line in lines if line.get(METRIC) is not None]
        if not values:
            raise UserError(f"{run} never evaluated, so there is nothing to compare; set eval.every and data.test")
        starts.append(values[0])
        ends.append(values[-1])
        seconds.append(float(lines[-1].get("time", math.nan)))
        samples = float(lines[-1].get("samples", math.nan))
    return Result(name, tuple(starts), tuple(ends), tuple(seconds), samples)
