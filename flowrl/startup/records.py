"""Runs on samples of a data set: what their configs leave out, and what has to fit."""

from __future__ import annotations

from typing import Any

from flowrl.config import Config
from flowrl.data import PromptSet
from flowrl.errors import UserError
from flowrl.models.text.overlong_prompts import Overlong
from flowrl.models.text.policy import TextPolicy
from flowrl.parts.algorithm import Algorithm

FEEDBACK = "feedback"
"""The reward of a config that names none."""


def records_of(algorithm: Algorithm) -> Any:
    """The algorithm's sampler where it reads samples of the prompts' columns, else ``None``."""
    return algorithm.sampler if hasattr(algorithm.sampler, "prepared") else None


def are_unscored(config: Config) -> bool:
    """Whether no reward scores samples: what is said of them is in the data set."""
    return [reward.use for reward in config.rewards] == [FEEDBACK]


def reads_tests(algorithm: Algorithm) -> bool:
    """Whether evaluations read their samples from the held-out prompts."""
    return getattr(records_of(algorithm), "test", "sampled") == "recorded"


def fit_records(config: Config, algorithm: Algorithm) -> Config:
    """The config with ``data.group`` as the sampler of records has it, and without evaluation where no reward can score
    what the policy makes. Raises `UserError` for another group, for an evaluation that nobody could score, and for a
    config without rewards whose samples nobody says anything of."""
    sampler = records_of(algorithm)
    unscored = are_unscored(config) and not reads_tests(algorithm)
    group = getattr(sampler, "group", None)
    if group is None:  # the policy makes samples, all or some
        if "rewards" not in config.model_fields_set:
            raise UserError("rewards: missing; name at least one (only algorithms on samples of a data set need none)")
        return config
    data, evaluation = config.data, config.eval
    if data.group != group:
        if "group" in data.model_fields_set:
            raise UserError(
                f"data.group={data.group}: the data set has {group} sample{'s' * (group > 1)} of a prompt"
                f" (algorithm.sampler.columns); set data.group={group}, or leave it out"
            )
        data = data.model_copy(update={"group": group})
    if unscored and evaluation.every:
        if "every" in evaluation.model_fields_set:
            raise UserError(
                f"eval.every={evaluation.every} evaluates what the policy makes, and no reward scores it; add one to"
                " rewards, or set eval.every=0"
            )
        evaluation = evaluation.model_copy(update={"every": 0})
    if unscored and "test" not in data.model_fields_set:
        data = data.model_copy(update={"test": None})
    return config.model_copy(update={"data": data, "eval": evaluation})


def prepared_records(algorithm: Algorithm, train: PromptSet, where: str) -> PromptSet:
    """The prompts with their samples, checked by the sampler that reads them. Raises `UserError`."""
    sampler = records_of(algorithm)
    return train if sampler is None else PromptSet(tuple(sampler.prepared(train.prompts, where)))


def fit_completions(
    algorithm: Algorithm, policy: TextPolicy, prompts: PromptSet, overlong: Overlong, name: str = "train"
) -> tuple[PromptSet, list[str]]:
    """The prompts whose recorded completions fit into the sampler's length, as ``data.overlong`` says (``truncate``
    lets the sampler cut them), and what was done to the others. One that fills it has no end token, as a sampled one of
    that length has none. Raises `UserError`."""
    sampler = records_of(algorithm)
    if sampler is None or overlong == "truncate" or (name == "test" and not reads_tests(algorithm)):
        return prompts, []
    each = [sampler.texts(prompt) for prompt in prompts.prompts]
    asked = [prompt for prompt, texts in zip(prompts.prompts, each, strict=True) for _ in texts]
    lengths = iter(policy.lengths(asked, [text for texts in each for text in texts]))
    longest = [max((next(lengths) for _ in texts), default=0) for texts in each]
    fitting = [p for p, length in zip(prompts.prompts, longest, strict=True) if length <= sampler.length]
    long = len(prompts) - len(fitting)
    if not long:
        return prompts, []
    of = "conversation" if policy.family == "reward" else "completion"
    what = f"{long} of {len(prompts)} prompts have a {of} of more than {sampler.length} tokens"
    if overlong == "error" or not fitting:
        fix = "raise the preset's length, or set data.overlong: drop or truncate"
        raise UserError(f"data.{name}: {what}, the longest of {max(longest)}; {fix}")
    return PromptSet(tuple(fitting)), [f"data.{name}: {what} and were left out"]
