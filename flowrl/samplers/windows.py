"""Which steps of a sampler are stochastic, and which of them are recorded to be trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from flowrl.math.random import derive
from flowrl.types import Draw


@dataclass(frozen=True)
class StepRanges:
    """Indices of steps, each a contiguous range."""

    stochastic: range
    recorded: range
    densities: bool = True
    """Whether steps are recorded with the density of their noise, or states alone."""


class Window(Protocol):
    """Which steps are stochastic and recorded."""

    def __call__(self, steps: int, draw: Draw, noisy: int | None = None) -> StepRanges:
        """Of ``steps`` in all, of which the last after ``noisy`` have next to no noise (None: not known yet). Raises
        `ValueError` where none is left to train."""
        ...

    def recordable(self, steps: int, noisy: int | None = None) -> range:
        """The steps that may be recorded, in whatever iteration."""
        ...


@dataclass(frozen=True)
class EveryStep:
    """All steps stochastic, all but the last ``drop`` recorded (a last step has so little noise that its gradient
    explodes). ``drop=None`` leaves out the last steps whose noise is negligible on the model's own grid, however many
    they are (`flowrl.math.flow.negligible`)."""

    drop: int | None = 1

    def __call__(self, steps: int, draw: Draw, noisy: int | None = None) -> StepRanges:
        return StepRanges(range(steps), self.recordable(steps, noisy))

    def recordable(self, steps: int, noisy: int | None = None) -> range:
        """The steps that may be recorded."""
        kept = (steps if noisy is None else noisy) if self.drop is None else steps - self.drop
        if kept < 1:
            why = "none has noise enough" if self.drop is None else f"{self.drop} are dropped"
            raise ValueError(f"sampler.steps={steps} leaves no step to train, because {why}; use more")
        return range(kept)


@dataclass(frozen=True)
class RandomWindow:
    """``size`` steps that lie in the first ``stop`` of all, at a place drawn uniformly and shared by an iteration.
    Flow-GRPO-Fast: ``start = randint(0, stop * steps - size)``, both ends included, so 0 to 2 of ten steps.

    The released code draws a place per call of the pipeline, so members of a group differ in it. Here they do not,
    because a window per sample puts its own variance into the group's rewards.
    """

    size: int = 3
    stop: float = 0.5

    def __call__(self, steps: int, draw: Draw, noisy: int | None = None) -> StepRanges:
        starts = len(self.recordable(steps)) - self.size + 1
        return _window(derive(draw.shared_seed, "window") % starts, self.size, steps)

    def recordable(self, steps: int, noisy: int | None = None) -> range:
        """The steps that may be recorded."""
        end = int(steps * self.stop)
        if not 1 <= self.size <= end:
            raise ValueError(
                f"a window of size={self.size} does not fit into the first {end} of {steps} steps (stop={self.stop}); "
                "lower its size, or raise stop or sampler.steps"
            )
        return range(end)


@dataclass(frozen=True)
class SlidingWindow:
    """A window that moves by ``stride`` every ``every`` iterations and returns to the start. MixGRPO
    (arXiv:2507.21802).

    The last step is never stochastic and the window is never empty. (The released code bounds the window one step
    earlier and can reach an empty one.) ``order="random"`` draws the position anew in each iteration.
    """

    size: int = 4
    stride: int = 1
    every: int = 25
    order: Literal["progressive", "random"] = "progressive"

    def __call__(self, steps: int, draw: Draw, noisy: int | None = None) -> StepRanges:
        positions = max(1, steps - self.size)
        if self.order == "random":
            return _window(derive(draw.shared_seed, "window") % positions, self.size, steps)
        visited = range(0, positions, max(1, self.stride))
        return _window(visited[(draw.iteration // self.every) % len(visited)], self.size, steps)

    def recordable(self, steps: int, noisy: int | None = None) -> range:
        """The steps that may be recorded."""
        return range(max(1, steps - 1))


@dataclass(frozen=True)
class LastSteps:
    """The last ``count`` steps (``None``, and where there are fewer: all) are recorded as states alone, without the
    densities of their noise, so that they may have none: what a replay goes on from (`flowrl.estimators.pathwise`).
    ``noise`` makes all steps stochastic, otherwise none is; ``densities`` records those of their noise as well, to
    train the last steps of a chain alone (DPPO)."""

    count: int | None = None
    noise: bool = False
    densities: bool = False

    def __post_init__(self) -> None:
        if self.count is not None and self.count < 1:
            raise ValueError(f"a window of the last count={self.count} steps records nothing; give 1 or more, or null")
        if self.densities and not self.noise:
            raise ValueError("densities are those of the steps' noise: set noise=true as well")

    def __call__(self, steps: int, draw: Draw, noisy: int | None = None) -> StepRanges:
        return StepRanges(range(steps if self.noise else 0), self.recordable(steps), densities=self.densities)

    def recordable(self, steps: int, noisy: int | None = None) -> range:
        """The steps that are recorded."""
        return range(steps - min(self.count or steps, steps), steps)


def _window(start: int, size: int, steps: int) -> StepRanges:
    if not 1 <= size < steps:
        raise ValueError(f"a window of size={size} needs between 1 and sampler.steps - 1 = {steps - 1} steps")
    return StepRanges(range(start, start + size), range(start, start + size))
