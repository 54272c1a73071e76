"""Demonstrations, reinforcement learning, and one after the other in one config of stages, at equal numbers of
sequences trained on: `python -m benchmarks.warm_start OUT [SEED ...]`.

Countdown with five numbers, which the causal base (three or four) has never seen: it solves next to none. 300 tasks
with an expression each to learn from, 4000 others without, 240 held out; reward 1 for the target, else 0.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
from pathlib import Path
from typing import Any

from benchmarks.cpu_clock import seconds_of, use_cpu_clock
from flowrl.commands.stages import check_stages, train_stages
from flowrl.config.stages import stages_of
from flowrl.worlds.countdown.prompts import random_task, text

SEEDS = (0, 1, 2)
NUMBERS, LENGTH = 5, 18
TASKS = {"demonstrations": 300, "train": 4000, "test": 240}
SFT, RL = 64, 128
"""Sequences of an iteration."""
WARM, AFTER = 50, 100
"""Iterations of both stages."""


def write_tasks(folder: Path) -> None:
    """The tasks of every set, no two of them alike."""
    rng, seen = random.Random("five numbers"), set()
    for name, count in TASKS.items():
        rows = []
        while len(rows) < count:
            numbers, target, expression = random_task(NUMBERS, rng)
            if (numbers, target) not in seen:
                seen.add((numbers, target))
                row = {"prompt": text(numbers, target), "numbers": list(numbers), "target": target}
                rows.append(row | ({"completion": expression} if name == "demonstrations" else {}))
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def imitation(folder: Path, iterations: int) -> dict[str, Any]:
    """Keys of supervised learning on the demonstrations."""
    return {
        "algorithm": {"use": "sft", "length": LENGTH},
        "data": {"train": str(folder / "demonstrations.jsonl"), "prompts": SFT},
        "train": {"iterations": iterations},
    }


def reinforcement(folder: Path, iterations: int) -> dict[str, Any]:
    """Keys of GRPO on the tasks without expressions."""
    return {
        "algorithm": {"use": "grpo", "kl": 0.0, "length": LENGTH},
        "data": {"train": str(folder / "train.jsonl"), "prompts": RL // 8, "group": 8},
        "train": {"iterations": iterations},
    }


def arms(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The stages of every arm; all train on as many sequences."""
    budget = WARM * SFT + AFTER * RL
    return {
        "sft": [imitation(folder, budget // SFT)],
        "rl": [reinforcement(folder, budget // RL)],
        "sft, then rl": [imitation(folder, WARM), reinforcement(folder, AFTER)],
    }


def common(folder: Path, name: str, seed: int) -> dict[str, Any]:
    """What all arms have in common; rates were not tuned for any of them."""
    return {
        "name": name,
        "out": str(folder / name),
        "model": {"path": "countdown", "lora": {"rank": 32, "alpha": 64}},
        "data": {"test": str(folder / "test.jsonl")},
        "rewards": [{"use": "countdown", "options": {"mode": "strict"}}],
        "optimizer": {"lr": 2e-3, "betas": [0.9, 0.99], "weight_decay": 0.0},
        "train": {"seed": seed, "threads": 1, "ema": None, "micro_batch": 256},
        "eval": {"every": 50, "samples": 2, "weights": "live", "batch": 480},
        "checkpoint": {"every": 0, "best": None},
        "monitor": {"samples": 0, "checks": 0},
        "log": {"samples": 0},
    }


def run(folder: Path, arm: str, stages: list[dict[str, Any]], seed: int) -> dict[str, float]:
    """Held-out scores before, after the first stage, at the end and at their best (every 50 iterations), and CPU
    seconds of sampling and updates."""
    name = f"{arm.replace(', ', '_').replace(' ', '_')}_{seed}"
    found = stages_of({**common(folder, name, seed), "stages": stages})
    assert found is not None
    check_stages(found)
    scores: list[list[float]] = []
    seconds = 0.0
    for directory in train_stages(found):
        lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
        scores.append([line["eval/reward/mean"] for line in lines if "eval/reward/mean" in line])
        seconds += sum(map(seconds_of, lines))
    best = max(score for each in scores for score in each)
    return {"base": scores[0][0], "first": scores[0][-1], "end": scores[-1][-1], "best": best, "seconds": seconds}


def main() -> None:
    """Prints a line for every run and one for every arm."""
    use_cpu_clock()
    folder, seeds = Path(sys.argv[1]), [int(word) for word in sys.argv[2:]] or SEEDS
    folder.mkdir(parents=True)
    write_tasks(folder)
    for arm, stages in arms(folder).items():
        each = []
        for seed in seeds:
            each.append(run(folder, arm, stages, seed))
            print(json.dumps({"arm": arm, "seed": seed, **{k: round(v, 4) for k, v in each[-1].items()}}), flush=True)
        means = {key: statistics.fmean(one[key] for one in each) for key in each[0]}
        print(json.dumps({"arm": arm, "mean": {k: round(v, 4) for k, v in means.items()}}), flush=True)


if __name__ == "__main__":
    main()
