"""How many samples distillation needs for what reinforcement learning of the teacher needed, on the countdown world,
and the seconds of an update. One core, one process, some minutes.

Usage: python benchmarks/teachers.py [--iterations 40] [--most 40] [--only opd ...] [--seed 0]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from flowrl.config import Config
from flowrl.heldout import evaluate_heldout
from flowrl.models import export_policy
from flowrl.runtime.timing import PhaseTimer
from flowrl.session import Session, open_session
from flowrl.startup.preflight import check_run
from flowrl.train import iterate

SAMPLES = 16 * 8
STUDENTS: dict[str, dict[str, Any]] = {
    "opd": {"use": "opd"},
    "opd, gamma 1": {"use": "opd", "gamma": 1.0},
    "vopd": {"use": "vopd"},
    "gkd, own samples, beta 1": {"use": "gkd", "beta": 1.0, "on_policy": 1.0, "temperature": 1.0},
    "gkd, own samples, beta .5": {"use": "gkd", "on_policy": 1.0, "temperature": 1.0},
}


def config(algorithm: dict[str, Any], folder: Path, seed: int, teacher: Path | None = None) -> Config:
    """A small run."""
    return Config.of(
        {
            "name": "teachers",
            "model": {"path": "countdown", "lora": {"rank": 8, "alpha": 16}},
            "algorithm": {"length": 14, **algorithm},
            "teachers": {} if teacher is None else {"teacher": {"adapter": str(teacher)}},
            "data": {"train": "countdown:train", "test": "countdown:test", "prompts": 16, "group": 8},
            "rewards": [{"use": "countdown"}],
            "optimizer": {"lr": 2e-3},
            "train": {"iterations": 100, "threads": 1, "ema": None, "seed": seed},
            "eval": {"prompts": 200, "weights": "live", "temperature": 1.0},
            "out": str(folder),
        }
    )


def score(session: Session) -> float:
    """The held-out reward."""
    return evaluate_heldout(session, PhaseTimer()).metrics["eval/reward/mean"]


def learn(session: Session, iterations: int, every: int, target: float | None = None) -> list[tuple[int, float]]:
    """``(samples, held-out reward)`` until the target is reached, or for so many iterations."""
    found = [(0, score(session))]
    for iteration in range(1, iterations + 1):
        iterate(session, PhaseTimer())
        if iteration % every == 0 or iteration == iterations:
            found.append((iteration * SAMPLES, score(session)))
            if target is not None and found[-1][1] >= target:
                break
    return found


def main() -> None:
    """Train a teacher by GRPO, then students that learn from it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--iterations", type=int, default=40)
    parser.add_argument("--most", type=int, default=40, help="iterations of a student")
    parser.add_argument("--only", nargs="*", default=list(STUDENTS))
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with TemporaryDirectory() as place:
        folder, adapter = Path(place), Path(place) / "adapter"
        session = open_session(check_run(config({"use": "grpo", "kl": 0.0}, folder, given.seed)))
        clock = time.process_time()
        curve = learn(session, given.iterations, 4)
        seconds = (time.process_time() - clock) / given.iterations
        reached = max(value for _, value in curve)
        print(f"grpo, the teacher: {seconds:.1f} s an iteration; " + said(curve), flush=True)
        export_policy(session.policy, adapter, "peft")
        session.rewards.close()
        final = curve[-1][1]
        first = next(samples for samples, value in curve if value >= final)
        print(f"the teacher ends at {final:.3f} (best {reached:.3f}), reached first after {first} samples")
        for name in given.only:
            algorithm = STUDENTS[name]
            session = open_session(check_run(config(algorithm, folder, given.seed + 1, adapter)))
            clock = time.process_time()
            curve = learn(session, given.most, 2, target=final)
            seconds = (time.process_time() - clock) / (curve[-1][0] / SAMPLES)
            print(f"{name}: {seconds:.1f} s an iteration; " + said(curve), flush=True)
            session.rewards.close()


def said(curve: list[tuple[int, float]]) -> str:
    """A curve in one line."""
    return ", ".join(f"{samples}: {value:.3f}" for samples, value in curve)


if __name__ == "__main__":
    main()
