"""The rewards of a run's config on its test prompts: the training objective, measured where nothing was trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from flowrl.data import load_prompts
from flowrl.errors import UserError
from flowrl.evaluation.suites import Verdicts, tag_of
from flowrl.evaluation.target import Target
from flowrl.score import Rewards, load_rewards
from flowrl.types import Prompt, Samples

TOTAL = "total"


@dataclass(frozen=True)
class RewardSuite:
    """Every reward in raw units, and their weighted total where there are several."""

    prompts: Sequence[Prompt]
    source: str
    scorer: Rewards
    tags: Sequence[str]
    size: int
    primary: str
    name: str = "rewards"
    title: str = "rewards"
    version: str = "1"

    def judge(self, samples: Samples) -> Verdicts:
        """NaN where a reward could not score an image."""
        group = torch.tensor([prompt.id for prompt in samples.prompts])
        scores = self.scorer(samples, group)
        measures = {name: scores.rewards[:, index] for index, name in enumerate(scores.names)}
        headline = scores.total if self.primary == TOTAL else measures.pop(self.primary)
        measures = {self.primary: headline, **measures}
        nothing = [() for _ in samples.prompts]
        # What could not be scored is counted as such, whatever the run's own policy was.
        return Verdicts(measures, nothing, [{} for _ in nothing])

    def close(self) -> None:
        self.scorer.close()


def build(target: Target) -> RewardSuite:
    """Raises UserError for a target without a config, or a config without test prompts."""
    if target.config is None:
        raise UserError(f"suite rewards takes its rewards from a run's config, and {target.text!r} is not a run")
    source = target.config.data.test
    if not source:
        raise UserError(f"suite rewards needs data.test in the config of {target.text!r}; it names no test prompts")
    prompts = load_prompts(source).prompts
    tags = list(dict.fromkeys(map(tag_of, prompts)))
    scorer = load_rewards(target.config.rewards, on_nan="drop_sample")
    weighted = [name for name, weight in zip(scorer.names, scorer.weights, strict=True) if weight != 0]
    primary = weighted[0] if len(weighted) == 1 else TOTAL
    return RewardSuite(prompts, source, scorer, tags, len(prompts), primary)
