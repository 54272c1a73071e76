"""Prompts as tokens: each unique one once, and which of them every row has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flowrl.math.random import uniform
from flowrl.types import PromptRows

CORRUPTION_STREAM = 3_000_000


@dataclass(frozen=True)
class TextCondition:
    """Implements :class:`flowrl.types.TextCondition`: unique prompts, and which one each row has."""

    prompts: Tensor
    """[U, W] int64 on the CPU; what follows a prompt's end is arbitrary."""
    lengths: Tensor  # [U] int64
    index: Tensor  # [N] int64: the prompt of each row
    origin: PromptRows | None = None
    """What they were made of, where teachers are asked (`flowrl.models.teachers`)."""

    def __len__(self) -> int:
        return len(self.index)

    def take(self, rows: Tensor) -> TextCondition:
        """The condition of the rows with these indices [n] (repeats allowed)."""
        origin = None if self.origin is None else self.origin.take(rows)
        return replace(self, index=self.index[rows.to(self.index.device)], origin=origin)

    def corrupted(self, seeds: Tensor, share: float, token: int) -> TextCondition:
        """Every prompt token replaced by ``token`` with probability ``share``; row i's draw is a function of
        ``seeds[i]`` alone, so each row gets a prompt of its own."""
        prompts, lengths = self.prompts[self.index].clone(), self.lengths[self.index]
        for row, (length, seed) in enumerate(zip(lengths.tolist(), seeds.cpu(), strict=True)):
            coin = uniform(seed[None], (length,), stream=CORRUPTION_STREAM)[0]
            prompts[row, :length][coin < share] = token
        return TextCondition(prompts, lengths, torch.arange(len(prompts)))

    @property
    def row_lengths(self) -> Tensor:
        """[N] int64: prompt tokens of each row."""
        return self.lengths[self.index]

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]], index: Tensor | None = None) -> TextCondition:
        """From lists of token ids, one row each unless ``index`` [N] says otherwise."""
        lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
        prompts = torch.zeros(len(rows), int(lengths.max()) if len(rows) else 0, dtype=torch.int64)
        for place, row in enumerate(rows):
            prompts[place, : len(row)] = torch.tensor(row, dtype=torch.int64)
        return cls(prompts, lengths, torch.arange(len(rows)) if index is None else index)
