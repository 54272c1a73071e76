"""Start-up checks of a reward model on random tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from flowrl.errors import UserError
from flowrl.models.deviation import TOLERANCE, deviation
from flowrl.models.reward.policy import RewardPolicy
from flowrl.models.text.parity import random_completions

LENGTHS = (5, 9, 12)
"""Tokens of the conversations."""


def probe(policy: RewardPolicy) -> tuple[Tensor, Tensor]:
    """``(tokens, mask)`` of conversations of unequal length and ordinary tokens."""
    lengths = torch.tensor(LENGTHS)
    return random_completions(policy, len(LENGTHS), max(LENGTHS)), torch.arange(max(LENGTHS)) < lengths[:, None]


@torch.no_grad()
def single_rows(policy: RewardPolicy) -> Tensor:
    """[N] ratings of the probe, every row by itself."""
    tokens, mask = probe(policy)
    rows = torch.arange(len(tokens)).split(1)
    return torch.cat([policy.rate(None, tokens[row], mask[row]) for row in rows])


@torch.no_grad()
def check(policy: RewardPolicy) -> float:
    """Largest deviation of ratings in a batch from those of single rows. Raises `UserError` where that is more than
    rounding."""
    worst = deviation(policy.rate(None, *probe(policy)), single_rows(policy))
    if not worst <= TOLERANCE[policy.dtype]:
        raise UserError(
            f"ratings of {policy.network.name} in a batch deviate by {worst:.2g} from those of single rows; unsupported"
        )
    return worst
