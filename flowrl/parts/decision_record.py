"""Numbers per decision of a few samples, kept for people to look at."""

from __future__ import annotations

import torch
from torch import Tensor

from flowrl.devices import put, to_host
from flowrl.types import Likelihood


class DecisionRecord:
    """Advantage and entropy of every decision of the samples ``rows`` [k], by their numbers among all; of
    none by default.

    What is noted stays on the device until `entropy` is asked for, so that an update does not wait for it.
    """

    def __init__(self, rows: Tensor | None = None) -> None:
        self.rows = torch.zeros(0, dtype=torch.int64) if rows is None else rows
        self.advantage: Tensor | None = None
        """[k, D] what they were trained with; of channels [k, D, C]."""
        self._noted: list[tuple[Tensor, slice, Tensor]] = []

    def begin(self, advantage: Tensor) -> None:
        """Keep the advantages of these samples, of those [N, D] of all."""
        self.advantage = advantage[self.rows]

    def note(self, numbers: Tensor, decisions: slice, live: Likelihood) -> None:
        """Keep what a block of samples [n] tells of the entropy of its distributions, in nats."""
        entropy, wanted = live.extra.get("entropy"), torch.isin(numbers, self.rows).nonzero()[:, 0]
        if entropy is not None and len(wanted):
            self._noted.append((numbers[wanted], decisions, entropy.detach()[put(wanted, entropy.device)]))

    def entropy(self) -> Tensor | None:
        """[k, D] as it was when they were first trained on, NaN for what was not; None where nothing was noted."""
        if not self._noted or self.advantage is None:
            return None
        found = torch.full(self.advantage.shape[:2], torch.nan, dtype=torch.float64)
        for (numbers, decisions, _), value in zip(
            reversed(self._noted), reversed(to_host([value for *_, value in self._noted])), strict=True
        ):
            found[(numbers[:, None] == self.rows).int().argmax(dim=1), decisions] = value.double()
        return found
