"""The rewards of a run's config on its test prompts: the training objective, measured where nothing was trained."""

from __future__ import annotations

from pathlib import Path

from flowrl.data import PromptFormat, load_prompts, with_pictures
from flowrl.errors import UserError
from flowrl.evaluation.reward_suite import RewardSuite, reward_suite
from flowrl.evaluation.suite import Options, SuiteEntry
from flowrl.evaluation.target import Target


def build(target: Target, _data: Path | None, _options: Options) -> RewardSuite:
    """Raises UserError for a target without a config, or a config without test prompts."""
    if target.config is None:
        raise UserError(f"suite rewards takes its rewards from a run's config, and {target.text!r} is not a run")
    source = target.config.data.test
    if not source:
        raise UserError(f"suite rewards needs data.test in the config of {target.text!r}; it names no test prompts")
    found = load_prompts(source, PromptFormat(target.config.data.columns, target.config.data.template))
    prompts = with_pictures(found, target.config.model.inputs.values(), f"prompts {source}").prompts
    return reward_suite("rewards", prompts, source, target.config.rewards)


SUITES = {"rewards": SuiteEntry(build, ("images", "completions"))}
