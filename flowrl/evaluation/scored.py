"""Suites that are prompts and rewards: what a reward gives is the measure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from flowrl.config import RewardConfig
from flowrl.data import load_prompts
from flowrl.evaluation.suites import Verdicts, tag_of
from flowrl.score import Rewards, load_rewards
from flowrl.types import Prompt, Samples

TOTAL = "total"


@dataclass(frozen=True)
class ScoredSuite:
    """Every reward in raw units, and their weighted total where ``primary`` asks for it."""

    name: str
    prompts: Sequence[Prompt]
    source: str
    scorer: Rewards
    tags: Sequence[str]
    size: int
    primary: str
    title: str
    version: str

    def judge(self, samples: Samples) -> Verdicts:
        """NaN where a reward could not score a sample."""
        group = torch.tensor([prompt.id for prompt in samples.prompts])
        scores = self.scorer.evaluate(samples, group)
        measures = {name: scores.rewards[:, index] for index, name in enumerate(scores.names)}
        headline = scores.total if self.primary == TOTAL else measures.pop(self.primary)
        measures = {self.primary: headline, **measures}
        nothing = [() for _ in samples.prompts]
        return Verdicts(measures, nothing, [{} for _ in nothing])

    def close(self) -> None:
        self.scorer.close()


def scored(
    name: str,
    prompts: Sequence[Prompt],
    source: str,
    rewards: Sequence[RewardConfig],
    *,
    size: int | None = None,
    primary: str | None = None,
) -> ScoredSuite:
    """A suite of these rewards; ``primary`` is by default the only weighted one, or the total of several."""
    tags = list(dict.fromkeys(map(tag_of, prompts)))
    scorer = load_rewards(rewards)
    weighted = [name for name, weight in zip(scorer.names, scorer.weights, strict=True) if weight != 0]
    headline = primary or (weighted[0] if len(weighted) == 1 else TOTAL)
    version = ":".join(["1", *(f"{name}={told}" for name, told in scorer.versions.items())])
    return ScoredSuite(name, prompts, source, scorer, tags, size or len(prompts), headline, name, version)


def of_world(world: str, continuous: str) -> ScoredSuite:
    """A text world's test prompts, judged by its reward: ``correct`` by its strict mode, ``score`` by another."""
    source = f"{world}:test"
    modes = {"correct": "strict", "score": continuous}
    rewards = [RewardConfig(use=world, name=name, options={"mode": mode}) for name, mode in modes.items()]
    return scored(world, load_prompts(source).prompts, source, rewards, primary="correct")
