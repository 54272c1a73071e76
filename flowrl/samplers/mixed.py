"""Demonstrations beside the policy's own samples, in one group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from flowrl.math.flow import interpolate
from flowrl.math.random import normal
from flowrl.samplers.causal import CausalSampler
from flowrl.samplers.chunks import interleaved
from flowrl.samplers.flow import INITIAL_NOISE, FlowSampler
from flowrl.samplers.recorded import Recorded
from flowrl.samplers.windows import LastSteps
from flowrl.types import Draw, Prompt, Rollout, Sampler, Steps, TokenTrace


@dataclass(frozen=True, kw_only=True)
class Mixed:
    """The first samples of a group from the prompt's ``columns``, as `Recorded` reads them, the others from the policy.

    ``data.group`` counts both. Demonstrations are scored like any other sample, and move no baseline unless the
    advantage takes them in (`AllSources`); of their likelihood nothing is recorded. Their decisions are measured at the
    sampler's temperature.

    Where the sampler records steps, a picture has a straight path from its own initial noise in their place,
    ``x_t = (1 - t) clean + t noise`` at the same times: what the policy would have gone through had it made the picture
    by the right velocity, ``noise - clean``, all along.
    """

    sampler: Sampler
    columns: tuple[str, ...] = ("completion",)

    def __post_init__(self) -> None:
        window = self.sampler.window if isinstance(self.sampler, FlowSampler) else None
        if isinstance(window, LastSteps) or not isinstance(self.sampler, CausalSampler | FlowSampler):
            raise ValueError(
                f"sampler={type(self.sampler).__name__}: demonstrations go beside completions of an autoregressive "
                "model or pictures whose steps are not replayed; use a CausalSampler, or a FlowSampler without the "
                "window LastSteps"
            )
        _ = self.data  # which says what is wrong with columns

    @property
    def data(self) -> Recorded:
        """What reads the demonstrations."""
        return Recorded(sampler=self.sampler, columns=self.columns)

    @property
    def family(self) -> str:
        """The models that it is for: those of its sampler."""
        return getattr(self.sampler, "family", "")

    @property
    def length(self) -> int:
        """Tokens of a completion, at most."""
        return getattr(self.sampler, "length", 0)

    @property
    def temperature(self) -> float:
        """Of the policy's own samples."""
        return getattr(self.sampler, "temperature", 1.0)

    @property
    def forwards(self) -> int:
        return self.sampler.forwards

    @property
    def recorded(self) -> int:
        return self.sampler.recorded

    def heldout(self, steps: int | None, guidance: float | None, temperature: float | None) -> Sampler:
        """The policy alone."""
        return self.sampler.heldout(steps, guidance, temperature)

    def prepared(self, prompts: Sequence[Prompt], where: str) -> list[Prompt]:
        """The prompts of a data set, checked as `Recorded` does."""
        return self.data.prepared(prompts, where)

    def texts(self, prompt: Prompt) -> list[str]:
        """The demonstrations that a prompt has."""
        return self.data.texts(prompt)

    def __call__(self, policy: Any, condition: Any, draw: Draw) -> Rollout:
        told = draw.place < len(self.columns)
        parts: list[tuple[Tensor, Rollout]] = []
        for sampler, chosen in ((self.sampler, ~told), (self.data, told)):
            rows = chosen.nonzero()[:, 0]
            if len(rows):
                made = _complete(sampler(policy, condition.take(rows), draw.take(rows)))
                parts.append((rows, made if chosen is not told else self._on_paths(made, draw.take(rows))))
        return interleaved(parts, condition, draw.group)

    def _on_paths(self, made: Rollout, draw: Draw) -> Rollout:
        """Data with straight paths as steps, where the sampler records steps."""
        sampler, times = self.sampler, made.times
        if not isinstance(sampler, FlowSampler) or sampler.window is None or times is None:
            return made
        steps, clean = sampler.step_ranges(draw, times).recorded, made.final.float().cpu()
        grid = times[steps.start : steps.stop + 1].cpu()
        noise = normal(draw.seeds, tuple(clean.shape[1:]), stream=INITIAL_NOISE)
        states = torch.stack([interpolate(clean, noise, t.expand(len(clean))) for t in grid], dim=1)
        wide = grid.expand(len(clean), -1)
        unknown = torch.full((len(clean), len(steps)), torch.nan, dtype=torch.float64)
        mean = torch.full_like(states[:, 1:], torch.nan) if sampler.record_mean else None
        trace = Steps(states, wide[:, :-1], wide[:, 1:], unknown, sampler.dynamics, sampler.guidance, mean)
        return replace(made, trace=trace)


def _complete(made: Rollout) -> Rollout:
    """With feedback, NaN of what nobody says anything of, and log-probabilities, NaN of what was not drawn."""
    if made.feedback is None:
        made = replace(made, feedback=torch.full((len(made.group),), torch.nan, dtype=torch.float64))
    trace = made.trace
    if isinstance(trace, TokenTrace) and trace.logp is None:
        trace = replace(trace, logp=torch.full(trace.tokens.shape, torch.nan))
    return replace(made, trace=trace)
