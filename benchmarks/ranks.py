"""Several processes against one: gradients and weights after a few iterations, beside what another micro-batch does.

    python -m benchmarks.ranks [PRESET@WORLD ...] [--iterations 5] [--quick]

Runs each preset at toy size on an embedded world, in float32 on CPU (gloo), with 5 groups: on one process with
micro-batches of 8 (what the others are compared with), 1, 3 and all, with other batches to sample, and with gradient
checkpointing; on 2, 3 and 4
processes with all of these; and resumed after two iterations on another number of processes. Prints a table: the
relative difference of the first gradient, the largest of all gradients, and that of all weight sets at the end. With
``--quick`` every number of processes once, and two other micro-batches.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import Any

from tests.training import Processes, Trained, Work, config_of, drift

PRESETS = (
    "flow_grpo@shapes",
    "diffusion_nft@shapes",
    "fpo@shapes",
    "dapo@countdown",
    "ppo@countdown",
    "reinforce_pp@countdown",
    "gspo@sudoku",
    "spg@sudoku",
    "trajectory_pg@sudoku",
    "tracerl@sudoku",
)
CHECKPOINTING: dict[str, Any] = {"model__gradient_checkpointing": True}
OTHERS: dict[str, dict[str, Any]] = {
    "micro-batch 1": {"train__micro_batch": 1},
    "micro-batch 3": {"train__micro_batch": 3},
    "micro-batch all": {"train__micro_batch": 10_000},
    "sample-batch 3": {"train__sample_batch": 3},  # a process samples fewer rows at once than one alone does
    "checkpointing": CHECKPOINTING,
}
AFTER = 2
"""Iterations before a run is continued on another number of processes."""


QUICK = ("1, micro-batch 1", "1, sample-batch 3", "2, checkpointing", "3", "4, micro-batch 1", "2, resumed on 3")


def measured(team: Processes, name: str, iterations: int, quick: bool) -> Iterator[tuple[str, list[Trained], Trained]]:
    """``(what was changed, all processes, one process)``."""
    preset, world = name.split("@")

    def config(changes: Mapping[str, Any]) -> dict[str, Any]:
        return config_of(preset, world, train__iterations=iterations, **changes)

    work = Work(iterations)
    one = team.train(1, config({}), work)[0]
    jobs: dict[str, tuple[int, dict[str, Any]]] = {f"1, {what}": (1, changes) for what, changes in OTHERS.items()}
    for size, what in ((2, "micro-batch 3"), (2, "checkpointing"), (3, "micro-batch all"), (4, "micro-batch 1")):
        jobs |= {f"{size}": (size, {}), f"{size}, {what}": (size, OTHERS[what])}
    for what, (size, changes) in jobs.items():
        if not quick or what in QUICK:
            yield what, team.train(size, config(changes), work), one
    for before, after in ((2, 3), (3, 1), (1, 4)):
        what = f"{before}, resumed on {after}"
        if not quick or what in QUICK:
            begun = team.train(before, config({}), Work(AFTER))[0]
            yield what, team.train(after, config({}), Work(iterations, start=begun.state)), one


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("presets", nargs="*", default=PRESETS)
    parser.add_argument("--iterations", type=int, default=5)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    print("| preset | processes | first gradient | worst gradient | weights at the end | processes agree |")
    print("|---|---|---|---|---|---|")
    with Processes(4) as team:
        for name in options.presets:
            for what, every, one in measured(team, name, options.iterations, options.quick):
                first, worst, weights = drift(every[0], one)
                alike = all(bool((each.weights[-1] == every[0].weights[-1]).all()) for each in every)
                numbers = f"{first:.1e} | {worst:.1e} | {weights:.1e} | {'bit for bit' if alike else 'NO'}"
                print(f"| {name} | {what} | {numbers} |", flush=True)


if __name__ == "__main__":
    main()
