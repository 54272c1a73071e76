"""The text worlds' test tasks: ``correct`` is their verifier's strict verdict, ``score`` a continuous mode of their
reward."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from flowrl.config import RewardConfig
from flowrl.data import load_prompts
from flowrl.evaluation.reward_suite import RewardSuite, reward_suite
from flowrl.evaluation.suite import Options, SuiteEntry
from flowrl.evaluation.target import Target

CONTINUOUS = {
    "countdown": "mixed",  # a tenth for an expression of exactly the given numbers with another value; tags: how many
    "sudoku": "continuous",  # the share of right empty cells; tags: how many are empty
}
"""Mode of the world's reward that gives ``score``."""


def build(world: str, _target: Target, _data: Path | None, _options: Options) -> RewardSuite:
    """The world's test prompts, scored by its reward."""
    source = f"{world}:test"
    modes = {"correct": "strict", "score": CONTINUOUS[world]}
    rewards = [RewardConfig(use=world, name=name, options={"mode": mode}) for name, mode in modes.items()]
    return reward_suite(world, load_prompts(source).prompts, source, rewards, primary="correct")


SUITES = {world: SuiteEntry(partial(build, world), ("completions",)) for world in CONTINUOUS}
