"""Drawing prompts without state."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flowrl.math.random import derive, permutation
from flowrl.types import Prompt


@dataclass(frozen=True)
class PromptSet:
    """Prompts in a fixed order; a prompt's id is its place in it."""

    prompts: tuple[Prompt, ...]
    folder: Path | None = None
    """Of the file that they are from: where the pictures are that its columns name; ``None`` where there is none."""

    def __len__(self) -> int:
        return len(self.prompts)

    def draw(self, iteration: int, count: int, seed: int, number: int = 0) -> list[Prompt]:
        """``count`` prompts of one epoch's random order, distinct when ``count <= len(self)``; every epoch has its own
        order. A later round of the same iteration (``number`` > 0) takes others, in an order of that iteration's own:
        a prompt comes back only when all have been drawn.

        A pure function of its arguments, so a resumed run goes on exactly where it was.
        """
        size = len(self.prompts)
        if number > 0:
            first = {prompt.id for prompt in self.draw(iteration, count, seed)}
            order = permutation(derive(seed, "further prompts", iteration), size).tolist()
            order.sort(key=lambda i: self.prompts[i].id in first)  # stable: those of the first round come last
            start = (number - 1) * count
            return [self.prompts[order[i % size]] for i in range(start, start + count)]
        if count > size:
            return [self.prompts[i] for i in _endless(size, iteration * count, count, seed)]
        per_epoch = size // count
        # An epoch ends where the next draw would not fit; which prompts are left over differs from epoch to epoch.
        epoch, place = divmod(iteration, per_epoch)
        order = permutation(derive(seed, "prompts", epoch), size).tolist()
        return [self.prompts[i] for i in order[place * count : (place + 1) * count]]


def _endless(size: int, start: int, count: int, seed: int) -> Iterator[int]:
    for position in range(start, start + count):
        epoch, place = divmod(position, size)
        yield int(permutation(derive(seed, "prompts", epoch), size)[place])
