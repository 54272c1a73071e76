"""Pictures of episodes, for people: their paths over the world's picture, where the environment can draw it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from flowrl.environments import Draw, Episode, find_drawing, open_rendered
from flowrl.environments.protocol import Array
from flowrl.errors import describe_exception
from flowrl.records.directory import spaced
from flowrl.types import Episodes, Prompt, Rollout, Sampler, Share

Made = TypeVar("Made")
MOST = 256
"""Episodes in the picture of all, at most; of more, evenly spaced ones."""
FRAMES = 40
"""Of a moving picture, at most; of longer episodes, evenly spaced ones."""


@dataclass(frozen=True)
class Trajectories:
    """Pictures of uint8."""

    each: Tensor | None
    """[k, 3, H, W], one episode in each; None where nothing draws paths."""
    together: Tensor | None
    """[3, H, W], many episodes in one."""
    moving: Sequence[Array]
    """[H, W, 3] each: the first of the k as it goes on, by its path so far, or by what the environment itself shows."""


def draw_trajectories(
    sampler: Sampler, rollout: Rollout, share: Share, rows: Tensor, prompts: Sequence[Prompt], policy: Any
) -> Trajectories | None:
    """Pictures of the episodes with the numbers ``rows`` [k] among those of all processes, whose ``prompts`` these are,
    and of all of them together; all processes call it, and the first one draws. None of other rollouts, and where the
    environment draws none. A drawing of a user's that fails is reported, and ends no run."""
    trace, name = rollout.trace, getattr(sampler, "environment", None)
    if not isinstance(trace, Episodes) or not isinstance(name, str) or not len(rows):
        return None
    draw, shows = find_drawing(name), bool(getattr(sampler, "render", False)) and not trace.beside
    if draw is None and not shows:
        return None
    many = spaced(len(share), MOST)
    episodes = _gathered(rollout, trace, share, torch.cat([rows, many]), prompts)
    first, held = share.take(rows[:1])
    actions, seed = first.gather(trace.actions[held]), int(first.gather(rollout.seeds[held]))
    if share.ranks.rank != 0:
        return None
    each = together = None
    if draw is not None:
        each = _attempt(name, lambda: torch.stack([_picture(draw, [episode]) for episode in episodes[: len(rows)]]))
        together = None if each is None else _attempt(name, lambda: _picture(draw, episodes[len(rows) :]))
        if together is None:
            return None
    frames = _shown(name, episodes[0], actions[0], seed, policy) if shows else _growing(draw, episodes[0])
    moving = _attempt(name, lambda: list(frames)) or []
    return Trajectories(each, together, moving) if together is not None or moving else None


def _attempt(name: str, make: Callable[[], Made]) -> Made | None:
    """What it makes; None where a user's drawing fails, which is reported."""
    try:
        return make()
    except Exception as error:  # a user's code
        warnings.warn(f"environment {name}: draw fails: {describe_exception(error)}; no pictures of it", stacklevel=2)
        return None


def _growing(draw: Draw | None, episode: Episode) -> Iterator[Array]:
    """Its path after some of its decisions, and at its end; nothing is known of how it ends before."""
    assert draw is not None
    decided = len(episode.observed) - 1
    for count in np.linspace(0, decided, min(decided + 1, FRAMES)).astype(int)[:-1].tolist():
        yield _checked(draw([replace(episode, observed=episode.observed[: count + 1], success=math.nan, mode=-1)]))
    yield _checked(draw([episode]))


def _shown(name: str, episode: Episode, actions: Tensor, seed: int, policy: Any) -> Iterator[Array]:
    """What the environment shows before some decisions and at the end, while the recorded actions [S, h, d] are
    executed again: it follows from its seed. Raises `ValueError` where it does not."""
    opened, render = open_rendered(name)
    decided = len(episode.observed) - 1
    wanted = set(np.linspace(0, decided, min(decided + 1, FRAMES)).astype(int).tolist())
    with closing(opened) as environment:
        seen = environment.reset(torch.tensor([seed]), [episode.prompt])[0]
        history = seen[:, None].expand(-1, policy.config.history, -1)
        for number in range(decided):
            if number in wanted:
                yield _checked(render(0))
            for action in actions[number]:
                found = environment.step(
                    policy.executed(history, action[None]).cpu(), torch.zeros(1, dtype=torch.int64)
                )
                history = torch.cat([history[:, 1:], found.observed[:, None]], dim=1)
                if bool(found.terminated | found.truncated):
                    break
        yield _checked(render(0))
    if not np.allclose(history[0, -1], episode.observed[-1], rtol=1e-3, atol=1e-3):
        raise ValueError("executed again, its actions end elsewhere: not all that is random follows from its seed")


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
    return torch.from_numpy(_checked(draw(episodes)).copy()).permute(2, 0, 1)


def _checked(found: Any) -> Array:
    """A picture [H, W, 3] uint8. Raises `ValueError` for others."""
    found = np.asarray(found)
    if found.ndim != 3 or found.shape[2] != 3 or found.dtype != np.uint8:
        raise ValueError(f"a picture is [H, W, 3] of uint8, and this one {list(found.shape)} of {found.dtype}")
    return found
