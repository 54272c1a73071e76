"""Does a flow keep both of two equally good ways, where a Gaussian keeps one? FPO's claim (arXiv:2507.21053, its grid
world), on the world two_walls: FPO beside PPO of a Gaussian, both from N(0, 1).

    OMP_NUM_THREADS=1 python benchmarks/control_modes.py --seeds 0 1 2 --set optimizer.lr=1e-3

For each it prints the environment steps until all episodes of an iteration reach a goal, and after training, from
eleven cells between the goals with the noise that the policy acts with, the share of episodes that end at the top.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import torch

from flowrl.config import Config
from flowrl.math.random import seeds
from flowrl.runtime.timing import PhaseTimer
from flowrl.session import Session, open_session
from flowrl.startup.preflight import check_run
from flowrl.train import iterate
from flowrl.types import Draw
from flowrl.worlds.two_walls.grid import SADDLE

FILE = Path(__file__).parent / "two_walls.yaml"
GAUSSIAN = ("algorithm={use: ppo_gaussian, environment: two_walls, decisions: 100}",)
METHODS = {"fpo": (), "ppo_gaussian": GAUSSIAN}
RUNS = 256
LEAST = 0.1
"""A cell has kept a goal that at least so many of its episodes reach."""


def tops(session: Session) -> tuple[torch.Tensor, torch.Tensor]:
    """[11] share of episodes that end at the top, of those from each cell that end at a goal; and decisions of all."""
    assert session.heldout is not None
    prompts = [prompt for prompt in session.heldout.prompts for _ in range(RUNS)]
    group = torch.arange(len(SADDLE)).repeat_interleave(RUNS)
    draw = Draw.of(seeds(20_000, "modes", count=len(prompts)), group, 0, 0, prompts)
    with session.policy.using("live") as policy:
        final = session.algorithm.sampler(policy, policy.condition(prompts), draw).final.view(len(SADDLE), RUNS, -1)
    mode = final[..., 4]
    return (mode == 1).sum(dim=1) / (mode >= 0).sum(dim=1), final[..., 1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--iterations", nargs="*", type=int, default=[30, 60], help="after which it looks")
    parser.add_argument("--methods", nargs="*", choices=tuple(METHODS), default=list(METHODS))
    parser.add_argument("--set", nargs="*", default=[], help="changes of two_walls.yaml, such as optimizer.lr=1e-3")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for method in given.methods:
        for seed in given.seeds:
            session = open_session(check_run(Config.load(FILE, [*METHODS[method], *given.set, f"train.seed={seed}"])))
            begun, steps, solved = time.process_time(), 0.0, float("nan")
            for iteration in range(1, max(given.iterations) + 1):
                metrics = {name: float(value) for name, value in iterate(session, PhaseTimer())[0].items()}
                steps += metrics["episode/decisions"] * session.config.data.group
                solved = steps if math.isnan(solved) and metrics["episode/success"] == 1 else solved
                if iteration not in given.iterations:
                    continue
                taken = time.process_time() - begun
                share, decisions = tops(session)
                both = int(((share > LEAST) & (share < 1 - LEAST)).sum())
                print(
                    f"{method}, seed {seed}, {steps:.0f} steps (all arrive after {solved:.0f}), {taken:.0f} CPU s: "
                    f"top {float(share.min()):.2f} to {float(share.max()):.2f}, both goals from {both} of "
                    f"{len(SADDLE)} cells; {float(decisions.mean()):.1f} decisions, {int(decisions.max())} at most",
                    flush=True,
                )


if __name__ == "__main__":
    main()
