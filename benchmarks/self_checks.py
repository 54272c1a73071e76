"""Self-checks in honest runs: which values they find, how often they raise a false alarm, and what they cost.

    python -m benchmarks.self_checks [PRESET@WORLD ...] [--cost CONFIG ... --set KEY=VALUE ...] [--iterations 3]

Runs presets of every family at small size on the embedded worlds, on the CPU, and prints for every check the least and
the largest value over all runs, what is healthy there (bfloat16 and texts apart, where that differs), in how many runs
it meant something, and in how many it was outside. Then, for each config of ``--cost`` at its full size: CPU seconds of
the checks at iterations 1 and 2, as a share of an iteration without them (the third).
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from flowrl import update_checks
from flowrl.checks import CHECKS, Verdict, judge, measures
from flowrl.checks.registry import span
from flowrl.config import Config
from flowrl.runtime.timing import PhaseTimer
from flowrl.session import open_session
from flowrl.startup.preflight import check_run
from flowrl.train import iterate
from flowrl.update_checks import UpdateChecks
from tests.training import config_of

RUNS: dict[str, dict[str, Any]] = {
    **{
        f"{name}@shapes": {}
        for name in (
            "flow_grpo", "flow_grpo_fast", "flow_cps", "dance_grpo", "mix_grpo", "grpo_guard", "ddpo", "diffusion_nft",
            "awm", "fpo",
        )
    },
    **{f"{name}@countdown": {} for name in ("grpo", "dapo", "ppo", "gspo")},
    "grpo@sudoku": {},
    **{f"{name}@sudoku": {} for name in ("diffu_grpo", "coupled_grpo", "spg", "trajectory_pg")},
    "flow_grpo@shapes bfloat16": {"model__dtype": "bfloat16"},
    "grpo@countdown bfloat16": {"model__dtype": "bfloat16"},
}  # fmt: skip
SIZE: dict[str, Any] = {
    "data__prompts": 8, "data__group": 4, "train__sample_batch": 32, "train__micro_batch": 32, "optimizer__lr": 3e-4,
    "optimizer__max_grad_norm": 1.0, "train__ema": None, "eval__weights": "live", "monitor__checks": 1,
}  # fmt: skip


def honest(name: str, changes: dict[str, Any], iterations: int) -> list[Verdict]:
    """All verdicts of a run."""
    preset, world = name.split()[0].split("@")
    steps = {"algorithm__sampler": {"steps": 8}} if world == "shapes" else {}
    values = config_of(preset, world, **{**SIZE, **steps, **changes, "train__iterations": iterations})
    found: list[Verdict] = []
    session = open_session(check_run(Config.of({**values, "out": "runs/self_checks"})))
    with closing(session.rewards):
        for _ in range(iterations):
            timer = PhaseTimer()
            metrics, batch, _ = iterate(session, timer)
            metrics |= measures.measure(session, batch, timer)
            found += judge(session, metrics)
    return found


class Clock:
    """CPU seconds spent in functions that it replaces."""

    def __init__(self) -> None:
        self.seconds, self._depth = 0.0, 0

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **options: Any) -> Any:
            start, self._depth = time.process_time(), self._depth + 1
            try:
                return function(*args, **options)
            finally:
                self._depth -= 1
                if not self._depth:
                    self.seconds += time.process_time() - start

        return timed


def cost(path: Path, changes: list[str]) -> tuple[float, list[float]]:
    """CPU seconds of an iteration without checks, and those of the checks in the first two."""
    config = Config.load(path, ["out=runs/self_checks", "train.threads=1", *changes])
    clock, spent = Clock(), []
    for name in ("see_batch", "see_gradients", "see_terms"):
        setattr(UpdateChecks, name, clock(getattr(UpdateChecks, name)))
    for name in ("_some", "_length"):
        setattr(update_checks, name, clock(getattr(update_checks, name)))
    session = open_session(check_run(config))
    with closing(session.rewards):
        for _ in range(3):
            start, clock.seconds = time.process_time(), 0.0
            _, batch, _ = iterate(session, PhaseTimer())
            clock(measures.measure)(session, batch, PhaseTimer())
            spent.append((time.process_time() - start, clock.seconds))
    return spent[2][0], [seconds for _, seconds in spent[:2]]


def show(found: dict[str, list[Verdict]]) -> None:
    """The table of healthy values, a line for every range of a check."""
    print("| check | least | largest | healthy | runs | outside |\n|---|---|---|---|---|---|")
    for check in CHECKS:
        spans: dict[str, dict[str, list[Verdict]]] = {}
        for run, seen in found.items():
            for verdict in seen:
                if verdict.check is check:
                    spans.setdefault(span(verdict.low, verdict.high), {}).setdefault(run, []).append(verdict)
        for words, runs in spans.items():
            values = [verdict.value for seen in runs.values() for verdict in seen]
            outside = sum(not all(verdict.healthy for verdict in seen) for seen in runs.values())
            print(
                f"| `{check.name}` | {min(values):.2g} | {max(values):.2g} | {words} | {len(runs)} | {outside} |",
                flush=True,
            )


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="*", default=list(RUNS))
    parser.add_argument("--cost", nargs="*", type=Path, default=[])
    parser.add_argument("--set", nargs="*", default=[], help="overrides of those configs")
    parser.add_argument("--iterations", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, list[Verdict]] = defaultdict(list)
    for run in options.runs:
        found[run] = honest(run, RUNS.get(run, {}), options.iterations)
        outside = [verdict.sentence() for verdict in found[run] if not verdict.healthy]
        print(f"{run}: {len(found[run])} values, outside: {'; '.join(outside) or 'none'}", flush=True)
    show(found)
    for path in options.cost:
        whole, spent = cost(path, options.set)
        shares = ", ".join(f"{seconds:.3f} s ({seconds / whole:.2%})" for seconds in spent)
        print(f"{path}: an iteration {whole:.2f} s of CPU, checks at iterations 1 and 2: {shares}", flush=True)


if __name__ == "__main__":
    main()
