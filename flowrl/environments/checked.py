"""An environment that is looked at: what it answers is converted, and what is wrong follows a declared policy."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from flowrl.environments.protocol import Environment
from flowrl.errors import UserError, describe_exception
from flowrl.exit_guard import catch_exit
from flowrl.processes import ChildError
from flowrl.types import Prompt

OnError = Literal["raise", "drop"]
"""What becomes of an episode whose environment fails: the run ends with a sentence that says why, or the episode counts
as one that could not be scored, and the config's ``on_nan`` decides."""


@dataclass(frozen=True)
class Step:
    """What a step gave the rows [n] that were stepped."""

    observed: Tensor  # [n, o] float32, finite
    reward: Tensor  # [n] float64, finite
    terminated: Tensor  # [n] bool
    truncated: Tensor  # [n] bool, False where terminated
    success: Tensor  # [n] float64, NaN where it cannot be told
    mode: Tensor  # [n] int64, -1 for none
    failed: Tensor
    """[n] bool: rows that the environment answered nothing sensible of; their other numbers mean nothing."""


class CheckedEnvironment:
    """Raises `UserError` where the environment does not keep to its protocol (``on_error: raise``), or says which rows
    failed (``drop``)."""

    def __init__(self, environment: Environment, name: str, on_error: OnError) -> None:
        self._environment, self._name, self._on_error = environment, name, on_error
        self._sizes: list[int] = []
        for key in ("observation_size", "action_size"):
            size = getattr(environment, key, None)
            if not isinstance(size, int) or size < 1:
                raise UserError(f"environment {name}: {key} is {size!r}; give the number of numbers, 1 or more")
            self._sizes.append(size)

        self.discrete = bool(getattr(environment, "discrete", False))
        """Whether an action is one of n choices, said by n numbers of which the largest counts."""

    @property
    def observation_size(self) -> int:
        """o."""
        return self._sizes[0]

    @property
    def action_size(self) -> int:
        """d."""
        return self._sizes[1]

    def reset(self, seeds: Tensor, prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor]:
        """First observations [N, o] float32, and which rows failed [N]."""
        count = len(seeds)
        try:
            with catch_exit():
                first = self._environment.reset(seeds.tolist(), list(prompts))
            observed = self._array(first, (count, self._sizes[0]))
        except (Exception, SystemExit) as error:  # whatever a user's environment raises
            self._fail("reset", error)
            return torch.zeros(count, self._sizes[0]), torch.ones(count, dtype=torch.bool)
        broken = np.asarray(~np.isfinite(observed).all(axis=1))
        self._refuse("reset", broken, "observation")
        return torch.from_numpy(np.where(broken[:, None], 0, observed).astype(np.float32)), torch.from_numpy(broken)

    def step(self, actions: Tensor, rows: Tensor) -> Step:
        """One step of the rows [n] by actions [n, d]."""
        n, o = len(rows), self._sizes[0]
        try:
            given = actions.double().cpu().numpy()
            with catch_exit():
                observed, reward, terminated, truncated, info = self._environment.step(given, rows.numpy())
            observed, reward = self._array(observed, (n, o)), self._array(reward, (n,))
            ended, cut = self._array(terminated, (n,)).astype(bool), self._array(truncated, (n,)).astype(bool)
            success = self._array(info.get("success", np.full(n, np.nan)), (n,))
            mode = self._array(info.get("mode", np.full(n, -1)), (n,)).astype(np.int64)
        except (Exception, SystemExit) as error:  # whatever a user's environment raises
            self._fail("step", error)
            return _nothing(n, o)
        broken = ~np.isfinite(observed).all(axis=1) | ~np.isfinite(reward)
        if broken.any():
            self._refuse("step", broken, "observation or reward")
            observed, reward = np.where(broken[:, None], 0, observed), np.where(broken, 0, reward)
        return Step(
            torch.from_numpy(observed.astype(np.float32)),
            torch.from_numpy(reward),
            torch.from_numpy(ended),
            torch.from_numpy(cut & ~ended),
            torch.from_numpy(success),
            torch.from_numpy(mode),
            torch.from_numpy(broken),
        )

    def _array(self, value: Any, shape: tuple[int, ...]) -> np.ndarray:
        found = np.asarray(value, dtype=np.float64)
        if found.shape != shape:
            raise ValueError(f"an answer has the shape {list(found.shape)}, and {list(shape)} is asked for")
        return found

    def close(self) -> None:
        """Let it go, with what it has open, by its own ``close`` where there is one."""
        close = getattr(self._environment, "close", None)
        if close is None:
            return
        try:
            close()
        except Exception as error:  # a user's code, when its episodes are over
            warnings.warn(f"environment {self._name}: close fails: {describe_exception(error)}", stacklevel=2)

    def _fail(self, what: str, error: BaseException) -> None:
        """Of all rows that were asked."""
        if isinstance(error, UserError):
            raise error
        said = str(error) if isinstance(error, ChildError) else describe_exception(error)
        if self._on_error == "raise":
            raise UserError(f"environment {self._name}: {what} fails: {said}") from error
        warnings.warn(
            f"environment {self._name}: {what} fails: {said}; the episodes going on then count as failed", stacklevel=2
        )

    def _refuse(self, what: str, broken: np.ndarray, kind: str) -> None:
        if self._on_error == "raise" and broken.any():
            raise UserError(
                f"environment {self._name}: {what} gives an {kind} that is NaN or infinite, in row "
                f"{int(np.flatnonzero(broken)[0])}; mend it, or set algorithm.sampler.on_error=drop to leave such "
                "episodes out"
            )


def _nothing(n: int, o: int) -> Step:
    no, zero = torch.zeros(n, dtype=torch.bool), torch.zeros(n, dtype=torch.float64)
    return Step(torch.zeros(n, o), zero, no, no, zero + torch.nan, torch.full((n,), -1), ~no)
