"""How prompts and completions are laid out as calls of a network, and where in its output each prediction is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from flowrl.models.text.condition import TextCondition

WORTHWHILE_PADDING = 512
"""Tokens of padding that cost about as much as another call of the network: tens of milliseconds either way."""


@dataclass(frozen=True)
class Forward:
    """One call of the network; everything on the CPU."""

    inputs: dict[str, Tensor]
    rows: Tensor  # [k] int64: row of the output
    columns: Tensor  # [k] int64: position in that row
    place: Tensor
    """[k] int64: which of the N * T positions of the completions the prediction is for."""
    inside: Tensor | None = None
    """[n, W] bool: the places of prompts and completions, the rest being padding; ``None`` where rows do not stand for
    one completion each."""


class TokenLayout(Protocol):
    """A way to ask a network about positions of completions."""

    def __call__(self, condition: TextCondition, tokens: Tensor, targets: Tensor) -> Iterator[Forward]:
        """Calls that together cover the True entries of ``targets`` [N, T], for inputs ``tokens`` [N, T]."""
        ...

    def fallbacks(self) -> list[TokenLayout]:
        """Slower layouts to fall back on where a model does not bear this one."""
        ...


@dataclass(frozen=True)
class Sequences:
    """Prompt and completion one after the other, rows of unequal length padded on the right.

    Padding on the right changes no position, and for an autoregressive model nothing at all.
    """

    shift: bool
    """The prediction for position i is read at i - 1."""
    causal: bool
    """Only what precedes the last target matters, so the rest is not computed."""
    padded: bool
    """Whether prompts of unequal length may share a call, with an attention mask; else there is one per length."""
    pad: int
    broad: bool = False
    """Whether the attention mask is [n, 1, 1, W] bool instead of [n, W], which Dream hands on to torch as it is."""

    def __call__(self, condition: TextCondition, tokens: Tensor, targets: Tensor) -> Iterator[Forward]:
        asked = targets.any(dim=1).nonzero()[:, 0]
        used = torch.full((len(asked),), tokens.shape[1])
        if self.causal:
            used -= 1 + targets[asked].flip(1).int().argmax(dim=1)  # tokens before the last target
        lengths = condition.row_lengths[asked]
        if self.causal or self.padded:
            groups = length_groups(lengths + used)
        else:
            groups = [(lengths == n).nonzero()[:, 0] for n in lengths.unique()]
        for group in groups:
            yield self._call(condition, tokens, targets, asked[group], used[group])

    def fallbacks(self) -> list[TokenLayout]:
        """The other kind of mask, and one call per prompt length."""
        if self.causal or not self.padded:
            return []
        return [replace(self, broad=True), replace(self, padded=False)]

    def _call(self, condition: TextCondition, tokens: Tensor, targets: Tensor, rows: Tensor, used: Tensor) -> Forward:
        length = tokens.shape[1]
        ids, inside = join(condition, tokens, rows, used, self.pad)
        inputs = {"input_ids": ids}
        if not self.causal and not bool(inside.all()):
            inputs["attention_mask"] = inside[:, None, None] if self.broad else inside.long()
        row, place = targets[rows].nonzero(as_tuple=True)
        columns = condition.row_lengths[rows][row] + place - int(self.shift or self.causal)
        return Forward(inputs, row, columns, rows[row] * length + place, inside)


def length_groups(lengths: Tensor) -> list[Tensor]:
    """Rows [n] of these lengths in groups of similar ones: a group is split where that saves `WORTHWHILE_PADDING`
    tokens of padding."""

    def split(rows: Tensor, sorted_lengths: Tensor) -> list[Tensor]:
        shorter = torch.arange(len(rows) - 1) + 1
        saved = shorter * (sorted_lengths[-1] - sorted_lengths[:-1]) if len(rows) > 1 else torch.zeros(1)
        if int(saved.max()) < WORTHWHILE_PADDING:
            return [rows.sort().values]
        k = int(saved.argmax()) + 1
        return [*split(rows[:k], sorted_lengths[:k]), *split(rows[k:], sorted_lengths[k:])]

    ordered, rows = lengths.sort(stable=True)
    return split(rows, ordered) if len(rows) else []


def join(condition: TextCondition, tokens: Tensor, rows: Tensor, used: Tensor, pad: int) -> tuple[Tensor, Tensor]:
    """``(ids, inside)`` [n, W]: the prompts of some rows, then ``used`` [n] tokens of their completions, then
    padding."""
    chosen = condition.index[rows]
    lengths = condition.lengths[chosen]
    column = torch.arange(int((lengths + used).max()))
    ids = torch.full((len(rows), len(column)), pad, dtype=torch.int64)
    width = min(condition.prompts.shape[1], len(column))
    ids[:, :width] = condition.prompts[chosen][:, :width]
    behind = column - lengths[:, None]
    completion = tokens[rows].gather(1, behind.clamp(0, tokens.shape[1] - 1))
    inside = behind < used[:, None]
    return torch.where(behind < 0, ids, torch.where(inside, completion, pad)), inside


def join_left(prompts: Tensor, lengths: Tensor, pad: int) -> tuple[Tensor, Tensor]:
    """``(ids, inside)`` [n, W]: prompts that end in the same column, padding before them."""
    width = int(lengths.max())
    source = torch.arange(width) - (width - lengths[:, None])
    ids = prompts.gather(1, source.clamp(min=0))
    return torch.where(source >= 0, ids, pad), source >= 0
