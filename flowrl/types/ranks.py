"""What the loop knows of the processes that train together.

Every process samples, decodes, scores and probes the groups of its share. What is small, numbers per sample [N] or per
decision [N, D], is gathered and computed by every process alike; gradients are summed. All processes must make the same
calls in the same order, with tensors of the same type and, but for the first axis of `gather`, the same shape.
"""

from __future__ import annotations

from typing import Protocol

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
