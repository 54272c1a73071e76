"""What a reward call returns: numbers, NaN where it could not score, None where it does not apply; or a failure."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from flowrl.errors import UserError, describe_exception, is_out_of_memory

NOT_APPLICABLE = math.inf
"""Stands for None among scores: the reward does not apply to this sample, as in TRL. No reward may answer with it."""


class RewardError(UserError):
    """A reward raised, or its answer was none; the message names it, its exception and the line, and the exception is
    chained."""

    @classmethod
    def of(cls, name: str, error: BaseException) -> RewardError:
        """For what the reward ``name`` raised."""
        advice = "; give it a batch_size, or a device of its own" if is_out_of_memory(error) else ""
        made = cls(f"reward {name!r} raised {describe_exception(error)}{advice}")
        made.__cause__ = error
        return made


def as_scores(result: object, count: int, name: str) -> Tensor:
    """[count] float64 on the host from a tensor, array or list, or ``(scores, info)``; None becomes `NOT_APPLICABLE`.

    Raises `RewardError` for another number of scores, another type, or an infinite score.
    """
    result = _without_info(result)
    values = _numbers(result, name)
    if values.shape != (count,):
        shape = "x".join(map(str, values.shape)) or "one number"
        raise RewardError(f"reward {name!r} should return {count} scores for {count} samples, found {shape}")
    absent = _absent(result, count)
    infinite = (torch.isinf(values) & ~absent).nonzero()[:, 0].tolist()
    if infinite:
        raise RewardError(
            f"reward {name!r} returned {float(values[infinite[0]])} for sample {infinite[0]}; scores are finite, "
            "NaN for 'could not score', or None for 'does not apply'"
        )
    return torch.where(absent, NOT_APPLICABLE, values)


def as_list(scores: Tensor) -> list[float | None]:
    """Scores as a reward would give them: None for `NOT_APPLICABLE`."""
    return [None if value == NOT_APPLICABLE else value for value in scores.tolist()]


def number_type(result: object) -> str:
    """The name of a result's number type, or of its container: float32, float64, int64, list."""
    result = _without_info(result)
    dtype = getattr(result, "dtype", None)
    return type(result).__name__ if dtype is None else str(dtype).removeprefix("torch.")


def _without_info(result: object) -> object:
    if isinstance(result, tuple) and result and not isinstance(result[0], int | float | None):
        return result[0]
    return result


def _absent(result: object, count: int) -> Tensor:
    """[count] bool: where the result is None."""
    if isinstance(result, Sequence | np.ndarray):
        return torch.tensor([value is None for value in result], dtype=torch.bool)
    return torch.zeros(count, dtype=torch.bool)


def _numbers(result: object, name: str) -> Tensor:
    if isinstance(result, Tensor):
        values = result.detach().cpu()
        if not values.is_complex():
            return values.double()
    elif isinstance(result, Sequence | np.ndarray) and not isinstance(result, str):
        filled = [float("nan") if value is None else value for value in result]
        try:
            return torch.tensor([float(value) for value in filled], dtype=torch.float64)
        except (TypeError, ValueError):
            pass  # explained below, as any other wrong type
    kind = "None (a missing return?)" if result is None else type(result).__name__
    raise RewardError(f"reward {name!r} should return a tensor, array or list of numbers, found {kind}")
