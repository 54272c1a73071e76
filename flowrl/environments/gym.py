"""Environments of gymnasium, one object for each row: nothing resets by itself, and every episode has its own seed."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from flowrl.environments.protocol import Answer, Array
from flowrl.errors import UserError, first_line, missing_package
from flowrl.types import Prompt


class GymEnvironment:
    """``count`` objects of one gymnasium environment whose observations are a box of numbers, and whose actions are a
    box or n choices.

    Actions in a box are clipped to it; a policy's unclipped action carries its likelihood. Of n choices (``Discrete``)
    an action is n numbers, and the largest of them is executed. ``success`` is read from ``info`` (``success`` or
    ``is_success``), and is NaN where there is none. Time limits are the environment's own wrapper, which says
    ``truncated``.
    """

    def __init__(self, name: str, count: int, render: bool = False) -> None:
        try:
            gymnasium: Any = importlib.import_module("gymnasium")
        except ImportError as error:
            raise missing_package(f"environment gym:{name}", "gymnasium", "control") from error
        try:
            pictures = {"render_mode": "rgb_array"} if render else {}
            self._rows = [gymnasium.make(name, **pictures) for _ in range(count)]
        except Exception as error:  # unknown names, missing simulators: gymnasium has a class of errors for each
            raise UserError(f"environment gym:{name} cannot be made: {first_line(error)}") from error
        seen, self._space = self._rows[0].observation_space, self._rows[0].action_space
        self.discrete = isinstance(self._space, gymnasium.spaces.Discrete)
        """Whether an action is one of n choices."""
        for space, what in ((seen, "observations"), (self._space, "actions")):
            box = isinstance(space, gymnasium.spaces.Box) and len(space.shape) == 1
            if not box and not (what == "actions" and self.discrete):
                raise UserError(
                    f"environment gym:{name} has {what} of {space}; a policy here takes a box of one axis, and actions "
                    "may be Discrete: wrap it in a file of your own (environment: my_env.py:make)"
                )
        self.observation_size = int(seen.shape[0])
        self.action_size = int(self._space.n if self.discrete else self._space.shape[0])

    def reset(self, seeds: Sequence[int], prompts: Sequence[Prompt]) -> Array:
        """[N, o]; numpy's generators take seeds of 32 bits at least, gymnasium any that is not negative."""
        return np.stack([row.reset(seed=seed)[0] for row, seed in zip(self._rows, seeds, strict=True)])

    def step(self, actions: Array, rows: Array) -> Answer:
        """One step of some rows."""
        found = [self._rows[row].step(action) for row, action in zip(rows.tolist(), self._own(actions), strict=True)]
        success = [float(each[4].get("success", each[4].get("is_success", np.nan))) for each in found]
        columns = [np.array([each[i] for each in found]) for i in range(4)]
        return columns[0], columns[1], columns[2], columns[3], {"success": np.array(success)}

    def _own(self, actions: Array) -> Array:
        """Actions [n, d] as the environment takes them: [n, d] of a box, [n] of choices."""
        if self.discrete:
            return self._space.start + actions.argmax(axis=1)
        return np.clip(actions, self._space.low, self._space.high).astype(self._space.dtype)

    def render(self, row: int) -> Array:
        """[H, W, 3] uint8: the simulator's own picture of a row, where it was made with ``render``."""
        return np.asarray(self._rows[row].render())

    def close(self) -> None:
        """What they have open, such as a renderer."""
        for row in self._rows:
            row.close()
