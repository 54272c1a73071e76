"""Counter-based random numbers: a draw depends on what it is for, never on the batch, rank or order it is made in."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from flowrl.devices import pinned, put

WORTHWHILE = 2**18
"""Numbers, about 2 ms of one core's work, from which on they are drawn in threads."""


def derive(seed: int, *keys: int | str) -> int:
    """63-bit integer that depends on all of ``(seed, *keys)``; used as the seed of one stream of numbers."""
    return _hashed("/".join(map(_named, (int(seed), *keys))))


def _named(key: int | str) -> str:
    return f"{type(key).__name__}:{key}"


def _hashed(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def seeds(seed: int, *keys: int | str, count: int) -> Tensor:
    """[count] int64: one derived seed per sample."""
    return torch.tensor([derive(seed, *keys, index) for index in range(count)], dtype=torch.int64)


def each(seeds: Tensor, *keys: int | str) -> Tensor:
    """[...] int64: of every seed one derived from it and the keys."""
    rest = "".join(f"/{_named(key)}" for key in keys)
    found = [_hashed(f"int:{seed}{rest}") for seed in seeds.flatten().tolist()]
    return torch.tensor(found, dtype=torch.int64).view_as(seeds)


def normal(
    seeds: Tensor,
    shape: tuple[int, ...],
    *,
    stream: int,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Standard normal [N, *shape]; row i is a function of ``(seeds[i], stream)`` alone.

    Drawn on the CPU in float32 whatever the device, so a run gives the same noise on every machine.
    """
    device = torch.device(device or "cpu")
    out = torch.empty((len(seeds), *shape), pin_memory=pinned(device))
    rows, streams = out.unbind(), _mixed(seeds, stream)
    threads = min(torch.get_num_threads(), len(streams))

    def draw(first: int) -> None:
        generator = torch.Generator()  # one for many rows: making it takes longer than drawing a few numbers
        for row in range(first, len(rows), threads):
            rows[row].normal_(generator=generator.manual_seed(streams[row]))

    if threads > 1 and out.numel() >= WORTHWHILE:  # torch lets go of Python's lock while it draws
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(draw, range(threads)))
    elif len(rows):
        threads = 1
        draw(0)
    return put(out, device, dtype)


def uniform(seeds: Tensor, shape: tuple[int, ...], *, stream: int) -> Tensor:
    """Uniform [0, 1) float64 [N, *shape]; row i is a function of ``(seeds[i], stream)`` alone."""
    out, generator = torch.empty((len(seeds), *shape), dtype=torch.float64), torch.Generator()
    for row, mixed in zip(out.unbind(), _mixed(seeds, stream), strict=True):
        row.uniform_(generator=generator.manual_seed(mixed))
    return out


def permutation(seed: int, count: int) -> Tensor:
    """[count] a random order, a function of the seed alone."""
    (mixed,) = _mixed(torch.tensor([seed]), 0)
    return torch.randperm(count, generator=torch.Generator().manual_seed(mixed))


def _mixed(seeds: Tensor, stream: int) -> list[int]:
    """What generators are seeded with. A linear mix is enough: seeds are hashes already, and Mersenne Twister
    re-scrambles its seed."""
    of_stream = 0x9E3779B97F4A7C15 * (stream + 1)
    return [(seed + of_stream) & 0x7FFFFFFFFFFFFFFF for seed in seeds.tolist()]
