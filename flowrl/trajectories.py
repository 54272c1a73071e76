"""Pictures of episodes, for people: their paths over the world's picture, where the environment can draw it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from flowrl.environments import Draw, Episode, find_drawing
from flowrl.errors import describe_exception
from flowrl.records.directory import spaced
from flowrl.types import Episodes, Prompt, Rollout, Sampler, Share

MOST = 256
"""Episodes in the picture of all, at most; of more, evenly spaced ones."""


@dataclass(frozen=True)
class Trajectories:
    """Pictures [3, H, W] uint8."""

    each: Tensor
    """[k, 3, H, W], one episode in each."""
    together: Tensor
    """[3, H, W], many episodes in one."""


def draw_trajectories(
    sampler: Sampler, rollout: Rollout, share: Share, rows: Tensor, prompts: Sequence[Prompt]
) -> Trajectories | None:
    """Pictures of the episodes with the numbers ``rows`` [k] among those of all processes, whose ``prompts`` these are,
    and of all of them together; all processes call it, and the first one draws. None of other rollouts, and where the
    environment draws none. A drawing of a user's that fails is reported, and ends no run."""
    trace, name = rollout.trace, getattr(sampler, "environment", None)
    draw = find_drawing(name) if isinstance(trace, Episodes) and isinstance(name, str) and len(rows) else None
    if draw is None or not isinstance(trace, Episodes):
        return None
    many = spaced(len(share), MOST)
    episodes = _gathered(rollout, trace, share, torch.cat([rows, many]), prompts)
    if share.ranks.rank != 0:
        return None
    try:
        each = [_picture(draw, [episode]) for episode in episodes[: len(rows)]]
        return Trajectories(torch.stack(each), _picture(draw, episodes[len(rows) :]))
    except Exception as error:  # a user's code
        warnings.warn(f"environment {name}: draw fails: {describe_exception(error)}; no pictures of it", stacklevel=2)
        return None


def _gathered(
    rollout: Rollout, trace: Episodes, share: Share, rows: Tensor, prompts: Sequence[Prompt]
) -> list[Episode]:
    where, place = rows.unique(return_inverse=True)
    part, held = share.take(where)
    seen = part.gather(trace.observed[held][:, :, -1, : trace.observed.shape[-1] - trace.beside]).numpy()
    decisions = part.gather(trace.alive[held].sum(dim=1)).tolist()
    final = part.gather(rollout.final[held].double().cpu()).tolist()
    found = [
        Episode(seen[i, : decisions[i] + 1], prompts[number], final[i][3], int(final[i][4]))
        for i, number in enumerate(where.tolist())
    ]
    return [found[i] for i in place.tolist()]


def _picture(draw: Draw, episodes: Sequence[Episode]) -> Tensor:
    found = np.asarray(draw(episodes))
    if found.ndim != 3 or found.shape[2] != 3 or found.dtype != np.uint8:
        raise ValueError(f"a picture is [H, W, 3] of uint8, and this one {list(found.shape)} of {found.dtype}")
    return torch.from_numpy(found.copy()).permute(2, 0, 1)
