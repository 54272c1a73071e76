"""Suites that are prompts and rewards: what a reward gives is the measure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from flowrl.config import RewardConfig
from flowrl.evaluation.suite import SuiteScores, prompt_tags
from flowrl.score import Rewards, load_rewards
from flowrl.types import Prompt, Samples

TOTAL = "total"


@dataclass(frozen=True)
class RewardSuite:
    """Every reward in raw units, and their weighted total where ``primary`` asks for it."""

    name: str
    prompts: Sequence[Prompt]
    source: str
    rewards: Rewards
    tags: Sequence[str]
    size: int
    primary: str
    title: str
    version: str

    def score(self, samples: Samples) -> SuiteScores:
        """NaN where a reward could not score a sample."""
        group = torch.tensor([prompt.id for prompt in samples.prompts])
        scores = self.rewards.evaluate(samples, group)
        measures = {name: scores.rewards[:, index] for index, name in enumerate(scores.names)}
        headline = scores.total if self.primary == TOTAL else measures.pop(self.primary)
        return SuiteScores.of({self.primary: headline, **measures}, len(samples))

    def close(self) -> None:
        """Close the rewards."""
        self.rewards.close()


def reward_suite(
    name: str,
    prompts: Sequence[Prompt],
    source: str,
    rewards: Sequence[RewardConfig],
    *,
    size: int | None = None,
    primary: str | None = None,
) -> RewardSuite:
    """A suite of these rewards; ``primary`` is by default the only weighted one, or the total of several."""
    loaded = load_rewards(rewards)
    weighted = [name for name, weight in zip(loaded.names, loaded.weights, strict=True) if weight != 0]
    headline = primary or (weighted[0] if len(weighted) == 1 else TOTAL)
    version = ":".join(["1", *(f"{name}={each}" for name, each in loaded.versions.items())])
    tags = prompt_tags(prompts)
    return RewardSuite(name, prompts, source, loaded, tags, size or len(prompts), headline, name, version)
