"""The linear layer of a reward model that makes a number of the last hidden state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from flowrl.errors import UserError
from flowrl.models.text.config import text_value

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HEAD = "score"
"""What transformers calls it in every decoder."""


def begin_head(model: PreTrainedModel, missing: Sequence[str], place: str) -> None:
    """Give a head that the checkpoint does not have its start: normal, as wide as the model's own weights begin, the
    same in every process. Raises `UserError` where anything else is missing."""
    absent = [key for key in missing if not key.startswith(f"{HEAD}.")]
    if absent:
        raise UserError(
            f"model {place!r} lacks {len(absent)} weights of {type(model).__name__} ({absent[0]}, ...), which would be"
            " random; a reward model starts from an autoregressive language model, or from a reward model"
        )
    if not missing:
        return
    width = float(text_value(model.config, "initializer_range") or 0.02)
    for name, parameter in _head_of(model).named_parameters():
        start = torch.zeros(parameter.shape)
        if name == "weight":
            start.normal_(0.0, width, generator=torch.Generator().manual_seed(0))
        parameter.data = start.to(parameter)


def train_head(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Train the head whole, in ``dtype``, beside an adapter that has none for it."""
    for parameter in _head_of(model).parameters():
        parameter.data = parameter.data.to(dtype)
        parameter.requires_grad_(True)


def _head_of(model: PreTrainedModel) -> nn.Module:
    head: Any = getattr(model, HEAD, None)
    if not isinstance(head, nn.Linear):
        raise UserError(
            f"{type(model).__name__} has no linear layer {HEAD!r}, which a reward model learns; unsupported"
        )
    return head
