"""Methods for masked-diffusion language models on the sudoku world, at the same budget of generated tokens.

Usage: python -m benchmarks.masked_lm --out DIR [--pilot] [--arms a,b] [--seeds 3]
Every arm makes 16 prompts x 12 samples x 16 tokens per iteration, for 20 iterations (61,440 tokens), two updates each.
A line shows tokens drawn, network rows evaluated and CPU seconds (of sampling, scoring and updates) side by side.
``--pilot`` first tries four learning rates per arm for 10 iterations with seed 100; the best one by the mean of its
held-out scores is then used for seeds 0, 1, ... Held-out: 240 puzzles, sampled as in training (temperature 1, 8 steps).
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import flowrl
from benchmarks.cpu_clock import seconds_of, use_cpu_clock
from flowrl.config import Config
from flowrl.errors import UserError

SIZES = {"length": 16, "steps": 8, "block": 16, "temperature": 1.0}
SAMPLER = {
    "order": "max_prob",
    "schedule": "even",
    "top_p": 1.0,
    "tempered_order": False,
}  # the same for all, and exact; each method's own is its released one
ARMS: dict[str, dict[str, Any]] = {
    "diffu_grpo": {"kl": 0.0, "corrupt": 0.0},
    "elbo_pg": {"draws": 4},
    "gdpo_dllm": {"nodes": 3},
    "gdpo_paper": {
        "use": "gdpo_dllm",
        "clip": 0.2,
        "objective": {"by_length": False},
        "loss_weight": {"use": "by_length", "power": -1.0},
        "estimator": {"views": {"counts": "bernoulli"}},
    },  # as the paper writes it, and as this table had it before
    "spg": {"draws": 2, "corrupt": 0.0, "estimator": {"views": {"block": 4}}},  # two views take two of four blocks
    "spg_unbiased": {"use": "spg", "corrupt": 0.0, "estimator": {"views": {"use": "block_random", "block": 16}}},
    "bgpo": {"draws": 16},
    "coupled_grpo": {"kl": 0.0, "top_p": 1.0},
    "unigrpo": {"kl": 0.0},
    "wd1": {"corrupt": 0.0, "weight_temperature": 0.2},
    "sepo": {},
    "vrpo": {},
    "tracerl": {"merge": 2, "kl": 0.0},
    "trajectory_pg": {},
}
RATES = (1e-4, 3e-4, 1e-3, 3e-3)
ITERATIONS, PILOT = 20, 10


def config(arm: str, rate: float, seed: int, iterations: int, out: Path) -> Config:
    """One run."""
    return Config.of(
        {
            "name": arm,
            "model": {"path": "sudoku", "full": True},
            "algorithm": {"use": arm, **SIZES, "sampler": SAMPLER, **ARMS[arm]},
            "data": {"train": "sudoku:train", "test": "sudoku:test", "prompts": 16, "group": 12},
            "rewards": [
                {"use": "sudoku", "options": {"mode": "mixed"}},
                {"use": "sudoku", "name": "strict", "weight": 0.0, "options": {"mode": "strict"}},
            ],
            "optimizer": {"lr": rate, "betas": [0.9, 0.99], "weight_decay": 0.0},
            "train": {
                "iterations": iterations,
                "updates": 2,
                "micro_batch": 256,
                "sample_batch": 256,
                "threads": 1,
                "seed": seed,
                "ema": None,
            },
            "eval": {"every": 2, "batch": 256, "weights": "live"},
            "checkpoint": {"every": 0},
            "log": {"samples": 0},
            "out": str(out),
        }
    )


def run(arm: str, rate: float, seed: int, iterations: int, out: Path) -> list[dict[str, float]]:
    """The held-out lines of a run; a finished one is not run again. A run that fails (say, a loss that is not finite)
    ends its curve with zeros."""
    metrics = out / "metrics.jsonl"
    if not (out / "done").exists():
        try:
            flowrl.train(config(arm, rate, seed, iterations, out))
        except UserError as error:
            (out / "failed").write_text(str(error))
        (out / "done").touch()
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    found = [line for line in lines if "eval/strict/mean" in line]
    found[-1]["cpu"] = sum(map(seconds_of, lines))
    while len(found) < iterations // 2 + 1:
        found.append({**found[-1], "eval/strict/mean": 0.0})
    return found


def main() -> None:
    """Pilot, runs and table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pilot", action="store_true")
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    use_cpu_clock()
    chosen_file = Path(__file__).parent / "masked_lm_rates.json"
    chosen: dict[str, float] = json.loads(chosen_file.read_text()) if chosen_file.exists() else {}
    if not arguments.pilot:
        print("| method | rate | end | each seed | mean of the curve | tokens | network forwards | seconds | curve |")
        print("|---" * 9 + "|", flush=True)
    for arm in arguments.arms.split(","):
        if arguments.pilot:
            scores = {}
            for rate in RATES:
                lines = run(arm, rate, 100, PILOT, arguments.out / "pilot" / f"{arm}-{rate:g}")
                scores[rate] = statistics.mean(line["eval/strict/mean"] for line in lines[1:])
            chosen[arm] = max(scores, key=lambda rate: scores[rate])
            print(arm, {f"{rate:g}": round(score, 3) for rate, score in scores.items()}, flush=True)
            chosen_file.write_text(json.dumps(chosen, indent=1, sort_keys=True) + "\n")
            continue
        curves = [
            run(arm, chosen[arm], seed, ITERATIONS, arguments.out / f"{arm}-{seed}") for seed in range(arguments.seeds)
        ]
        columns = list(zip(*([line["eval/strict/mean"] for line in curve] for curve in curves), strict=True))
        means = [statistics.mean(column) for column in columns]
        ends = ", ".join(f"{curve[-1]['eval/strict/mean']:.3f}" for curve in curves)
        spread = statistics.stdev(columns[-1]) / len(curves) ** 0.5 if len(curves) > 1 else 0.0
        forwards, seconds, samples = (
            statistics.mean(curve[-1][key] for curve in curves) for key in ("network/forwards", "cpu", "samples")
        )
        area = statistics.mean(means[1:])
        print(
            f"| `{arm}` | {chosen[arm]:g} | {means[-1]:.3f} ± {spread:.3f} | {ends} | {area:.3f} "
            f"| {samples * SIZES['length']:,.0f} | {forwards:,.0f} | {seconds:.0f} "
            f"| {' '.join(f'{m:.2f}' for m in means[1:])} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
