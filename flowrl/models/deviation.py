"""How far two tensors are apart, as every check of equal predictions measures it."""

from __future__ import annotations

import torch
from torch import Tensor

from flowrl.devices import to_host

TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}
"""By the precision computed in: the largest deviation of predictions that rounding explains."""


def deviation(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference relative to the largest value of ``theirs``; NaN counts as infinite."""
    ours, theirs = (value.double() for value in to_host((ours, theirs)))
    gap = (ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-12)
    return float(gap) if torch.isfinite(gap) else float("inf")
