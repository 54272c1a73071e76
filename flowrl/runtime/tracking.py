"""Experiment trackers, through accelerate."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate.tracking import GeneralTracker, TensorBoardTracker, WandBTracker

from flowrl.errors import missing


class Trackers:
    """Feed the metrics of a run to TensorBoard (``<run>/tensorboard``) and Weights & Biases as well."""

    def __init__(self, names: Sequence[str], run: Path, project: str, config: Mapping[str, Any]) -> None:
        """Raises `UserError` for a tracker whose package is not installed."""
        self._trackers = [_open(name, run, project) for name in names]
        for tracker in self._trackers:
            tracker.store_init_configuration(_scalars(config))

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Send the finite values of one step."""
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        for tracker in self._trackers:
            tracker.log(finite, step=step)

    def close(self) -> None:
        """Send what is buffered."""
        for tracker in self._trackers:
            tracker.finish()


def _open(name: str, run: Path, project: str) -> GeneralTracker:
    if importlib.util.find_spec(name) is None:
        raise missing(f"log.trackers: {name}", name, "tracking", "remove it")
    if name == "tensorboard":
        tracker: GeneralTracker = TensorBoardTracker("tensorboard", logging_dir=run)
    else:
        tracker = WandBTracker(project, name=run.name, dir=str(run))
    tracker.start()
    return tracker


def _scalars(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested config as dotted keys; TensorBoard takes numbers, texts and booleans only."""
    out: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            out |= _scalars(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = value if isinstance(value, bool | int | float | str) else str(value)
    return out
