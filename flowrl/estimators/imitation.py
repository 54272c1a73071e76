"""Errors of chunks of actions that methods of imitation learn: weighted over a chunk, with and without a label, or of
two evaluations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, ClassVar

import torch

from flowrl.devices import wide
from flowrl.estimators.matching import Matching, MatchingRows, Point, point_of
from flowrl.math.flow import clean_of, interpolate
from flowrl.math.gaussians import mean_square
from flowrl.types import Condition, FlowPolicy, Likelihood, Rollout, Rows


@dataclass(frozen=True, kw_only=True)
class ChunkMatching(Matching):
    """`Matching` in which the errors of a chunk's first ``past`` actions (`ControlConfig.past`) have the weight
    ``past_weight`` and the others 1: ``sum_i w_i r_i^2 / sum_i w_i`` over the chunk, the mean over an action's numbers.
    1 is `Matching`; 0 the mean over the present and future ones alone (PTP, arXiv:2505.09561)."""

    past_weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.past_weight >= 0:
            raise ValueError(f"past_weight={self.past_weight} weighs squared errors; give 0 or more")

    def _at(self, policy: Any, rows: MatchingRows, condition: Condition) -> Point:
        point, past = point_of(policy, rows, condition), policy.config.past
        if self.past_weight == 1 or not past:
            return point
        weight = torch.ones(point.clean.shape[1], 1, device=point.clean.device)
        weight[:past] = self.past_weight
        return replace(point, scale=(weight / weight.mean()).sqrt())


@dataclass(frozen=True, kw_only=True)
class LabelledMatching(Matching):
    """`Matching` of a network that hears a label, at the same times and noise twice: first without a label, M numbers,
    then with label 1, M more (CFGRL, arXiv:2505.23458). Which of them are learned is a matter of the advantage
    (`flowrl.parts.episodes.Improved`)."""

    network: ClassVar[Mapping[str, Any]] = MappingProxyType({"conditions": 1})

    def decisions(self, recorded: int) -> tuple[int, int]:
        return 2 * self.draws, 2 * self.draws

    def probe(self, rollout: Rollout, policy: FlowPolicy, seeds: torch.Tensor) -> MatchingRows:
        once = super().probe(rollout, policy, seeds)
        twice = {name: torch.cat([getattr(once, name)] * 2, dim=1) for name in ("seeds", "number", "t")}
        clean = once.clean[:, :1].expand(-1, 2 * self.draws, *once.clean.shape[2:])
        return replace(once, clean=clean, **twice)

    def _at(self, policy: FlowPolicy, rows: MatchingRows, condition: Condition) -> Point:
        point = point_of(policy, rows, condition)
        heard: Any = point.condition
        label = (torch.arange(2 * self.draws) >= self.draws).long().repeat(len(rows.t))
        return replace(point, condition=heard.hearing(label))


@dataclass(frozen=True, kw_only=True)
class TwoEvaluations:
    """Of a network of kind ``mip``, which answers the chunk itself: ``-((1 - tau) / tau)^2 |a_1 - a|^2`` of its answer
    to nothing, and ``-|a_2 - a|^2`` of its answer to ``a + (1 - tau) e``, means over the chunk, tau = .9: the errors
    over tau^2 and (1 - tau)^2 of MIP (arXiv:2512.01809; simchowitzlabpublic/much-ado-about-noising, 26 Mar 2026,
    mip/losses.py, mip_loss), times (1 - tau)^2, so that they are as large as those of other losses."""

    network: ClassVar[Mapping[str, Any]] = MappingProxyType({"kind": "mip"})

    @property
    def references(self) -> tuple[str, ...]:
        return ()

    @property
    def has_recorded_logp(self) -> bool:
        return False

    def decisions(self, recorded: int) -> tuple[int, int]:
        return 2, 2

    def probe(self, rollout: Rollout, policy: Any, seeds: torch.Tensor) -> MatchingRows:
        n, clean = len(seeds), rollout.final.float().cpu()
        t = policy.times(2)[:2].expand(n, -1)
        number = torch.zeros(n, 2, dtype=torch.int64)
        repeated = clean[:, None].expand(-1, 2, *clean.shape[1:])
        return MatchingRows(repeated, seeds[:, None].expand(-1, 2), number, t, 1)

    def recorded_logp(self, rollout: Rollout, rows: Rows) -> None:
        return None

    def __call__(
        self, policy: Any, rows: MatchingRows, condition: Condition, references: Sequence[str] = ()
    ) -> Likelihood:
        point = point_of(policy, rows, condition)
        first = (point.t == 1).to(point.x)[:, None, None]
        x = interpolate(point.clean, point.noise * (1 - first), point.t)  # nothing at time 1, where all would be noise
        answer = clean_of(x, policy.velocity(x, point.t, point.condition), point.t)
        error = mean_square(wide(answer - point.clean), 1).reshape(rows.t.shape)
        second = float(policy.times(2)[1])
        noise = second / (1 - second)  # 1 - tau
        return Likelihood(-error * torch.tensor([(noise / (1 - noise)) ** 2, 1], dtype=error.dtype).to(error.device))
