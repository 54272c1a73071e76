"""From 10 poor demonstrations to balance: InvertedPendulum-v5 (mujoco), a flow cloned from a weak noisy PD controller,
tuned by DPPO beside PPO of its Gaussian and FPO.

    OMP_NUM_THREADS=1 python benchmarks/inverted_pendulum.py --seeds 0 1 2 3 4

For each it prints the mean return of 16 episodes of the deployed policy (fixed seeds, at most 1000) after so many
environment steps of training, and the CPU seconds of training alone.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor

from flowrl.config import Config
from flowrl.math.random import seeds
from flowrl.models.control.cloning import chunks_of, clone
from flowrl.models.control.load import save_control
from flowrl.models.control.policy import ControlConfig
from flowrl.runtime.timing import PhaseTimer
from flowrl.session import Session, open_session
from flowrl.startup.preflight import check_run
from flowrl.train import iterate
from flowrl.types import Draw, Prompt

FILE = Path(__file__).with_suffix(".yaml")
LIMIT = 1000
EPISODES = 16
LOOKS = (0, 12_000, 24_000, 36_000, 48_000, 60_000)
PLACE = 'environment: "gym:InvertedPendulum-v5", decisions: 250'
METHODS = {
    "dppo": (),
    "ppo_gaussian": (f"algorithm={{use: ppo_gaussian, {PLACE}}}",),
    "fpo": (f"algorithm={{use: fpo, family: control, draws: 8, gamma: 0.99, {PLACE}}}", "optimizer.lr=3e-4"),
}
"""Changes of the config."""


def demonstrations(count: int = 10) -> tuple[Tensor, Tensor, Tensor]:
    """Observations [T, 4], forces [T, 1] in -3 to 3 and lengths [count] of episodes of ``8 angle + speed + 1.9 z``."""
    environment, numbers = gymnasium.make("InvertedPendulum-v5"), np.random.default_rng(0)
    observed, action, length = [], [], []
    for episode in range(count):
        seen, ended, made = environment.reset(seed=episode)[0], False, 0
        while not ended:
            force = np.clip([8 * seen[1] + seen[3] + 1.9 * numbers.normal()], -3, 3).astype(np.float32)
            observed.append(seen)
            action.append(force)
            seen, _, terminated, truncated, _ = environment.step(force)
            ended, made = terminated or truncated, made + 1
        length.append(made)
    return torch.from_numpy(np.stack(observed)).float(), torch.from_numpy(np.stack(action)), torch.tensor(length)


def write_base(folder: Path) -> str:
    """Clone the demonstrations into a folder, and say what they were."""
    observed, action, length = demonstrations()
    config = ControlConfig(observation=4, action=1, width=64, depth=3, steps=5)
    network, loss = clone(config, observed, chunks_of(action, length, 1), steps=1500)
    save_control(config, network, folder)
    mean = float(length.float().mean())
    return f"{len(length)} episodes, {len(observed)} pairs, return {mean:.1f}, last loss {loss:.3f}"


def deployed(session: Session) -> float:
    """Mean return of the deployed policy."""
    mine: Any = session.algorithm.sampler
    sampler = replace(mine.heldout(None, None, None), decisions=LIMIT)
    prompts = [Prompt("", 0)] * EPISODES
    draw = Draw.of(seeds(20_000, "deployed", count=EPISODES), torch.zeros(EPISODES, dtype=torch.long), 0, 0, prompts)
    return float(sampler(session.policy, session.policy.condition(prompts), draw).final[:, 0].mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--methods", nargs="*", choices=tuple(METHODS), default=list(METHODS))
    parser.add_argument("--looks", nargs="*", type=int, default=LOOKS, help="environment steps after which it looks")
    parser.add_argument("--set", nargs="*", default=[], help="changes of the config, such as optimizer.lr=1e-3")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder, "base")
        print(write_base(base), flush=True)
        for method in given.methods:
            for seed in given.seeds:
                changes = [*METHODS[method], f"model.path={base}", f"out={folder}", f"train.seed={seed}", *given.set]
                session, steps, taken, told = open_session(check_run(Config.load(FILE, changes))), 0.0, 0.0, []
                for look in given.looks:
                    begun = time.process_time()
                    while steps < look:
                        metrics = iterate(session, PhaseTimer())[0]
                        steps += float(metrics["episode/decisions"]) * session.config.data.group
                    taken += time.process_time() - begun
                    told.append(f"{deployed(session):.0f} at {steps / 1000:.0f}k")
                print(f"{method}, seed {seed}: {', '.join(told)}; {taken:.0f} CPU s", flush=True)


if __name__ == "__main__":
    main()
