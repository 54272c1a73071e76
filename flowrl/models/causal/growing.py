"""Keys and values of full attention in memory that is reserved ahead of them.

transformers' dynamic cache concatenates: every token copies the keys and values of all tokens before it, so a
completion of T tokens copies T^2 / 2 of them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

SPARE, SHARE = 64, 4
"""Columns that are reserved beyond those in use: so many, or one for every four of them, whichever is more. Each column
is then copied about four times on the way, however long the completion."""


def reserved(first: int, last: int) -> int:
    """The columns that are reserved in the end where a cache of ``first`` of them grows one by one to ``last``."""
    room = first
    for width in range(first + 1, last + 1):
        if width > room:
            room = width + max(SPARE, width // SHARE)
    return room


class _Column:
    """A tensor [n, H, T, d] that grows along T. The tensor shown is the front of a larger one."""

    def __init__(self) -> None:
        self._room, self._shown = torch.empty(0), torch.empty(0)

    def append(self, values: Tensor, new: Tensor) -> Tensor:
        """``torch.cat([values, new], dim=-2)``, copied only where ``values`` is not what was returned last (its rows
        were chosen, or its columns cropped) or the room is full."""
        before, after = values.shape[-2], values.shape[-2] + new.shape[-2]
        if values is not self._shown or after > self._room.shape[-2]:
            width = after + max(SPARE, after // SHARE)
            self._room = values.new_empty(*values.shape[:-2], width, values.shape[-1])
            self._room[..., :before, :] = values
        self._room[..., before:after, :] = new
        self._shown = self._room[..., :after, :]
        return self._shown


class GrowingLayer(DynamicLayer):
    """A layer of transformers' cache, with the same values."""

    def __init__(self, layer: DynamicLayer) -> None:
        """Go on with what ``layer`` holds."""
        super().__init__()
        vars(self).update(vars(layer))
        self._columns = _Column(), _Column()

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """As `DynamicLayer.update`."""
        if self.keys is None or self.values is None or not self.keys.numel():
            return super().update(key_states, value_states, *args, **kwargs)
        self.keys = self._columns[0].append(self.keys, key_states)
        self.values = self._columns[1].append(self.values, value_states)
        return self.keys, self.values


def grow(cache: Any) -> None:
    """Let the layers of full attention of a cache grow in reserved memory. Others stay as they are: a sliding window
    bounds what is copied, recurrent states have one size, and caches of a checkpoint's own code are its own."""
    if isinstance(cache, Cache):
        cache.layers = [GrowingLayer(layer) if type(layer) is DynamicLayer else layer for layer in cache.layers]
