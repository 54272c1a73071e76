"""Reading what a reward returned: numbers, NaN where it could not score, None where it does not apply."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowrl.errors import UserError

NOT_APPLICABLE = math.inf
"""Stands for None among scores: the reward does not apply to this sample, as in TRL. No reward may answer with it."""


class RewardError(UserError):
    """A reward raised, or its answer was none; the message names it, its exception and the line, and the exception is
    chained."""


def as_scores(answer: Any, count: int, name: str) -> Tensor:
    """[count] float64 on the host from a tensor, array or list, or ``(scores, info)``; None becomes `NOT_APPLICABLE`.

    Raises `UserError` for another number of scores, another type, or an infinite score.
    """
    answer = _without_info(answer)
    values = _numbers(answer, name)
    if values.shape != (count,):
        shape = "x".join(map(str, values.shape)) or "one number"
        raise UserError(f"reward {name!r} should return {count} scores for {count} samples, found {shape}")
    absent = _absent(answer, count)
    if bool((torch.isinf(values) & ~absent).any()):
        where = int((torch.isinf(values) & ~absent).nonzero()[0, 0])
        raise UserError(
            f"reward {name!r} returned {float(values[where])} for sample {where}; scores are finite, "
            "NaN for 'could not score', or None for 'does not apply'"
        )
    return torch.where(absent, NOT_APPLICABLE, values)


def _absent(answer: Any, count: int) -> Tensor:
    """[count] bool: where the answer is None."""
    if isinstance(answer, Tensor):
        return torch.zeros(count, dtype=torch.bool)
    return torch.tensor([value is None for value in answer], dtype=torch.bool)


def as_list(values: Tensor) -> list[float | None]:
    """Scores as a reward would give them: None for `NOT_APPLICABLE`."""
    return [None if value == NOT_APPLICABLE else value for value in values.tolist()]


def kind_of(answer: Any) -> str:
    """The name of an answer's number type, or of its container."""
    answer = _without_info(answer)
    return str(answer.dtype).removeprefix("torch.") if "dtype" in dir(answer) else type(answer).__name__


def _without_info(answer: Any) -> Any:
    pair = isinstance(answer, tuple) and answer and not isinstance(answer[0], int | float | None)
    return answer[0] if pair else answer


def _numbers(answer: Any, name: str) -> Tensor:
    if isinstance(answer, Tensor):
        values = answer.detach().cpu()
        if not values.is_complex():
            return values.double()
    elif isinstance(answer, Sequence | np.ndarray) and not isinstance(answer, str):
        filled = [float("nan") if value is None else value for value in answer]
        try:
            return torch.tensor([float(value) for value in filled], dtype=torch.float64)
        except (TypeError, ValueError):
            pass  # explained below, as any other wrong type
    kind = "None (a missing return?)" if answer is None else type(answer).__name__
    raise UserError(f"reward {name!r} should return a tensor, array or list of numbers, found {kind}")
