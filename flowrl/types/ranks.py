"""What the loop knows of the processes that train together.

Every process samples, decodes, scores and probes the groups of its share. What is small, numbers per sample [N] or per
decision [N, D], is gathered and computed by every process alike; gradients are summed. All processes must make the same
calls in the same order, with tensors of the same type and, but for the first axis of `gather`, the same shape.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor


class Ranks(Protocol):
    """The processes of a run."""

    rank: int
    """This process' number; 0 writes files and talks to the terminal."""
    size: int
    """How many processes there are."""

    def share(self, count: int) -> slice:
        """This process' part of ``count`` groups: contiguous, in the order of ranks, sizes differ by at most one; it
        may be empty."""
        ...

    def gather(self, rows: Tensor) -> Tensor:
        """All processes' rows [n, ...] concatenated in the order of ranks, [N, ...]; n may differ, and may be 0. Bytes
        arrive as they are, on the device of the input."""
        ...

    def total(self, value: Tensor) -> Tensor:
        """Sum over processes, on the device of the input, which is left as it was."""
        ...

    def largest(self, value: int) -> int:
        """The largest of all processes' numbers."""
        ...

    def first(self, value: Tensor) -> Tensor:
        """Rank 0's value, on the device of the input, which is of the same shape and type on all."""
        ...

    def texts(self, text: str) -> list[str]:
        """What every process says, in the order of ranks."""
        ...

    def wait(self) -> None:
        """Return when every process has come here."""
        ...


class OneProcess:
    """`Ranks` of a process by itself: every exchange is the identity."""

    rank = 0
    size = 1

    def share(self, count: int) -> slice:
        """All of them."""
        return slice(0, count)

    def gather(self, rows: Tensor) -> Tensor:
        """The rows."""
        return rows

    def total(self, value: Tensor) -> Tensor:
        """The value."""
        return value

    def largest(self, value: int) -> int:
        """The value."""
        return value

    def first(self, value: Tensor) -> Tensor:
        """The value."""
        return value

    def texts(self, text: str) -> list[str]:
        """The text."""
        return [text]

    def wait(self) -> None:
        """Nothing to wait for."""


def exchange(ranks: Ranks, value: Any) -> list[Any]:
    """A small value of every process, in the order of ranks: numbers (exactly), texts, lists and dicts, as JSON has
    them."""
    return [value] if ranks.size == 1 else [json.loads(text) for text in ranks.texts(json.dumps(value))]


@dataclass(frozen=True)
class Share:
    """Which of N samples this process holds, each of which some process holds once."""

    ranks: Ranks
    here: Tensor
    """[n] int64: the number among all N of every row that this process holds; -1 for a spare row, which is sampled so
    that every process has one, and of no consequence."""
    order: Tensor
    """[N] int64: ``here`` of all processes, one after the other, spare rows left out."""

    @classmethod
    def of(cls, ranks: Ranks, here: Tensor) -> Share:
        """A share from the numbers of its rows [n]; all processes call it."""
        return cls(ranks, here, ranks.gather(here[here >= 0]))

    @classmethod
    def alone(cls, count: int) -> Share:
        """All samples, held by one process."""
        every = torch.arange(count)
        return cls(OneProcess(), every, every)

    @classmethod
    def following(cls, ranks: Ranks, count: int, spare: bool = False) -> Share:
        """``count`` rows that follow those of the ranks before; all spare or none."""
        counts = ranks.gather(torch.tensor([0 if spare else count]))
        start = int(counts[: ranks.rank].sum())
        return cls.of(ranks, torch.full((count,), -1) if spare else torch.arange(start, start + count))

    def __len__(self) -> int:
        return len(self.order)

    @cached_property
    def whole(self) -> bool:
        """Whether this process holds all samples, in their order."""
        return self.ranks.size == 1 and torch.equal(self.here, torch.arange(len(self.order)))

    @cached_property
    def _ordered(self) -> bool:
        return torch.equal(self.order, torch.arange(len(self.order)))

    def gather(self, rows: Tensor) -> Tensor:
        """Values [n, ...] of the rows held here to those of all samples [N, ...], bytes as they are."""
        if self.whole:
            return rows
        held = (self.here >= 0).to(rows.device)
        found = self.ranks.gather(rows if bool(held.all()) else rows[held])
        if self._ordered:
            return found
        placed = torch.empty_like(found)
        placed[self.order.to(found.device)] = found
        return placed

    def values(self, rows: Sequence[Any]) -> list[Any]:
        """As `gather`, of a plain value for each row, such as a text."""
        if self.whole:
            return list(rows)
        held = [value for value, number in zip(rows, self.here.tolist(), strict=True) if number >= 0]
        said = [value for part in exchange(self.ranks, held) for value in part]
        return [said[place] for place in self.order.argsort().tolist()]

    def held(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Of the samples ``index`` [k] those that are here, in their order: ``(their numbers, their rows here)``."""
        if self.whole:
            return index, index
        place = torch.full((len(self.order),), -1)
        own = (self.here >= 0).nonzero()[:, 0]
        place[self.here[own]] = own
        rows = place[index]
        return index[rows >= 0], rows[rows >= 0]

    def take(self, index: Tensor) -> tuple[Share, Tensor]:
        """``(the share of samples ``index`` [k] alone, the rows here of those it holds)``."""
        if self.whole:
            return Share.alone(len(index)), index
        number = torch.full((len(self.order),), -1)
        number[index] = torch.arange(len(index))
        numbers, rows = self.held(index)
        return Share.of(self.ranks, number[numbers]), rows
