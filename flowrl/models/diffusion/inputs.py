"""What of a denoiser's inputs belongs to a prompt and what is shared: told apart by running with two batch sizes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowrl.errors import UserError

LeafPath = tuple[str | int, ...]
"""Keys that lead to a value nested in dicts, lists and tuples."""


@dataclass(frozen=True)
class BatchAxis:
    """How a leaf holds ``branches * n`` rows: along a tensor axis, or as the entries of a list."""

    axis: int | None
    """``None`` for a list."""
    branches: int

    def repeats(self, branches: int) -> int:
        """Rows of one prompt in a call of so many branches: AnimateDiff repeats the text for every frame."""
        return 1 if self.branches % branches else self.branches // branches


class InputLayout:
    """Which leaves of a call's inputs are batched; found from the inputs for ``few`` and for ``many`` prompts."""

    def __init__(self, few: dict[str, Any], many: dict[str, Any], n_few: int, n_many: int) -> None:
        self.batched: dict[LeafPath, BatchAxis] = {}
        self._counts = (n_few, n_many)
        if few.keys() != many.keys():
            raise UserError("the pipeline calls its denoiser with different arguments for different batch sizes")
        for key in few:
            self._compare(few[key], many[key], (key,))

    def leaves(self, inputs: dict[str, Any]) -> Iterator[tuple[LeafPath, Any]]:
        """Every leaf of the inputs; a batched list is one leaf."""
        for key, value in inputs.items():
            yield from self._walk(value, (key,))

    def build(self, template: dict[str, Any], values: dict[LeafPath, Any]) -> dict[str, Any]:
        """``template`` with the leaves of ``values`` in their places."""
        return {key: self._fill(value, (key,), values) for key, value in template.items()}

    def _compare(self, few: Any, many: Any, path: LeafPath) -> None:
        if isinstance(few, Tensor):
            grown = [a for a in range(few.ndim) if few.shape[a] != many.shape[a]]
            if not grown:
                return
            axis = grown[0]
            branches = self._branches(few.shape[axis], many.shape[axis], path)
            if len(grown) > 1:
                raise UserError(
                    f"denoiser input {_name(path)} depends on the batch in {len(grown)} dimensions; unsupported"
                )
            self.batched[path] = BatchAxis(axis, branches)
        elif isinstance(few, dict):
            for key in few:
                self._compare(few[key], many[key], (*path, key))
        elif isinstance(few, (list, tuple)):
            if len(few) != len(many):
                self.batched[path] = BatchAxis(None, self._branches(len(few), len(many), path))
                return
            for index, (left, right) in enumerate(zip(few, many, strict=True)):
                self._compare(left, right, (*path, index))
        elif few != many and not callable(few):
            raise UserError(f"denoiser input {_name(path)} depends on the batch size ({few!r}, {many!r}); unsupported")

    def _branches(self, few: int, many: int, path: LeafPath) -> int:
        n_few, n_many = self._counts
        if few * n_many != many * n_few:
            raise UserError(f"denoiser input {_name(path)} does not grow with the number of prompts; unsupported")
        return few // n_few

    def _walk(self, value: Any, path: LeafPath) -> Iterator[tuple[LeafPath, Any]]:
        if path in self.batched or not isinstance(value, (dict, list, tuple)):
            yield path, value
        elif isinstance(value, dict):
            for key, inner in value.items():
                yield from self._walk(inner, (*path, key))
        else:
            for index, inner in enumerate(value):
                yield from self._walk(inner, (*path, index))

    def _fill(self, value: Any, path: LeafPath, values: dict[LeafPath, Any]) -> Any:
        if path in values:
            return values[path]
        if path in self.batched or not isinstance(value, (dict, list, tuple)):
            return value
        if isinstance(value, dict):
            return {key: self._fill(inner, (*path, key), values) for key, inner in value.items()}
        filled = [self._fill(inner, (*path, index), values) for index, inner in enumerate(value)]
        return filled if isinstance(value, list) else tuple(filled)


def split(value: Any, kind: BatchAxis, branches: int) -> list[Any]:
    """The leaf's rows of each branch, batch first: tensors [n, ...] or lists of n; [n, repeats, ...] where the leaf
    holds a prompt several times in a row."""
    if isinstance(value, Tensor):
        rows = value.movedim(kind.axis or 0, 0)
        if kind.branches % branches:
            return [rows] * branches
        parts = rows.chunk(branches)
        repeats = kind.repeats(branches)
        return list(parts) if repeats == 1 else [part.unflatten(0, (-1, repeats)) for part in parts]
    size = len(value) // kind.branches
    parts = [list(value[i * size : (i + 1) * size]) for i in range(kind.branches)]
    return parts if kind.branches == branches else parts * branches


def join(rows: Any, kind: BatchAxis, branches: int) -> Any:
    """The inverse of :func:`split` for one branch or several already concatenated."""
    if isinstance(rows, Tensor) and kind.repeats(branches) > 1:
        rows = rows.flatten(0, 1)
    return rows.movedim(0, kind.axis) if isinstance(rows, Tensor) and kind.axis else rows


def pick(rows: Any, index: Tensor) -> Any:
    """Rows ``index`` of a batch-first leaf."""
    if isinstance(rows, Tensor):
        return rows.index_select(0, index)
    return [rows[i] for i in index.tolist()]


def same(left: Any, right: Any) -> bool:
    """Equality of leaves, tensors by content."""
    if left is right:
        return True
    if isinstance(left, Tensor):
        return isinstance(right, Tensor) and left.shape == right.shape and bool(torch.equal(left, right))
    if isinstance(left, (list, tuple)):
        return isinstance(right, (list, tuple)) and len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return isinstance(right, dict) and left.keys() == right.keys() and all(same(left[k], right[k]) for k in left)
    return type(left) is type(right) and bool(left == right)


def _name(path: LeafPath) -> str:
    return ".".join(str(p) for p in path)
