"""The runs of a page: every arm with every seed on one thread, and their curves."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from benchmarks.cpu_clock import seconds_of
from benchmarks.evidence import warm
from flowrl.records.directory import RunDirectory

ROOT = Path(__file__).parents[2]
DATA = ROOT / "docs" / "evidence" / "data"
PACKAGES = ("torch", "diffusers", "transformers", "peft")


@dataclass(frozen=True)
class Page:
    """What a page compares.

    config: what all arms share. arms: the overrides of each. pairs: differences to report, as ``[arm, baseline]``.
    mark: the score up to which images, network evaluations and seconds are counted.
    unit: what a sample is. score: the metric of the held-out evaluation.
    rates: learning rates among which a pilot of ``pilot_iterations`` on ``pilot_seed`` chooses one for each arm, by the
        mean of its held-out scores; empty for rates that the overrides name. borrows: arms that take another's rate.
    processes: arms that run in more than one. also: further metrics whose last value is kept.
    shared: overrides of all arms, before their own. seeds: how many runs of an arm the page has, from seed 0 on.
    """

    name: str
    title: str
    config: str
    iterations: int
    arms: dict[str, list[str]]
    pairs: list[tuple[str, str]]
    mark: float
    unit: str = "images"
    score: str = "eval/strict/mean"
    rates: list[float] = field(default_factory=list)
    pilot_iterations: int = 0
    pilot_seed: int = 100
    borrows: dict[str, str] = field(default_factory=dict)
    processes: dict[str, int] = field(default_factory=dict)
    also: list[str] = field(default_factory=list)
    shared: list[str] = field(default_factory=list)
    seeds: int = 5

    @classmethod
    def load(cls, name: str) -> Page:
        """The page ``NAME.yaml`` of this folder."""
        values = yaml.safe_load((Path(__file__).parent / f"{name}.yaml").read_text())
        return cls(name=name, **values | {"pairs": [tuple(pair) for pair in values["pairs"]]})

    def command(self) -> str:
        """What makes the page anew."""
        pilot = f"python -m benchmarks.evidence run {self.name} --out DIR --pilot && " if self.rates else ""
        return f"{pilot}python -m benchmarks.evidence run {self.name} --out DIR"


def train(page: Page, arm: str, directory: Path, overrides: list[str], seed: int, iterations: int) -> bool:
    """One training run, not repeated where it is there already. Whether it came to its end."""
    done, failed = directory / "done", directory / "failed"
    if not done.exists() and not failed.exists():
        shutil.rmtree(directory, ignore_errors=True)
        directory.parent.mkdir(parents=True, exist_ok=True)
        given = ["train", page.config, f"out={directory}"]
        given += [f"train.seed={seed}", f"train.iterations={iterations}", *page.shared, *overrides]
        log = directory.with_suffix(".log")
        code = launched(given, page.processes[arm], log) if arm in page.processes else warm.run(given, ROOT, log)
        if not directory.exists():
            raise SystemExit(f"{directory.name} did not start:\n{log.read_text()[-2000:]}")
        (done if code == 0 else failed).touch()
        print(f"{directory.name}: exit {code}", flush=True)
    return done.exists()


def launched(given: list[str], processes: int, log: Path) -> int:
    """The exit code of ``flowrl GIVEN`` in several processes of one thread each, on the CPU clock."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    with log.open("w") as sink:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        command += ["-m", "benchmarks.cpu_clock", *given]
        return subprocess.run(command, cwd=ROOT, env=environment, stdout=sink, stderr=sink, check=False).returncode


def last(directory: Path, keys: list[str]) -> dict[str, float]:
    """The last value of those metrics that a run has."""
    lines = RunDirectory(directory).metrics()
    values = {key: next((line[key] for line in reversed(lines) if key in line), None) for key in keys}
    return {key: round(value, 4) for key, value in values.items() if value is not None}


def curve(directory: Path, score: str) -> list[list[float]]:
    """The evaluations of a run, from the untrained base on: ``[score, samples, network evaluations, CPU seconds]``.

    Network evaluations are rows through the denoiser or language model, with and without gradient. Seconds are those of
    sampling, decoding, scoring and updates on one thread.
    """
    points, seconds = [], 0.0
    for line in RunDirectory(directory).metrics():
        seconds += seconds_of(line)
        if score in line:
            points.append([line[score], line["samples"], line["network/forwards"], seconds])
    return [[round(value, 4) for value in point] for point in points]


def pilot(page: Page, out: Path, arms: list[str], jobs: int) -> None:
    """Try every rate of the page for every arm, and keep the scores with the page's data."""
    tried = [(arm, rate) for arm in arms if arm not in page.borrows for rate in page.rates]

    def score(arm: str, rate: float) -> float:
        directory = out / page.name / "pilot" / f"{arm}-{rate:g}"
        overrides = [*page.arms[arm], f"optimizer.lr={rate}"]
        whole = train(page, arm, directory, overrides, page.pilot_seed, page.pilot_iterations)
        return statistics.fmean(point[0] for point in curve(directory, page.score)[1:]) if whole else 0.0

    with ThreadPoolExecutor(jobs) as pool:
        scores = list(pool.map(lambda job: score(*job), tried))
    data = read(page.name)
    for (arm, rate), value in zip(tried, scores, strict=True):
        data.setdefault("pilot", {}).setdefault(arm, {})[f"{rate:g}"] = round(value, 4)
    write(page.name, data)


def run(page: Page, out: Path, arms: list[str], seeds: list[int], jobs: int) -> None:
    """All runs of the arms and seeds, seed by seed; the page's data hold what there is after each."""
    data = read(page.name)
    if page.rates and (missing := [a for a in arms if page.borrows.get(a, a) not in data.get("pilot", {})]):
        raise SystemExit(f"no learning rate is known for {', '.join(missing)}; run with --pilot first")

    def one(arm: str, seed: int) -> tuple[str, int, dict[str, Any]]:
        overrides = list(page.arms[arm])
        if page.rates:
            scores = data["pilot"][page.borrows.get(arm, arm)]
            overrides.append(f"optimizer.lr={max(scores, key=lambda rate: scores[rate])}")
        directory = out / page.name / f"{arm}-{seed}"
        whole = train(page, arm, directory, overrides, seed, page.iterations)
        found = {"points": curve(directory, page.score), "also": last(directory, page.also)}
        return arm, seed, {"overrides": overrides, "whole": whole, **found, **_circumstances(directory)}

    with ThreadPoolExecutor(jobs) as pool:
        for arm, seed, found in pool.map(lambda job: one(*job), [(arm, seed) for seed in seeds for arm in arms]):
            kept = data.setdefault("arms", {}).setdefault(arm, {"runs": {}})
            kept["overrides"] = found.pop("overrides")
            kept["runs"][str(seed)] = found
            write(page.name, data)


def _circumstances(directory: Path) -> dict[str, str]:
    """Where a run took place, as its own record has it."""
    kept = json.loads((directory / "environment.json").read_text())
    versions = {name: kept["versions"][name] for name in PACKAGES}
    return {"commit": str(kept["commit"])[:7], "processor": kept["processor"], **versions}


def read(name: str) -> dict[str, Any]:
    """What was measured for a page; empty before its first run."""
    path = DATA / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def write(name: str, data: dict[str, Any]) -> None:
    """Keep what was measured for a page."""
    DATA.mkdir(parents=True, exist_ok=True)
    (DATA / f"{name}.json").write_text(json.dumps(data, indent=1) + "\n")
