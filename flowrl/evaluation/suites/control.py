"""Episodes in an environment: success with its interval, and how many decisions they took."""

from __future__ import annotations

from pathlib import Path

from flowrl.config import RewardConfig
from flowrl.data import load_prompts
from flowrl.evaluation.reward_suite import RewardSuite, reward_suite
from flowrl.evaluation.suite import Options, SuiteEntry
from flowrl.evaluation.target import Target


def build(target: Target, _data: Path | None, _options: Options) -> RewardSuite:
    """The test prompts of a run, or of the world avoid: ways that were never rewarded. Ask for some forty samples of
    each of its six (``--samples 43``): below 256 episodes the interval is wider than what methods differ by."""
    config = target.config
    source = config.data.test if config is not None and config.data.test else "avoid:test"
    rewards = [RewardConfig(use="episode_success", name="success"), RewardConfig(use="episode_decisions", weight=0.0)]
    return reward_suite("control", load_prompts(source).prompts, source, rewards, primary="success")


SUITES = {"control": SuiteEntry(build, ("completions",))}
