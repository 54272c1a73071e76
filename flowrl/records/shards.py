"""Tensors that several processes hold together, in files of their own: each process writes its parts, any number of
processes reads them again, tensor by tensor.

``shard_00000.safetensors`` holds the parts of rank 0 and says, under the key ``parts`` of its header, the shape of each
whole tensor and where in it the part begins.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from flowrl.errors import UserError
from flowrl.models.sharding import is_sharded, offset_of

PATTERN = "shard_*.safetensors"
PARTS = "parts"
"""Key of the header."""


def split_off(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """``(whole, parts)``: what every process holds alike, and what it holds a part of."""
    parts = {name: tensor for name, tensor in tensors.items() if is_sharded(tensor)}
    return {name: tensor for name, tensor in tensors.items() if name not in parts}, parts


def write_shard(folder: Path, rank: int, parts: Mapping[str, Tensor]) -> Path:
    """Write what this process holds of ``parts`` into ``folder``."""
    held, places = {}, {}
    for name, tensor in parts.items():
        split: Any = tensor
        own = split.to_local().detach()
        places[name] = {"shape": list(tensor.shape), "start": list(offset_of(tensor))}
        if own.numel():
            held[name] = own.cpu().contiguous().clone()  # safetensors refuses views of one memory
    path = folder / f"shard_{rank:05d}.safetensors"
    save_file(held, path, {PARTS: json.dumps(places)})
    return path


class StoredTensors(Mapping[str, Tensor]):
    """Tensors by name: those given, and those whose parts lie in files, each put together when it is asked for."""

    def __init__(self, whole: Mapping[str, Tensor], files: list[Path]) -> None:
        self.whole, self.files = whole, files
        self._parts: dict[str, list[tuple[Path, list[int]]]] = {}
        self._shapes: dict[str, list[int]] = {}
        for file in files:
            with safe_open(file, framework="pt") as opened:
                places, held = json.loads(opened.metadata()[PARTS]), set(opened.keys())
            for name, place in places.items():
                self._shapes[name] = place["shape"]
                self._parts.setdefault(name, []).extend([(file, place["start"])] if name in held else [])

    def __getitem__(self, name: str) -> Tensor:
        if name in self.whole:
            return self.whole[name]
        found: Tensor | None = None
        filled = 0
        for file, start in self._parts[name]:
            with safe_open(file, framework="pt") as opened:
                part = opened.get_tensor(name)
            found = torch.empty(self._shapes[name], dtype=part.dtype) if found is None else found
            view = found
            for axis, (first, size) in enumerate(zip(start, part.shape, strict=True)):
                view = view.narrow(axis, first, size)
            view.copy_(part)
            filled += part.numel()
        if found is None or filled != found.numel():
            raise UserError(f"the checkpoint holds {filled} numbers of {name}, whose shape is {self._shapes[name]}")
        return found

    def __iter__(self) -> Iterator[str]:
        yield from self.whole
        yield from self._parts

    def __len__(self) -> int:
        return len(self.whole) + len(self._parts)


class _Below(Mapping[str, Tensor]):
    def __init__(self, tensors: Mapping[str, Tensor], prefix: str) -> None:
        self._tensors, self._prefix = tensors, prefix
        self._names = [name.removeprefix(prefix) for name in tensors if name.startswith(prefix)]

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[self._prefix + name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def below(tensors: Mapping[str, Tensor], prefix: str) -> Mapping[str, Tensor]:
    """Those of the tensors whose names begin with ``prefix``, by what follows it; none is read before it is asked
    for."""
    return _Below(tensors, prefix)
