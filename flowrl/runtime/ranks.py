"""`flowrl.types.Ranks` of the processes that ``torchrun`` or ``accelerate launch`` started, on `torch.distributed`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from flowrl.errors import UserError, limit_of
from flowrl.runtime import watch as watching
from flowrl.runtime.watch import LostRankError, PeerCrashError, PeerError
from flowrl.types import IncompatibleError, OneProcess, Ranks

EXCHANGED = ("cpu", "cuda")
"""Kinds of devices whose tensors are exchanged as they are (gloo, NCCL); those of others go through the host."""


class DistributedRanks:
    """The processes of the initialised default group.

    Every exchange is waited for in small steps, so that it ends when a rank is found to be gone, instead of hanging: it
    raises what `flowrl.runtime.watch.Watch.check` raises.
    """

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.seconds = 0.0
        """Time spent in exchanges so far, waiting for ranks that are behind included."""
        self._watch = watching.present()
        self._kinds = EXCHANGED if "nccl" in dist.get_backend_config() else ("cpu",)

    def share(self, count: int) -> slice:
        """See `Ranks.share`."""
        each, extra = divmod(count, self.size)
        start = self.rank * each + min(self.rank, extra)
        return slice(start, start + each + (self.rank < extra))

    def gather(self, rows: Tensor) -> Tensor:
        """See `Ranks.gather`. As bytes, which every backend knows, padded to the longest, because backends exchange
        equal shapes alone."""
        own = torch.tensor([len(rows)])
        counts = [torch.zeros_like(own) for _ in range(self.size)]
        self._exchange(lambda: dist.all_gather(counts, own, async_op=True))
        sizes, shape = [int(count) for count in counts], rows.shape[1:]
        flat = self._exchangeable(rows).reshape(len(rows), shape.numel()).contiguous().view(torch.uint8)
        padded = flat.new_zeros(max(sizes), shape.numel() * rows.element_size())
        padded[: len(rows)] = flat
        parts = [torch.zeros_like(padded) for _ in sizes]
        self._exchange(lambda: dist.all_gather(parts, padded, async_op=True))
        found = torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])
        return found.view(rows.dtype).reshape(sum(sizes), *shape).to(rows.device)

    def total(self, value: Tensor) -> Tensor:
        """See `Ranks.total`."""
        summed = self._exchangeable(value).clone(memory_format=torch.contiguous_format)
        self._exchange(lambda: dist.all_reduce(summed, async_op=True))
        return summed.to(value.device)

    def largest(self, value: int) -> int:
        """See `Ranks.largest`."""
        found = torch.tensor([value])
        self._exchange(lambda: dist.all_reduce(found, op=dist.ReduceOp.MAX, async_op=True))
        return int(found)

    def first(self, value: Tensor) -> Tensor:
        """See `Ranks.first`."""
        told = self._exchangeable(value).clone(memory_format=torch.contiguous_format)
        self._exchange(lambda: dist.broadcast(told, 0, async_op=True))
        return told.to(value.device)

    def texts(self, text: str) -> list[str]:
        """See `Ranks.texts`. Bytes travel, not pickles."""
        content = bytearray(text.encode())
        own = torch.frombuffer(content, dtype=torch.uint8) if content else torch.zeros(0, dtype=torch.uint8)
        sizes = self.gather(torch.tensor([len(own)])).tolist()
        return [part.numpy().tobytes().decode() for part in self.gather(own).split(sizes)]

    def wait(self) -> None:
        """See `Ranks.wait`."""
        self.largest(0)

    def _exchangeable(self, value: Tensor) -> Tensor:
        value = value.detach()
        return value if value.device.type in self._kinds else value.cpu()

    def _exchange(self, begin: Any) -> None:
        """Begin a collective and wait for it, watching over the others."""
        since, pause = time.monotonic(), 2e-5
        try:
            if self._watch is not None:
                self._watch.exchange_begins()
            work = begin()
            while self._watch is not None and not work.is_completed():
                self._watch.check(since)
                time.sleep(pause)
                pause = min(1.3 * pause, 2e-3)
            work.wait()
        except RuntimeError as error:  # a connection broke: whose, the watch finds out
            if self._watch is not None:
                self._watch.explain(error)
            raise
        finally:
            self.seconds += time.monotonic() - since


def ranks() -> Ranks:
    """The processes that train together: those of `torch.distributed` where it is initialised, else this one."""
    return DistributedRanks() if dist.is_available() and dist.is_initialized() else OneProcess()


class _Agreeing(Protocol):
    size: int

    def largest(self, value: int) -> int: ...

    def texts(self, text: str) -> list[str]: ...


@contextmanager
def together(ranks: _Agreeing) -> Iterator[None]:
    """Work of each process for itself, without exchanges: what is raised on one ends all of them here.

    Raises what was raised on this process, else `PeerError` with what another one says, or `PeerCrashError` where that
    is nothing a user can mend.
    """
    if ranks.size == 1:
        yield
        return
    error: Exception | None = None
    try:
        yield
    except (LostRankError, PeerError, PeerCrashError):  # which all ranks find out for themselves
        raise
    except Exception as raised:
        error = raised
        watch = watching.present()
        if watch is not None and watch.sharded:  # others may be inside an exchange of the network
            raise
    if not ranks.largest(int(error is not None)):
        return
    said = ranks.texts("" if error is None else f"{int(mendable(error))}{words_of(error)}")
    if error is not None:
        raise error
    rank, text = next((rank, text) for rank, text in enumerate(said) if text)
    raise (PeerError if text[0] == "1" else PeerCrashError)(f"{watching.name_of(rank)}: {text[1:]}")


def mendable(error: BaseException) -> bool:
    """Whether it is a user's to mend, so that a sentence says all, and what was finished is saved."""
    return isinstance(error, UserError | IncompatibleError) or limit_of(error) is not None


def words_of(error: BaseException) -> str:
    """An error in a sentence."""
    if isinstance(error, UserError | IncompatibleError):
        return str(error)
    return limit_of(error) or f"{type(error).__name__}: {error}"
