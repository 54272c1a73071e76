"""What an environment is: many independent rows that are reset by seed and stepped together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from flowrl.types import Prompt

Array = NDArray[Any]
Answer = tuple[Array, Array, Array, Array, Mapping[str, Any]]
"""Of the rows [n] that were stepped: observation [n, o], reward [n], terminated [n], truncated [n] and what is known
besides, as gymnasium answers it. Of the latter, ``success`` [n] (1, 0, NaN where it cannot be told) and ``mode`` [n]
(which of several ways was taken, -1 for none) are those of an episode's last step: success at the end, not at any
time."""


class Environment(Protocol):
    """N rows, each an episode of its own. Nothing resets by itself, and a row that ended is not stepped again."""

    @property
    def observation_size(self) -> int:
        """o, numbers of one observation."""
        ...

    @property
    def action_size(self) -> int:
        """d, numbers of one action. It clips or scales them by itself. Where an action is one of d choices, it takes
        the place of the largest, and may say so by an attribute ``discrete = True``."""
        ...

    def reset(self, seeds: Sequence[int], prompts: Sequence[Prompt]) -> Array:
        """[N, o] first observations. Everything random about an episode follows from its seed; a prompt's columns say
        which variant of the task it is."""
        ...

    def step(self, actions: Array, rows: NDArray[np.int64]) -> Answer:
        """One step of some rows [n], by ``actions`` [n, d]. ``terminated``: the task ended there; ``truncated``: a time
        limit cut it, and it would have gone on."""
        ...


class Make(Protocol):
    """Makes an environment of so many rows."""

    def __call__(self, count: int) -> Environment: ...


@dataclass(frozen=True)
class Episode:
    """An episode that is to be drawn."""

    observed: Array
    """[T + 1, o]: what was seen before each of its T decisions, and after the last one."""
    prompt: Prompt
    success: float
    """1, 0, or NaN where it cannot be told."""
    mode: int
    """Which of several ways was taken, -1 for none."""


class Draw(Protocol):
    """Draws episodes over a picture of the world, [H, W, 3] uint8: the function ``draw`` beside ``make``, optional."""

    def __call__(self, episodes: Sequence[Episode]) -> Array: ...
