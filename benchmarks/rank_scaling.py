"""Two processes against one at equal total work, each with one thread: seconds of an iteration of the quickstart.

    python benchmarks/rank_scaling.py [--repeats 5] [--iterations 4] [--cpu] [key=value ...]

The arms alternate; medians and ranges are over all iterations but each run's first. Communication is the time that rank
0 spends inside exchanges (`DistributedRanks.seconds`), waiting for the other process included. Run it on an idle
machine with at least two cores; on a busy one ``--cpu`` counts the CPU seconds of rank 0, so without what it waits.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
SIZES = (1, 2)


def main() -> None:
    """Alternate the arms and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--iterations", type=int, default=4)
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*")
    given = parser.parse_args()
    if given.worker:
        _work(given.overrides, given.cpu)
        return
    seconds: dict[int, list[float]] = {size: [] for size in SIZES}
    shares: list[float] = []
    for repeat in range(given.repeats):
        for size in SIZES if repeat % 2 == 0 else SIZES[::-1]:
            found, exchanged = _run(size, given.iterations, given.cpu, given.overrides)
            seconds[size] += found
            if size > 1:
                shares.append(exchanged / sum(found))
            print(f"{size} process{'es' * (size > 1)}: {' '.join(f'{s:.2f}' for s in found)}", flush=True)
    medians = {size: statistics.median(found) for size, found in seconds.items()}
    for size, found in seconds.items():
        print(f"{size}: median {medians[size]:.3f} s an iteration ({min(found):.3f}-{max(found):.3f})")
    exchanged = "" if given.cpu else f"; in exchanges {statistics.median(shares):.1%}"
    print(f"time {medians[2] / medians[1]:.3f} of one process{exchanged}")


def _run(size: int, iterations: int, cpu: bool, overrides: list[str]) -> tuple[list[float], float]:
    """Seconds of all iterations but the first, and how many of them rank 0 spent in exchanges."""
    out = Path(tempfile.mkdtemp(prefix="flowrl-scaling-")) / "run"
    work = [
        str(Path(__file__)),
        "--worker",
        *(["--cpu"] if cpu else []),
        f"out={out}",
        f"train.iterations={iterations}",
        *overrides,
    ]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}"] if size > 1 else []
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *launcher, *work], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    spent = [line["time/iteration"] for line in lines if line["step"] > 1]
    exchanged = [float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("exchanged ")]
    return spent, exchanged[0] if exchanged else 0.0


def _work(overrides: list[str], cpu: bool) -> None:
    """In a process of the run: train, and on rank 0 say how long it was inside exchanges after its first iteration."""
    from flowrl.config import Config
    from flowrl.runtime.ranks import DistributedRanks
    from flowrl.runtime.timing import PhaseTimer
    from flowrl.train import train
    from flowrl.trainer import Trainer

    if cpu:
        PhaseTimer.clock = staticmethod(time.process_time)
    spent: list[tuple[int, float]] = []
    publish = Trainer.publish

    def watched(trainer: Trainer, metrics: dict[str, float]) -> None:
        publish(trainer, metrics)
        ranks = trainer.session.ranks
        if isinstance(ranks, DistributedRanks):
            spent.append((trainer.session.progress.iteration, ranks.seconds))

    Trainer.publish = watched
    small = ["eval.every=0", "checkpoint.every=0", "log.samples=0", "train.threads=1"]
    train(Config.load(ROOT / "configs/quickstart.yaml", [*small, *overrides]))
    if spent and int(os.environ["RANK"]) == 0:
        print(f"exchanged {spent[-1][1] - next(seconds for done, seconds in spent if done == 1)}", flush=True)


if __name__ == "__main__":
    main()
