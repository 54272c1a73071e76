"""Held-out score on an image world against generated images and network forwards, for every method and seed.

    python -m benchmarks.sample_efficiency --out /tmp/efficiency --seeds 0 1 2 --jobs 2
    python -m benchmarks.sample_efficiency --config benchmarks/scenes.yaml --out /tmp/scenes    # on another world
    python -m benchmarks.sample_efficiency --out /tmp/efficiency --table      # only tabulate what is there

Same base, prompts, group size, images per iteration and evaluation for all; per method only the settings in arms.json
differ. Runs that exist are not repeated. Seconds are CPU seconds of the run's process, which has one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks.cpu_clock import seconds_of

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "benchmarks" / "shapes.yaml"
ARMS: dict[str, list[str]] = json.loads((ROOT / "benchmarks" / "arms.json").read_text())


def run(config: Path, arm: str, seed: int, out: Path, iterations: int) -> None:
    """One training run in its own process, one thread."""
    directory = out / f"{arm}-{seed}"
    if (directory / "done").exists():
        return
    subprocess.run(["rm", "-rf", str(directory)], check=True)
    command = [sys.executable, "-m", "benchmarks.cpu_clock", "train", str(config), f"out={directory}", f"name={arm}"]
    command += [f"train.seed={seed}", f"train.iterations={iterations}", *ARMS[arm]]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    log = out / f"{arm}-{seed}.log"
    with log.open("w") as sink:
        code = subprocess.run(command, cwd=ROOT, env=environment, stdout=sink, stderr=sink, check=False).returncode
    if code == 0:
        (directory / "done").touch()
    print(f"{arm} seed {seed}: exit {code}", flush=True)


@dataclass(frozen=True)
class Point:
    """An evaluation of a run, and what had been spent until then."""

    strict: float
    images: int
    evaluations: int
    """Network evaluations: rows through the denoiser, with and without gradient."""
    seconds: float


def curve(directory: Path) -> list[Point]:
    """The evaluations of a run, from the untrained base on."""
    points, seconds = [], 0.0
    for line in map(json.loads, (directory / "metrics.jsonl").read_text().splitlines()):
        seconds += seconds_of(line)
        if "eval/strict/mean" in line:
            points.append(Point(line["eval/strict/mean"], line["samples"], line["network/forwards"], seconds))
    return points


def table(out: Path, seeds: list[int], mark: float) -> str:
    """Strict scores over images, and what it took to reach ``mark`` and the end: images, network evaluations and
    seconds side by side."""
    runs = {arm: [out / f"{arm}-{seed}" for seed in seeds if (out / f"{arm}-{seed}" / "done").exists()] for arm in ARMS}
    curves = {arm: [curve(directory) for directory in found] for arm, found in runs.items() if found}
    if not curves:
        return "no finished run"
    images = " / ".join(str(point.images) for point in next(iter(curves.values()))[0])
    rows = [
        f"| method | strict at {images} images, mean of the seeds | last two, each seed | to {mark:.2f}: images "
        "| network evaluations | seconds | in all: images | network evaluations | seconds |",
        "|---" * 9 + "|",
    ]
    for arm, found in curves.items():
        mean = " ".join(f"{sum(p.strict for p in points) / len(points):.3f}" for points in zip(*found, strict=True))
        last = " ".join(f"{sum(p.strict for p in c[-2:]) / 2:.3f}" for c in found)
        reached = [next((point for point in c if point.strict >= mark), None) for c in found]
        rows.append(f"| `{arm}` | {mean} | {last} | {_spent(reached)} | {_spent([c[-1] for c in found])} |")
    return "\n".join(rows)


def _spent(points: Sequence[Point | None]) -> str:
    """Images, network evaluations (in thousands) and seconds of each seed, as three cells."""
    if not any(points):
        return "never | never | never"
    cells = [
        [f"{p.images}", f"{p.evaluations / 1000:.1f}k", f"{p.seconds:.0f}"] if p else ["never"] * 3 for p in points
    ]
    return " | ".join(" ".join(column) for column in zip(*cells, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=CONFIG, help="what every arm shares")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--arms", nargs="*", default=list(ARMS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--iterations", type=int, default=24)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--mark", type=float, default=0.7, help="strict score to count up to")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.table:
        config = options.config.resolve()  # runs start in the repository's root
        jobs = [(arm, seed) for seed in options.seeds for arm in options.arms]
        with ThreadPoolExecutor(options.jobs) as pool:
            list(pool.map(lambda job: run(config, *job, options.out, options.iterations), jobs))
    print(table(options.out, options.seeds, options.mark))


if __name__ == "__main__":
    main()
