"""Iterations of the policy's own samples, and others of a data set's or a teacher's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from flowrl.math.random import uniform
from flowrl.samplers.mixed import Mixed
from flowrl.types import DATA, Draw, Prompt, Rollout, TokenTrace

COIN_STREAM = 1013  # far from the streams of samples and decisions


@dataclass(frozen=True, kw_only=True)
class Alternating(Mixed):
    """All samples of an iteration from the policy, with probability ``share``; otherwise from the first of the prompt's
    ``columns``, or, where it is named, from the policy ``to``. GKD (arXiv:2306.13649, algorithm 1: lambda, a coin for
    every batch).

    Of what is not the policy's own, no likelihood is recorded.
    """

    share: float = 0.5
    to: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"share={self.share} is a probability, that of own samples: give 0 to 1")
        if not self.to:
            super().__post_init__()

    @property
    def weight_sets(self) -> tuple[str, ...]:
        """Policies that it asks besides the policy's own weights."""
        return (self.to,) if self.to else ()

    def prepared(self, prompts: Sequence[Prompt], where: str) -> list[Prompt]:
        """The prompts of a data set; checked for completions where these are read."""
        return list(prompts) if self.to or self.share == 1 else super().prepared(prompts, where)

    def __call__(self, policy: Any, condition: Any, draw: Draw) -> Rollout:
        if float(uniform(torch.tensor([draw.shared_seed]), (), stream=COIN_STREAM)[0]) < self.share:
            return self.sampler(policy, condition, draw)
        if not self.to:
            return self.data(policy, condition, replace(draw, place=torch.zeros_like(draw.place)))
        with policy.using(self.to) as other:
            made = self.sampler(other, condition, draw)
        trace = made.trace
        assert isinstance(trace, TokenTrace), "completions"
        return replace(made, trace=replace(trace, logp=None), source=torch.full_like(made.source, DATA))
