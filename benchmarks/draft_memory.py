"""What a replay of K steps with a gradient holds and takes, with and without checkpoints, on the shapes world's base.

``python -m benchmarks.draft_memory`` prints a table for benchmarks/README.md: the bytes that autograd saves of one
micro-batch between forward and backward, decoder and reward included, and the seconds of an iteration's parts.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from flowrl import composition, load_policy
from flowrl.data import load_prompts
from flowrl.math.random import seeds
from flowrl.models.lora import LoRAOptions
from flowrl.score import load_rewards
from flowrl.score.gradients import judge
from flowrl.types import Batch, Draw, Likelihood, Samples

SAMPLES, STEPS, REPEATS = 8, 10, 3
CASES = [(1, False), (1, True), (5, False), (5, True), (STEPS, False), (STEPS, True)]


class Saved:
    """Bytes of the storages that autograd keeps, each counted once, but for weights."""

    def __init__(self, weights: set[int]) -> None:
        self._known, self.total = set(weights), 0

    def pack(self, tensor: Tensor) -> Tensor:
        """Count a tensor that a backward will need."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._known:
            self._known.add(storage.data_ptr())
            self.total += storage.nbytes()
        return tensor


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    policy: Any = load_policy("shapes", lora=LoRAOptions(rank=16, alpha=32), call={"guidance_scale": 1.0})
    rewards, prompts = load_rewards(["shapes_soft"]), load_prompts("shapes:test").prompts[:SAMPLES]
    every = [part for part in policy.pipeline.components.values() if isinstance(part, torch.nn.Module)]
    weights = {p.untyped_storage().data_ptr() for part in every for p in (*part.parameters(), *part.buffers())}
    print("| K | checkpoints | saved, MB | sampling, s | forward, s | backward, s |\n|---|---|---|---|---|---|")
    for last, checkpoint in CASES:
        spec = {"use": "draft", "last": last, "steps": STEPS, "checkpoint": checkpoint, "guidance": 1.0}
        algorithm = composition.build(spec)
        found = min((measure(policy, algorithm, rewards, prompts, weights) for _ in range(REPEATS)), key=sum)
        saved, sampling, forward, backward = found
        numbers = f"{saved / 1e6:.1f} | {sampling:.2f} | {forward:.2f} | {backward:.2f}"
        print(f"| {last} of {STEPS} | {'yes' if checkpoint else 'no'} | {numbers} |", flush=True)


def measure(
    policy: Any, algorithm: Any, rewards: Any, prompts: Any, weights: set[int]
) -> tuple[float, float, float, float]:
    """Bytes saved, and seconds of sampling, of the replay with decoder and reward, and of its backward."""
    group = torch.arange(SAMPLES)
    draw = Draw.of(seeds(0, "draft", count=SAMPLES), group, 0, 0, prompts)
    condition = policy.condition(prompts)
    start = time.process_time()
    rollout = algorithm.sampler(policy, condition, draw)
    sampling = time.process_time() - start
    scores = rewards(Samples(prompts, policy.decode(rollout.final)), group)
    told = judge(rewards, scores, prompts, group, partial(policy.decode, graph=True))
    rows = algorithm.estimator.probe(replace(rollout, judge=told), policy, rollout.seeds)
    kept = Saved(weights)
    start = time.process_time()
    with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda tensor: tensor):
        live: Likelihood = algorithm.estimator(policy, rows, condition)
    forward = time.process_time() - start
    even = torch.full(live.logp.shape, 1 / live.logp.numel())
    batch = Batch(even, live, even, group, rows)
    start = time.process_time()
    (algorithm.objective(live, batch) * even).sum().backward()
    backward = time.process_time() - start
    for parameter in policy.parameters():
        parameter.grad = None
    return float(kept.total), sampling, forward, backward


if __name__ == "__main__":
    main()
