"""`flowrl.types.Ranks` whose processes are threads of this one: what several processes do, in milliseconds."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

Answer = TypeVar("Answer")
PATIENCE = 60.0
"""Seconds that a thread waits for the others."""


class _Board:
    """What every thread brings to an exchange. All have to bring the same kind of thing."""

    def __init__(self, size: int) -> None:
        self.values: list[Any] = [None] * size
        self.barrier = threading.Barrier(size, timeout=PATIENCE)

    def exchange(self, rank: int, kind: str, value: Any) -> list[Any]:
        self.values[rank] = (kind, value)
        self.barrier.wait()
        found = list(self.values)
        self.barrier.wait()
        kinds = {kind for kind, _ in found}
        assert len(kinds) == 1, f"ranks are at different calls: {kinds}"
        return [value for _, value in found]


class ThreadRanks:
    """One of several threads. Checks, beside what backends do, that all are at the same call."""

    def __init__(self, rank: int, board: _Board) -> None:
        self.rank, self.size, self._board = rank, len(board.values), board
        self.calls: list[str] = []

    def _exchange(self, kind: str, value: Any) -> list[Any]:
        self.calls.append(kind)
        return self._board.exchange(self.rank, kind, value)

    def share(self, count: int) -> slice:
        each, extra = divmod(count, self.size)
        start = self.rank * each + min(self.rank, extra)
        return slice(start, start + each + (self.rank < extra))

    def gather(self, rows: Tensor) -> Tensor:
        parts = self._exchange(f"gather {rows.dtype} {tuple(rows.shape[1:])}", rows.detach().clone())
        return torch.cat(parts)

    def total(self, value: Tensor) -> Tensor:
        parts = self._exchange(f"total {value.dtype} {tuple(value.shape)}", value.detach().clone())
        return torch.stack(parts).sum(dim=0)

    def largest(self, value: int) -> int:
        return max(self._exchange("largest", value))

    def first(self, value: Tensor) -> Tensor:
        return self._exchange(f"first {value.dtype} {tuple(value.shape)}", value.detach().clone())[0]

    def texts(self, text: str) -> list[str]:
        return self._exchange("texts", text)

    def wait(self) -> None:
        self._exchange("wait", None)


def in_threads(size: int, work: Callable[[ThreadRanks], Answer]) -> list[Answer]:
    """What each of ``size`` threads answers. Raises the error of the first that fails."""
    board = _Board(size)
    answers: list[Any] = [None] * size
    errors: list[BaseException | None] = [None] * size

    def run(rank: int) -> None:
        try:
            answers[rank] = work(ThreadRanks(rank, board))
        except BaseException as error:
            errors[rank] = error
            board.barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * PATIENCE)
        assert not thread.is_alive(), "a rank hangs"
    first = [error for error in errors if error is not None and not isinstance(error, threading.BrokenBarrierError)]
    if first or any(errors):
        raise next(iter(first), next(error for error in errors if error))
    return answers
