"""Two processes, of which one is killed at random points, again and again: what is said, and whether the run that went
on every time is the run that was not disturbed, bit for bit.

    python benchmarks/rank_faults.py [--kills 50] [--seed 0]

Every kill is of a rank drawn at random, at a time drawn from the seconds that an undisturbed session takes, its start
included; the run then goes on with --resume auto until the next one. When its last iteration is done it begins anew.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.launching import assert_same_run, errors_said, iterations, prepare, ranks_of, run, start

LINES = 7
"""Of the metrics of a whole run."""


def main() -> None:
    """Print a line for every kill, and the counts at the end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    draw, counts = random.Random(given.seed), Counter[str]()
    root = Path(tempfile.mkdtemp(prefix="flowrl-faults-"))
    undisturbed, folder = root / "undisturbed", root / "disturbed"
    undisturbed.mkdir()
    folder.mkdir()
    prepare(undisturbed)
    began = time.monotonic()
    assert run(undisturbed, 2).returncode == 0
    length = time.monotonic() - began
    while counts["kills"] < given.kills:
        shutil.rmtree(folder)
        folder.mkdir()
        prepare(folder)
        while counts["kills"] < given.kills:
            if not _disturb(folder, draw, length, counts):
                break
        done = run(folder, 2, "--resume", "auto")
        assert done.returncode == 0, done.stderr
        assert_same_run(undisturbed, folder)
        counts["runs equal to the undisturbed one"] += 1
    print(", ".join(f"{name}: {count}" for name, count in counts.items()))
    shutil.rmtree(root)


def _disturb(folder: Path, draw: random.Random, length: float, counts: Counter[str]) -> bool:
    """Start or go on, and kill a rank. Whether there was one to kill."""
    launcher, rank, moment = start(folder, 2, "--resume", "auto"), draw.randrange(2), draw.uniform(0, length)
    began = time.monotonic()
    while launcher.poll() is None and (time.monotonic() - began < moment or len(ranks_of(launcher)) < 2):
        time.sleep(0.01)
    if launcher.poll() is not None:
        assert launcher.returncode == 0, (folder / "errors.txt").read_text()
        return False
    processes = ranks_of(launcher)
    os.kill(processes[rank], signal.SIGKILL)
    killed = time.monotonic()
    code = launcher.wait(120)
    said = errors_said((folder / "errors.txt").read_text())
    left = [pid for pid in processes.values() if Path(f"/proc/{pid}").exists()]
    named = len(said) == 1 and f"rank {rank} (process {processes[rank]} on " in said[0]
    counts["kills"] += 1
    if named:
        counts["one sentence that names the rank"] += 1
    elif said:
        counts["something else said"] += 1
    else:  # programs were being imported, or all was written
        done = (folder / "run/report.html").exists() and iterations(folder) == LINES
        counts["nothing said, once the run was done" if done else "nothing said, before the ranks had met"] += 1
    counts["processes left"] += len(left)
    print(
        f"{counts['kills']:3d}  rank {rank} after {moment:5.1f} s, {iterations(folder)} lines; ended in "
        f"{time.monotonic() - killed:.1f} s with {code}: {said[0][:90] if said else 'nothing said'}",
        flush=True,
    )
    return True


if __name__ == "__main__":
    main()
