"""What an environment pays."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import torch
from torch import Tensor

RANGE = "as the environment has it"
NEEDS = ("episodes in an environment (family control)",)


def episode_success(prompts: Sequence[str], completions: Sequence[str]) -> Tensor:
    """[N] float64: 1 where an episode was a success, 0 where it was none, NaN where the environment does not tell; as
    the line says that tells of the episode (`flowrl.models.control.outcome.describe_episode`)."""
    said = {"success": 1.0, "no success": 0.0}
    return torch.tensor([said.get(text.partition(",")[0], math.nan) for text in completions], dtype=torch.float64)


def episode_decisions(prompts: Sequence[str], completions: Sequence[str]) -> Tensor:
    """[N] float64: how many decisions an episode took; NaN of a text that tells of none."""
    found = [re.search(r"after (\d+) decisions", text) for text in completions]
    return torch.tensor([math.nan if each is None else float(each[1]) for each in found], dtype=torch.float64)


def episode_return(prompts: Sequence[str], feedback: Sequence[Sequence[float]]) -> Tensor:
    """[N] float64: the sum of the rewards of an episode's decisions, undiscounted; NaN where its environment failed,
    so that ``on_nan`` says what becomes of it."""
    paid = torch.tensor(feedback, dtype=torch.float64).reshape(len(prompts), -1)
    return torch.where(paid.isnan().all(dim=1), torch.nan, paid.nansum(dim=1))
