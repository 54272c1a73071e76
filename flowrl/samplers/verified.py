"""Several candidates of a chunk, of which the one is executed that remembers best what was done before."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from flowrl.math.random import each
from flowrl.samplers.flow import FlowSampler
from flowrl.types import Draw, Rollout, Sampler


@dataclass(frozen=True, kw_only=True)
class PastVerified:
    """``argmin_b mean (past_b - executed)^2`` over ``candidates`` chunks of ``sampler``, whose first ``past`` actions
    (`ControlConfig.past`) are those before the present one, standardised (PTP, arXiv:2505.09561 section 4.3;
    long-context-dp/ldp, 17 May 2025, env_runner/robomimic_longhist_image_runner.py). Of equal ones the first; also
    where an episode has not yet executed so many actions, as there.

    The first candidate is what ``sampler`` alone would make, and candidate b follows from the decision's seed and b, so
    that one candidate is ``sampler`` itself. Nothing of the steps that led to a chunk is recorded.
    """

    family: ClassVar[str] = "control"
    sampler: Sampler = FlowSampler(guidance=1.0)
    candidates: int = 1

    def __post_init__(self) -> None:
        if self.candidates < 1:
            raise ValueError(f"candidates={self.candidates} leaves nothing to choose from; give at least 1")

    @property
    def forwards(self) -> int:
        return self.candidates * self.sampler.forwards

    @property
    def recorded(self) -> int:
        return 0

    def heldout(self, steps: int | None, guidance: float | None, temperature: float | None) -> PastVerified:
        """The same choice among chunks of the sampler's own form for evaluation."""
        return replace(self, sampler=self.sampler.heldout(steps, guidance, temperature))

    @torch.no_grad()
    def __call__(self, policy: Any, condition: Any, draw: Draw) -> Rollout:
        first = self.sampler(policy, condition, draw)
        final, forwards = first.final, first.forwards
        done: Tensor | None = condition.done
        rows = torch.arange(0) if done is None else (~done.isnan()).flatten(1).all(dim=1).nonzero()[:, 0]
        if self.candidates > 1 and done is not None and len(rows) and done.shape[1]:
            wanted, part, some = done[rows].to(final), draw.take(rows), condition.take(rows)
            chosen, best = final[rows], _error(final[rows], wanted)
            for number in range(1, self.candidates):
                made = self.sampler(policy, some, replace(part, seeds=each(part.seeds, "candidate", number)))
                error = _error(made.final, wanted)
                better = error < best
                best, forwards = torch.where(better, error, best), forwards + made.forwards
                chosen = torch.where(better[:, None, None], made.final, chosen)
            final = final.index_copy(0, rows.to(final.device), chosen)
        return Rollout.of(draw, condition, final, times=first.times, forwards=forwards)


def _error(chunks: Tensor, wanted: Tensor) -> Tensor:
    """[n] of chunks [n, h, d] whose first actions should be [n, past, d]."""
    return (chunks[:, : wanted.shape[1]] - wanted).square().flatten(1).mean(dim=1)
