"""Which steps of a sampler are stochastic, and which of them are recorded to be trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from flowrl.math.random import derive
from flowrl.types import Draw


@dataclass(frozen=True)
class Plan:
    """Indices of steps, each a contiguous range."""

    stochastic: range
    recorded: range


@dataclass(frozen=True)
class EveryStep:
    """All steps stochastic; the last ``drop`` are not recorded (their noise is so small that its gradient explodes)."""

    drop: int = 1

    def __call__(self, steps: int, draw: Draw) -> Plan:
        if steps <= self.drop:
            raise ValueError(f"sampler.steps={steps} leaves no step to train after dropping {self.drop}; use more")
        return Plan(range(steps), range(steps - self.drop))


@dataclass(frozen=True)
class RandomWindow:
    """``size`` steps starting uniformly in ``[0, stop * steps)``, the same for all samples of an iteration.
    Flow-GRPO-Fast.

    One window for the whole iteration, because a window per sample puts its own variance into the group's rewards.
    """

    size: int = 3
    stop: float = 0.5

    def __call__(self, steps: int, draw: Draw) -> Plan:
        starts = max(1, min(int(steps * self.stop), steps - self.size))
        return _window(derive(draw.shared_seed, "window") % starts, self.size, steps)


@dataclass(frozen=True)
class SlidingWindow:
    """A window that moves by ``stride`` every ``every`` iterations and returns to the start. MixGRPO
    (arXiv:2507.21802).

    The last step is never stochastic and the window is never empty. (The released code bounds the window one step
    earlier
    and can reach an empty one.) ``order="random"`` draws the position anew in each iteration.
    """

    size: int = 4
    stride: int = 1
    every: int = 25
    order: Literal["progressive", "random"] = "progressive"

    def __call__(self, steps: int, draw: Draw) -> Plan:
        positions = max(1, steps - self.size)
        if self.order == "random":
            return _window(derive(draw.shared_seed, "window") % positions, self.size, steps)
        visited = range(0, positions, max(1, self.stride))
        return _window(visited[(draw.iteration // self.every) % len(visited)], self.size, steps)


def _window(start: int, size: int, steps: int) -> Plan:
    if not 1 <= size < steps:
        raise ValueError(f"a window of size={size} needs between 1 and sampler.steps - 1 = {steps - 1} steps")
    return Plan(range(start, start + size), range(start, start + size))


Window = EveryStep | RandomWindow | SlidingWindow
