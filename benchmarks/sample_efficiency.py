"""Held-out score on the shapes world against generated images and network forwards, for every method and seed.

    python benchmarks/sample_efficiency.py --out /tmp/efficiency --seeds 0 1 2 --jobs 2
    python benchmarks/sample_efficiency.py --out /tmp/efficiency --table      # only tabulate what is there

Same base, prompts, group size, images per iteration and evaluation for all; per method only the settings in ARMS
differ. Runs
that exist are not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "benchmarks" / "shapes.yaml"
ARMS: dict[str, list[str]] = json.loads((ROOT / "benchmarks" / "arms.json").read_text())


def run(arm: str, overrides: list[str], seed: int, out: Path, iterations: int) -> None:
    """One training run in its own process, one thread."""
    directory = out / f"{arm}-{seed}"
    if (directory / "done").exists():
        return
    subprocess.run(["rm", "-rf", str(directory)], check=True)
    command = [sys.executable, "-m", "flowrl", "train", str(CONFIG), f"out={directory}", f"name={arm}"]
    command += [f"train.seed={seed}", f"train.iterations={iterations}", *overrides]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    log = out / f"{arm}-{seed}.log"
    with log.open("w") as sink:
        code = subprocess.run(command, cwd=ROOT, env=environment, stdout=sink, stderr=sink, check=False).returncode
    if code == 0:
        (directory / "done").touch()
    print(f"{arm} seed {seed}: exit {code}", flush=True)


def curve(directory: Path) -> list[dict[str, float]]:
    """The evaluated lines of a run."""
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "eval/strict/mean" in line]


def table(out: Path, seeds: list[int], mark: float) -> str:
    """Final strict score, its spread over seeds, and images and forwards to reach ``mark``."""
    rows = [
        "| method | final strict, mean (each seed) | images to reach mark | network forwards to reach mark | seconds |"
    ]
    rows += ["|---|---|---|---|---|"]
    for arm in ARMS:
        curves = [curve(out / f"{arm}-{s}") for s in seeds if (out / f"{arm}-{s}" / "done").exists()]
        if not curves:
            continue
        finals = [sum(line["eval/strict/mean"] for line in c[-2:]) / len(c[-2:]) for c in curves]
        reached = [next((line for line in c if line["eval/strict/mean"] >= mark), None) for c in curves]
        images = ", ".join("never" if r is None else f"{r['samples']:.0f}" for r in reached)
        forwards = ", ".join("never" if r is None else f"{r['network/forwards']:.0f}" for r in reached)
        seconds = ", ".join(f"{c[-1]['time']:.0f}" for c in curves)
        each = ", ".join(f"{f:.3f}" for f in finals)
        rows.append(f"| {arm} | {sum(finals) / len(finals):.3f} ({each}) | {images} | {forwards} | {seconds} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--arms", nargs="*", default=list(ARMS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--iterations", type=int, default=40)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--mark", type=float, default=0.6, help="strict score to count images up to")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.table:
        jobs = [(arm, seed) for seed in options.seeds for arm in options.arms]
        with ThreadPoolExecutor(options.jobs) as pool:
            list(pool.map(lambda j: run(j[0], ARMS[j[0]], j[1], options.out, options.iterations), jobs))
    print(table(options.out, options.seeds, options.mark))


if __name__ == "__main__":
    main()
