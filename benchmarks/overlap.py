"""A reward that takes as long as sampling, scored in the background: how much longer is sampling and scoring than the
longer of the two? Ratios within one process.

    OMP_NUM_THREADS=1 python benchmarks/overlap.py [--rounds 5] [--chunks 16] [--burn]

An iteration's samples are made by the shapes model in chunks. First without a reward worth mentioning: that is the time
of sampling. Then with a reward that waits as long for every chunk as sampling it took (as a scorer on another device or
behind an endpoint does), overlapped and one after the other; rounds alternate, and the median of the ratios to the
longer of the two is reported. ``--burn`` keeps a core busy instead, in a process of its own; that needs a second core
to itself.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from flowrl.config import Config
from flowrl.runtime.timing import PhaseTimer
from flowrl.session import Session, open_session
from flowrl.startup.preflight import check_run
from flowrl.train import iterate

REWARD = '''
import time, torch

def wait(images, prompts, file):
    """Spends the seconds per sample that the file names."""
    seconds = float(open(file).read()) * len(prompts)
    time.sleep(seconds)
    return images.mean(dim=(1, 2, 3))

def burn(images, prompts, file):
    end = time.process_time() + float(open(file).read()) * len(prompts)
    while time.process_time() < end:
        pass
    return images.mean(dim=(1, 2, 3))
'''


def open_run(folder: Path, chunks: int, *, overlap: bool, burn: bool) -> Session:
    """A run whose iterations are nearly all sampling: forwards of 216 samples, and one short update."""
    rewards = {
        "use": f"{folder}/reward.py:{'burn' if burn else 'wait'}",
        "options": {"file": str(folder / "seconds")},
        "overlap": overlap,
        "process": burn,
    }
    config = {
        "name": "overlap",
        "model": {"path": "shapes", "lora": {"rank": 2, "alpha": 4}},
        "algorithm": "diffusion_nft",
        "data": {"prompts": 18, "group": 12},
        "rewards": [rewards],
        "train": {"iterations": 1000, "sample_batch": -(-216 // chunks), "ema": None},
        "eval": {"every": 0, "weights": "live"},
    }
    return open_session(check_run(Config.of(config)))


def measure(session: Session) -> dict[str, float]:
    """Seconds of an iteration: all that comes before the advantage, and its parts."""
    timer = PhaseTimer()
    metrics, *_ = iterate(session, timer)
    times = timer.collect() | metrics
    made = times["time/sample"] + times["time/decode"]
    return {"made": made, "busy": times["reward/seconds"], "both": made + times["time/reward"]}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--chunks", type=int, default=16)
    parser.add_argument("--burn", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "reward.py").write_text(REWARD)
        (folder / "seconds").write_text("0")
        arms = {
            kind: open_run(folder, options.chunks, overlap=kind == "overlapped", burn=options.burn)
            for kind in ("overlapped", "one after the other")
        }
        ratios: dict[str, list[float]] = {kind: [] for kind in arms}
        for session in arms.values():
            measure(session)  # warm-up
        for index in range(options.rounds):
            for kind, session in arms.items():
                (folder / "seconds").write_text("0")
                alone = measure(session)["made"]
                (folder / "seconds").write_text(str(alone / 216))
                found = measure(session)
                longer = max(alone, found["made"], found["busy"])
                ratios[kind].append(found["both"] / longer)
                print(
                    f"round {index}, {kind}: sampling {alone:.2f} s alone and {found['made']:.2f} s, rewards "
                    f"{found['busy']:.2f} s, together {found['both']:.2f} s = {ratios[kind][-1]:.3f} of the longer",
                    flush=True,
                )
        for session in arms.values():
            session.rewards.close()
    for kind, values in ratios.items():
        print(f"{kind}: {statistics.median(values):.3f} of the longer ({min(values):.3f} to {max(values):.3f})")


if __name__ == "__main__":
    start = time.perf_counter()
    main()
    print(f"{time.perf_counter() - start:.0f} s")
