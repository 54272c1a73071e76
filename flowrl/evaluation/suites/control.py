"""Episodes in an environment: success with its interval, what they paid, how long they took, and in how many ways."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flowrl.config import RewardConfig
from flowrl.data import load_prompts
from flowrl.evaluation.reward_suite import RewardSuite, reward_suite
from flowrl.evaluation.statistics import Floats
from flowrl.evaluation.suite import Options, SuiteEntry, SuiteScores
from flowrl.evaluation.table import SIZES
from flowrl.evaluation.target import Target
from flowrl.types import Samples

MODE, MODE_ENTROPY = "mode", "mode_entropy"
EPISODES = 256


@dataclass(frozen=True)
class EpisodeSuite(RewardSuite):
    """Measures of the lines that tell of episodes. ``mode_entropy`` is the entropy in nats of the ways that successful
    episodes took (all, where the environment tells no success), as D3IL's behaviour entropy (arXiv:2402.14606); a
    number of the whole set, without an interval."""

    def score(self, samples: Samples) -> SuiteScores:
        """NaN where a line does not tell."""
        found, texts = super().score(samples), samples.completions or ()
        more = {"episode_return": _numbers(r"return ([^,\s]+)", texts), MODE: _numbers(r"mode (\d+)", texts)}
        return replace(found, measures={**found.measures, **more})

    def conclude(self, measures: Mapping[str, Floats]) -> Mapping[str, Floats]:
        """``mode_entropy``, at the first sample, in place of the numbers of ways and the lengths of the lines."""
        mode, success = measures[MODE], measures[self.primary]
        taken = ~np.isnan(mode) & (np.isnan(success) | (success > 0))
        shares = np.unique(mode[taken], return_counts=True)[1] / max(taken.sum(), 1)
        entropy = np.full(mode.shape, np.nan)
        if taken.any():
            entropy[0, 0] = -(shares * np.log(shares)).sum()
        kept = {name: values for name, values in measures.items() if name not in (MODE, *SIZES)}
        return {**kept, MODE_ENTROPY: entropy}


def _numbers(pattern: str, texts: Sequence[str]) -> Tensor:
    found = [re.search(pattern, text) for text in texts]
    return torch.tensor([float("nan") if each is None else float(each[1]) for each in found], dtype=torch.float64)


def build(target: Target, _data: Path | None, _options: Options) -> RewardSuite:
    """The test prompts of a run, or of a model's world: in `avoid`, ways that were never rewarded."""
    config = target.config
    source = config.data.test if config is not None and config.data.test else f"{target.world or 'avoid'}:test"
    rewards = [RewardConfig(use="episode_success", name="success"), RewardConfig(use="episode_decisions", weight=0.0)]
    made = reward_suite("control", load_prompts(source).prompts, source, rewards, primary="success")
    return EpisodeSuite(**{field.name: getattr(made, field.name) for field in fields(made)})


SUITES = {
    "control": SuiteEntry(build, ("completions",), least=EPISODES, independent=True, beside={"z=0": 0.0}),
}
