"""Rewards of what samples would have become after each of their steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from flowrl.score.rewards import Rewards
from flowrl.types import Prompt, Rollout, Samples


def score_previews(
    rewards: Rewards,
    decode: Callable[[Tensor], Tensor | list[str]],
    rollout: Rollout,
    prompts: Sequence[Prompt],
    rows: int,
    asked: bool = True,
) -> tuple[Rollout, Tensor | None]:
    """``(the rollout without its previews, what all rewards return of them [N, E, R] float64, before any policy)``; as
    it is, and None, where it has none.

    They are decoded ``rows`` at a time and let go, step by step, so that a reward that compares samples sees a group at
    one step; not ``asked``, no reward sees them.
    """
    trace = rollout.trace
    if trace is None or trace.previews is None:
        return rollout, None
    found = []
    for step in range(trace.previews.shape[1]):
        with rewards.scoring(rollout.group, asked=asked) as scoring:
            for index in torch.arange(len(rollout.group)).split(rows):
                decoded = decode(trace.previews[index, step])
                pictures = isinstance(decoded, Tensor)
                some = [prompts[row] for row in index.tolist()]
                scoring.add(Samples(some, images=decoded) if pictures else Samples(some, completions=decoded))
            found.append(scoring.wait())
    return replace(rollout, trace=replace(trace, previews=None)), torch.stack(found, dim=1)
