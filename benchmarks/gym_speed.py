"""What stepping rows of gymnasium costs beside gymnasium itself: CPU microseconds per step of one environment.

    OMP_NUM_THREADS=1 python benchmarks/gym_speed.py CartPole-v1 InvertedPendulum-v5 --rows 16

*raw* steps the objects in a loop; *vector* is gymnasium's SyncVectorEnv that resets nothing; *checked* what flowrl
makes of the objects, with its checks; *episodes* whole sampling by an untrained policy, network and records included.
Rounds alternate between them, and medians are reported.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import torch

from flowrl.environments import open_environment
from flowrl.math.random import seeds
from flowrl.models.control.load import load_control
from flowrl.samplers.categorical import CategoricalSampler
from flowrl.samplers.episodes import EpisodeSampler
from flowrl.samplers.gaussian import GaussianSampler
from flowrl.types import Draw, Prompt


def raw(name: str, rows: int) -> Callable[[], int]:
    objects = [gymnasium.make(name) for _ in range(rows)]
    actions = [each.action_space.sample() for each in objects]

    def work() -> int:
        steps, going = 0, list(zip(objects, actions, strict=True))
        for each, _ in going:
            each.reset(seed=0)
        while going:
            steps += len(going)
            answers = [each.step(action) for each, action in going]
            going = [pair for pair, (_, _, ended, cut, _) in zip(going, answers, strict=True) if not (ended or cut)]
        return steps

    return work


def vector(name: str, rows: int) -> Callable[[], int]:
    mode = gymnasium.vector.AutoresetMode.DISABLED
    together = gymnasium.vector.SyncVectorEnv([lambda: gymnasium.make(name)] * rows, autoreset_mode=mode)
    actions = np.stack([together.single_action_space.sample()] * rows)

    def work() -> int:
        steps = 0
        together.reset(seed=0)
        while True:
            _, _, ended, cut, _ = together.step(actions)
            steps += rows
            if (ended | cut).any():
                return steps

    return work


def checked(name: str, rows: int) -> Callable[[], int]:
    environment = open_environment(f"gym:{name}", rows)
    actions = torch.randn(rows, environment.action_size)
    prompts = [Prompt("", 0)] * rows

    def work() -> int:
        steps, going = 0, torch.arange(rows)
        environment.reset(torch.zeros(rows, dtype=torch.long), prompts)
        while len(going):
            steps += len(going)
            found = environment.step(actions[going], going)
            going = going[~(found.terminated | found.truncated)]
        return steps

    return work


def episodes(name: str, rows: int) -> Callable[[], int]:
    policy = load_control(f"new:gym:{name}")
    inner: Any = CategoricalSampler() if policy.config.kind == "categorical" else GaussianSampler()
    sampler = EpisodeSampler(sampler=inner, environment=f"gym:{name}", decisions=1000)
    prompts = [Prompt("", 0)] * rows
    draw = Draw.of(seeds(0, "speed", count=rows), torch.zeros(rows, dtype=torch.long), 0, 0, prompts)
    return lambda: int(sampler(policy, policy.condition(prompts), draw).final[:, 1].sum())


def cost_of(work: Callable[[], int]) -> float:
    """CPU seconds of one step of one environment."""
    begun = time.process_time()
    steps = work()
    return (time.process_time() - begun) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    torch.set_num_threads(1)
    for name in given.names:
        kinds = {make.__name__: make(name, given.rows) for make in (raw, vector, checked, episodes)}
        taken: dict[str, list[float]] = {kind: [] for kind in kinds}
        for _ in range(given.rounds + 1):
            for kind, work in kinds.items():
                taken[kind].append(cost_of(work))
        cost = {kind: statistics.median(times[1:]) for kind, times in taken.items()}
        told = ", ".join(f"{kind} {1e6 * each:.1f} us ({each / cost['raw']:.2f})" for kind, each in cost.items())
        print(f"{name}, {given.rows} rows: {told}", flush=True)


if __name__ == "__main__":
    main()
