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
    """``count`` objects of one gymnasium environment with observations and actions that are boxes of numbers.

    Actions are clipped to the action space; a policy's unclipped action carries its likelihood. ``success`` is read
    from ``info`` (``success`` or ``is_success``), and is NaN where there is none. Time limits are the environment's own
    wrapper, which says ``truncated``.
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
        spaces = (self._rows[0].observation_space, self._rows[0].action_space)
        for space, what in zip(spaces, ("observations", "actions"), strict=True):
            if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 1:
                raise UserError(
                    f"environment gym:{name} has {what} of {space}; a policy here takes a box of one axis, so flatten "
                    "them with a wrapper in a file of your own (environment: my_env.py:make)"
                )
        self._low, self._high = spaces[1].low, spaces[1].high
        self.observation_size, self.action_size = int(spaces[0].shape[0]), int(spaces[1].shape[0])

    def reset(self, seeds: Sequence[int], prompts: Sequence[Prompt]) -> Array:
        """[N, o]; numpy's generators take seeds of 32 bits at least, gymnasium any that is not negative."""
        return np.stack([row.reset(seed=seed)[0] for row, seed in zip(self._rows, seeds, strict=True)])

    def step(self, actions: Array, rows: Array) -> Answer:
        """One step of some rows."""
        clipped = np.clip(actions, self._low, self._high).astype(self._low.dtype)
        found = [self._rows[row].step(action) for row, action in zip(rows.tolist(), clipped, strict=True)]
        success = [float(each[4].get("success", each[4].get("is_success", np.nan))) for each in found]
        columns = [np.array([each[i] for each in found]) for i in range(4)]
        return columns[0], columns[1], columns[2], columns[3], {"success": np.array(success)}

    def render(self, row: int) -> Array:
        """[H, W, 3] uint8: the simulator's own picture of a row, where it was made with ``render``."""
        return np.asarray(self._rows[row].render())

    def close(self) -> None:
        """What they have open, such as a renderer."""
        for row in self._rows:
            row.close()
