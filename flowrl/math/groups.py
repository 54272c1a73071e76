"""Statistics over groups given by integer ids, ragged or not, with rows left out."""

from __future__ import annotations

import torch
from torch import Tensor


def group_index(group: Tensor) -> tuple[Tensor, int]:
    """Ids as consecutive integers [N], and how many groups there are."""
    unique, index = torch.unique(group, return_inverse=True)
    return index, len(unique)


def group_sum(x: Tensor, group: Tensor, valid: Tensor) -> Tensor:
    """[N] sum of ``x`` over the valid rows of each row's group."""
    index, count = group_index(group)
    kept = torch.where(valid, x, torch.zeros_like(x))
    return torch.zeros(count, dtype=x.dtype).index_add(0, index, kept)[index]


def group_count(group: Tensor, valid: Tensor) -> Tensor:
    """[N] number of valid rows in each row's group, float64."""
    return group_sum(torch.ones(len(group), dtype=torch.float64), group, valid)


def group_mean(x: Tensor, group: Tensor, valid: Tensor) -> Tensor:
    """[N] mean of ``x`` over the valid rows of each row's group (0 for a group without any)."""
    return group_sum(x, group, valid) / group_count(group, valid).clamp(min=1).to(x.dtype)


def group_std(x: Tensor, group: Tensor, valid: Tensor, ddof: int) -> Tensor:
    """[N] standard deviation over the valid rows of each row's group; 0 where it has ``ddof`` rows or fewer."""
    centred = x - group_mean(x, group, valid)
    count = group_count(group, valid).to(x.dtype)
    variance = group_sum(centred**2, group, valid) / (count - ddof).clamp(min=1)
    return torch.where(count > ddof, variance.sqrt(), torch.zeros_like(x))


def flat_groups(x: Tensor, group: Tensor, valid: Tensor) -> Tensor:
    """[N] bool: all valid rows of the group have exactly the same value, so that comparing them teaches nothing."""
    index, count = group_index(group)
    low = torch.full((count,), torch.inf, dtype=x.dtype).scatter_reduce(0, index[valid], x[valid], "amin")
    high = torch.full((count,), -torch.inf, dtype=x.dtype).scatter_reduce(0, index[valid], x[valid], "amax")
    return (high <= low)[index]


def group_log_mean_exp(x: Tensor, group: Tensor, valid: Tensor) -> Tensor:
    """[N] ``log mean exp x`` over the valid rows of each row's group; -inf for a group without any."""
    index, count = group_index(group)
    top = torch.full((count,), -torch.inf, dtype=x.dtype).scatter_reduce(0, index[valid], x[valid], "amax")[index]
    scaled = torch.where(valid, x - top, -torch.inf).exp()
    return group_mean(scaled, group, valid).log() + top
