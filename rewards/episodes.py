"""What an environment pays."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

RANGE = "as the environment has it"
NEEDS = ("episodes in an environment (family control)",)


def episode_return(prompts: Sequence[str], feedback: Sequence[Sequence[float]]) -> Tensor:
    """[N] float64: the sum of the rewards of an episode's decisions, undiscounted; NaN where its environment failed,
    so that ``on_nan`` says what becomes of it."""
    paid = torch.tensor(feedback, dtype=torch.float64).reshape(len(prompts), -1)
    return torch.where(paid.isnan().all(dim=1), torch.nan, paid.nansum(dim=1))
