"""Rows of a model's cache of keys, values and states: chosen, repeated and reordered by the cache's own methods."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

SelectMethod = Literal["reorder_cache", "batch_select_indices"]
SELECT_METHODS: tuple[SelectMethod, ...] = ("reorder_cache", "batch_select_indices")
"""Methods of transformers' caches. Recurrent and convolutional states (Mamba, LFM2, Qwen3-Next) know the first alone;
that of Falcon-H1 has the second, which forgets the states; MiniMax's has a complete second one. What a cache really
does is found out at loading (`choose_decoding`)."""


def select_rows(cache: Any, rows: Tensor, select_method: SelectMethod) -> Any:
    """The cache of these rows [m] (repeats allowed), in place where it can be. Lists of tensors, such as RWKV's states,
    have the rows in front."""
    if isinstance(cache, Tensor):
        return cache.index_select(0, rows.to(cache.device))
    if isinstance(cache, list | tuple):
        return type(cache)(select_rows(part, rows, select_method) for part in cache)
    getattr(cache, select_method)(rows)
    return cache
