"""Demonstrations beside the policy's own samples, in one group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from flowrl.samplers.causal import CausalSampler
from flowrl.samplers.chunks import interleaved
from flowrl.samplers.flow import FlowSampler
from flowrl.samplers.recorded import Recorded
from flowrl.types import Draw, Prompt, Rollout, Sampler, TokenTrace


@dataclass(frozen=True, kw_only=True)
class Mixed:
    """The first samples of a group from the prompt's ``columns``, as `Recorded` reads them, the others from the policy.

    ``data.group`` counts both. Demonstrations are scored like any other sample, and move no baseline unless the
    advantage takes them in (`AllSources`); of their likelihood nothing is recorded. Their decisions are measured at the
    sampler's temperature.
    """

    sampler: Sampler
    columns: tuple[str, ...] = ("completion",)

    def __post_init__(self) -> None:
        traced = isinstance(self.sampler, FlowSampler) and self.sampler.window is not None
        if traced or not isinstance(self.sampler, CausalSampler | FlowSampler):
            raise ValueError(
                f"sampler={type(self.sampler).__name__}: demonstrations go beside completions of an autoregressive "
                "model or pictures whose steps are not recorded; use a CausalSampler, or a FlowSampler without window"
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
                parts.append((rows, _complete(sampler(policy, condition.take(rows), draw.take(rows)))))
        return interleaved(parts, condition, draw.group)


def _complete(made: Rollout) -> Rollout:
    """With feedback, NaN of what nobody says anything of, and log-probabilities, NaN of what was not drawn."""
    if made.feedback is None:
        made = replace(made, feedback=torch.full((len(made.group),), torch.nan, dtype=torch.float64))
    trace = made.trace
    if isinstance(trace, TokenTrace) and trace.logp is None:
        trace = replace(trace, logp=torch.full(trace.tokens.shape, torch.nan))
    return replace(made, trace=trace)
