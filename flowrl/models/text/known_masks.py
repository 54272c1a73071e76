"""What transformers reads off the device before it makes an attention mask, told from the host, which knows it: every
such question makes the host wait for all the device has to do."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from torch import Tensor


class _Told(threading.local):
    one_sequence: bool = False
    padded: bool | None = None


_told = _Told()


@contextmanager
def known(*, one_sequence: bool | None = None, padded: bool | None = None) -> Iterator[None]:
    """For models called inside, by this thread. one_sequence: every row holds one sequence, in its order.
    padded: whether the mask of a decoding step hides any column. ``None`` leaves what was told, or asks the device."""
    _install()
    before = _told.one_sequence, _told.padded
    _told.one_sequence = before[0] if one_sequence is None else one_sequence
    _told.padded = before[1] if padded is None else padded
    try:
        yield
    finally:
        _told.one_sequence, _told.padded = before


@cache
def _install() -> None:
    """Let transformers ask us first. Where nothing is told, its own functions answer; releases that do not have them
    are left alone."""
    from transformers import masking_utils

    module: Any = masking_utils
    packed, fast_all = (getattr(module, name, None) for name in ("find_packed_sequence_indices", "fast_all"))

    def find_packed_sequence_indices(position_ids: Tensor) -> Tensor | None:
        assert packed is not None
        return None if _told.one_sequence else packed(position_ids)

    def all_columns(mask: Tensor) -> Any:
        assert fast_all is not None
        return fast_all(mask) if _told.padded is None else not _told.padded

    if packed is not None:
        module.find_packed_sequence_indices = find_packed_sequence_indices
    if fast_all is not None:
        module.fast_all = all_columns
