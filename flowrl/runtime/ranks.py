"""`flowrl.types.Ranks` of the processes that ``torchrun`` or ``accelerate launch`` started, on `torch.distributed`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from flowrl.errors import UserError
from flowrl.types import IncompatibleError, OneProcess, Ranks


class DistributedRanks:
    """The processes of the initialised default group; exchanges are over the backend's device."""

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        nccl = dist.get_backend() == "nccl"
        self._device = torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")

    def share(self, count: int) -> slice:
        """See `Ranks.share`."""
        each, extra = divmod(count, self.size)
        start = self.rank * each + min(self.rank, extra)
        return slice(start, start + each + (self.rank < extra))

    def gather(self, rows: Tensor) -> Tensor:
        """See `Ranks.gather`. As bytes, which every backend knows, padded to the longest, because backends exchange
        equal shapes alone."""
        own = torch.tensor([len(rows)], device=self._device)
        counts = [torch.zeros_like(own) for _ in range(self.size)]
        dist.all_gather(counts, own)
        sizes, shape = [int(count) for count in counts], rows.shape[1:]
        flat = rows.detach().to(self._device).reshape(len(rows), shape.numel()).contiguous().view(torch.uint8)
        padded = flat.new_zeros(max(sizes), shape.numel() * rows.element_size())
        padded[: len(rows)] = flat
        parts = [torch.zeros_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        found = torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])
        return found.view(rows.dtype).reshape(sum(sizes), *shape).to(rows.device)

    def total(self, value: Tensor) -> Tensor:
        """See `Ranks.total`."""
        summed = value.detach().clone().to(self._device)
        dist.all_reduce(summed)
        return summed.to(value.device)

    def largest(self, value: int) -> int:
        """See `Ranks.largest`."""
        found = torch.tensor([value], device=self._device)
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
        return int(found)

    def texts(self, text: str) -> list[str]:
        """See `Ranks.texts`. Bytes travel, not pickles."""
        own = (
            torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8) if text else torch.zeros(0, dtype=torch.uint8)
        )
        sizes = self.gather(torch.tensor([len(own)])).tolist()
        return [bytes(part.tolist()).decode() for part in self.gather(own).split(sizes)]

    def wait(self) -> None:
        """See `Ranks.wait`."""
        dist.barrier()


def launched() -> bool:
    """Whether a launcher started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def ranks() -> Ranks:
    """The processes that train together: those of `torch.distributed` where it is initialised, else this one."""
    return DistributedRanks() if dist.is_available() and dist.is_initialized() else OneProcess()


@contextmanager
def together(ranks: Ranks) -> Iterator[None]:
    """Work of each process for itself, without exchanges: what is raised on one ends all of them here.

    Raises what was raised on this process, else `UserError` with what another one says.
    """
    if ranks.size == 1:
        yield
        return
    error: Exception | None = None
    try:
        yield
    except Exception as raised:
        error = raised
    if ranks.largest(int(error is not None)):
        said = ranks.texts("" if error is None else _text(error))
        if error is not None:
            raise error
        rank, text = next((rank, text) for rank, text in enumerate(said) if text)
        raise UserError(f"rank {rank} of {ranks.size} stopped: {text}")


def _text(error: Exception) -> str:
    return str(error) if isinstance(error, UserError | IncompatibleError) else f"{type(error).__name__}: {error}"
