"""Predictions at the states that a sampler visited, of steps that need no noise: what a teacher is compared at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from flowrl.devices import put
from flowrl.estimators.transitions import RecordedRows, predictions
from flowrl.math.flow import mean_of
from flowrl.math.gaussians import mean_square
from flowrl.types import CfgGrad, Condition, FlowPolicy, IncompatibleError, Likelihood, Rollout, Steps


@dataclass(frozen=True, kw_only=True)
class VisitedStates:
    """How far the live predictions are from others at the states of a deterministic sampler, which are data.

    ``prediction/<set>`` is the mean square, over a latent's elements, of the difference of what ``of`` names: the
    ``velocity`` v; the ``next`` state, whose difference is ``(t' - t)`` times that of v; the ``clean`` latent, t times.
    ``logp = -mean (next state - recorded one)^2``, 0 before the first update: the check of the ratio is one of the
    replay. The states are those of a window `flowrl.samplers.windows.LastSteps`.

    drop: so many of the last steps are left out.
    """

    of: Literal["velocity", "next", "clean"] = "velocity"
    drop: int = 0
    cfg_grad: CfgGrad = "both"
    weight_vanishes: ClassVar[bool] = True
    """Nothing is divided by a step's noise."""

    def __post_init__(self) -> None:
        if self.drop < 0:
            raise ValueError(f"drop={self.drop} leaves out the last steps; give 0 or more")

    @property
    def references(self) -> tuple[str, ...]:
        return ()

    @property
    def has_recorded_logp(self) -> bool:
        return True

    def decisions(self, recorded: int) -> tuple[int, int]:
        if recorded <= self.drop:
            raise IncompatibleError(
                f"the sampler records {recorded} states and estimator.drop={self.drop} leaves none; give it the window "
                "last_steps, or lower drop"
            )
        return recorded - self.drop, recorded - self.drop

    def probe(self, rollout: Rollout, policy: FlowPolicy, seeds: Tensor) -> RecordedRows:
        steps = rollout.trace
        if not isinstance(steps, Steps):
            raise IncompatibleError("predictions are compared at states: give the sampler the window last_steps")
        count = self.decisions(steps.t.shape[1])[0]
        event = torch.arange(count).expand(len(steps.t), count)
        sample = torch.arange(len(event))[:, None].expand(event.shape)
        return RecordedRows(steps.t[:, :count], steps.t_next[:, :count], steps, sample, event)

    def recorded_logp(self, rollout: Rollout, rows: RecordedRows) -> Likelihood:
        """Known: replaying it with an unchanged policy must lead to what was recorded."""
        return Likelihood(torch.zeros(rows.shape, dtype=torch.float64))

    def __call__(
        self, policy: FlowPolicy, rows: RecordedRows, condition: Condition, references: Sequence[str] = ()
    ) -> Likelihood:
        n, d = rows.t.shape
        at = predictions(policy, rows, condition, references, self.cfg_grad)
        t, t_next, v = at.t, at.t_next, at.v
        miss = mean_square(mean_of(rows.dynamics, at.x, v, t, t_next) - at.x_next, 1)
        factor = {"velocity": torch.ones_like(t), "next": (t_next - t) ** 2, "clean": t**2}[self.of]
        extra = {}
        for name, other in at.frozen.items():
            square = mean_square(v - other, 1)
            extra[f"prediction/{name}"] = (square * put(factor, square)).reshape(n, d)
        return Likelihood(-miss.reshape(n, d), extra)
