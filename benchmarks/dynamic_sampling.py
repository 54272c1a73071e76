"""DAPO with and without dynamic sampling, at equal numbers of generated tokens:
`python -m benchmarks.dynamic_sampling`.

The causal base of the sudoku world, 4x4 puzzles, reward 1 for a solved one and 0 else, so that groups can be flat.
Every arm stops with the first iteration that reaches the budget of samples (17 tokens each).
"""

from __future__ import annotations

import json
import statistics
import time
from typing import Any

from flowrl.config import Config
from flowrl.heldout import evaluate_heldout
from flowrl.rounds import GROUPS
from flowrl.runtime.timing import PhaseTimer
from flowrl.session import open_session
from flowrl.startup.preflight import check_run
from flowrl.train import iterate

ARMS: dict[str, Any] = {
    "drop_flat_groups": "drop_flat_groups",
    "replace_flat_groups": {"use": "replace_flat_groups", "rounds": 10},
}
SEEDS = (0, 1, 2)
QUARTERS = 4
PROMPTS, BUDGET = 16, 5120
GROUPS_OF = (8, 4)


def config(arm: str, group: int, seed: int) -> Config:
    """The run; the learning rate is the quickstart's, not tuned for either arm."""
    return Config.of(
        {
            "name": arm,
            "model": {"path": "sudoku", "full": True},
            "algorithm": {"use": "dapo", "length": 17, "selection": ARMS[arm]},
            "data": {"train": "sudoku:train", "test": "sudoku:test", "prompts": PROMPTS, "group": group},
            "rewards": [{"use": "sudoku", "options": {"mode": "strict"}}],
            "optimizer": {"lr": 7e-4, "betas": [0.9, 0.99], "weight_decay": 0.0},
            "train": {
                "iterations": BUDGET // (PROMPTS * group),
                "updates": 2,
                "micro_batch": 256,
                "sample_batch": 256,
                "threads": 1,
                "seed": seed,
                "ema": None,
            },
            "eval": {"batch": 240, "weights": "live"},
            "monitor": {"samples": 0},
        }
    )


def run(arm: str, group: int, seed: int) -> dict[str, Any]:
    """Held-out scores at every quarter of the budget, and what was spent."""
    session, timer = open_session(check_run(config(arm, group, seed))), PhaseTimer()
    curve, flat, rounds, groups, began = [], [], [], [], time.perf_counter()
    while session.progress.samples < BUDGET:
        metrics, *_ = iterate(session, timer)
        flat.append(metrics["zero_std_fraction"])
        rounds.append(metrics.get("sampling/rounds", 1.0))
        groups.append(metrics.get(GROUPS, PROMPTS * (1 - flat[-1])))
        if session.progress.samples >= BUDGET * (len(curve) + 1) / QUARTERS:
            curve.append(evaluate_heldout(session, timer).metrics["eval/reward/mean"])
    session.rewards.close()
    return {
        "arm": arm,
        "group": group,
        "seed": seed,
        "curve": [round(value, 3) for value in curve],
        "samples": session.progress.samples,
        "iterations": session.progress.iteration,
        "rounds": round(statistics.fmean(rounds), 2),
        "groups": round(statistics.fmean(groups), 1),
        "flat": round(statistics.fmean(flat), 3),
        "seconds": round(time.perf_counter() - began),
    }


if __name__ == "__main__":
    for size in GROUPS_OF:
        for number in SEEDS:
            for name in ARMS:
                print(json.dumps(run(name, size, number)), flush=True)
