"""Processes that train together. Without `torch.distributed` every function is the identity of one process."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def rank() -> int:
    """This process' number."""
    return dist.get_rank() if _distributed() else 0


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if _distributed() else 1


def is_main() -> bool:
    """Whether this process writes files and talks to the terminal."""
    return rank() == 0


def share(count: int) -> slice:
    """This process' part of ``count`` rows: contiguous, sizes differ by at most one, in the order of ranks."""
    each, extra = divmod(count, world_size())
    start = rank() * each + min(rank(), extra)
    return slice(start, start + each + (rank() < extra))


def gather(rows: Tensor) -> Tensor:
    """All processes' rows [n, ...] concatenated in the order of ranks; n may differ between processes.

    Bytes travel as they are: 64-bit ids and NaN arrive exactly.
    """
    if world_size() == 1:
        return rows
    device = _device()
    counts = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(world_size())]
    dist.all_gather(counts, torch.tensor([len(rows)], device=device))
    sizes = [int(count) for count in counts]
    padded = torch.zeros((max(sizes), *rows.shape[1:]), dtype=rows.dtype, device=device)
    padded[: len(rows)] = rows.to(device)
    parts = [torch.zeros_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)]).to(rows.device)


def total(value: Tensor) -> Tensor:
    """Sum over processes, on the device it came from; the input is left as it was."""
    if world_size() == 1:
        return value
    summed = value.detach().clone().to(_device())
    dist.all_reduce(summed)
    return summed.to(value.device)


def wait() -> None:
    """Return when every process has come here."""
    if world_size() > 1:
        dist.barrier()


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def _device() -> torch.device:
    """Where the backend wants its tensors."""
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
