"""Equally many forwards on every process, for a network whose weights are gathered from all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


class Pace:
    """Processes that share a split network have to run it equally often, because each gathers its weights from all.
    Inside `own` this process may run it more or less often than others, as in sampling, where rows end: every process
    announces its forwards, and goes on with a stand-in for as long as another computes. Without gradient alone."""

    def __init__(self) -> None:
        import torch.distributed as dist

        self._group: Any = dist.new_group(backend="gloo")  # votes are of the host: no device is waited for
        self._open = False
        self.stand_in: Callable[[], object] | None = None
        """A forward of any size; the first one that was run."""

    def announce(self, again: Callable[[], object]) -> None:
        """Before each forward, which ``again`` would repeat."""
        if self.stand_in is None:
            self.stand_in = again
        if self._open:
            self._anybody(True)

    @contextmanager
    def own(self) -> Iterator[None]:
        """See the class. What is raised inside is raised when all processes are through."""
        self._open = True
        try:
            yield
        finally:
            self._open = False
            while self._anybody(False):
                assert self.stand_in is not None, "a network is run when it is loaded"
                with torch.no_grad():
                    self.stand_in()

    def most(self, count: int) -> int:
        """The largest of all processes' counts."""
        found = torch.tensor([count])
        torch.distributed.all_reduce(found, op=torch.distributed.ReduceOp.MAX, group=self._group)
        return int(found)

    def _anybody(self, here: bool) -> bool:
        """Whether any process computes a forward now."""
        return self.most(int(here)) > 0
