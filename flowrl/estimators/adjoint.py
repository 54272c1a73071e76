"""Adjoint Matching: regression of steps on the adjoint of the reward, solved back along the recorded trajectory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from flowrl.devices import put
from flowrl.estimators.pathwise import EVENT_STREAM, judge_of, like, recorded_steps
from flowrl.estimators.transitions import RecordedRows
from flowrl.math.flow import mean_of
from flowrl.math.gaussians import mean_square, squared_norm
from flowrl.math.random import uniform
from flowrl.types import CfgGrad, Condition, FlowPolicy, IncompatibleError, Likelihood, Rollout, Steps

REFERENCE = "reference"


@dataclass(frozen=True)
class AdjointRows(RecordedRows):
    """Recorded steps, and how the sample's reward depends on the state after each, had the reference gone on."""

    large: ClassVar[frozenset[str]] = frozenset({"adjoint"})

    adjoint: Tensor  # [N, D, ...]


@dataclass(frozen=True, kw_only=True)
class Adjoint:
    """``logp = -sum ((mean - mean of the reference) / s + s a)^2`` of recorded stochastic steps. Adjoint Matching
    (arXiv:2409.08861; "lean": the adjoint a of the reference's dynamics, without the control's own derivative).

    With ``a_T = -scale grad r(x_T)`` and ``a_k = grad_x <mean_ref(x_k), a_{k+1}>`` along the trajectory. The regression
    drives the policy to ``exp(scale r) p_ref`` where the sampler forgets its initial noise: the kernels `DDIM(1)` and
    `FlowSDE(sqrt 2)`; with another one, what the end remembers of its beginning is not tilted. ``a`` is data: only the
    policy's mean has a gradient. Needs all steps recorded (``window: {use: last_steps, noise: true}``).

    pairing: ``next`` regresses step k on ``a_{k+1}``, the optimum of the discrete problem; ``same`` on ``a_k``, as the
        released code does: the same limit of many steps, and too small a step towards it at few.
    early, late: how many steps are trained, drawn among the first ``split`` of all stochastic ones and among the rest.
    chunk: samples whose trajectories are followed back together.
    """

    scale: float = 100.0
    pairing: Literal["next", "same"] = "next"
    early: int = 2
    late: int = 2
    split: float = 0.6
    chunk: int = 8
    cfg_grad: CfgGrad = "both"
    judged: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.early < 0 or self.late < 0 or self.early + self.late < 1:
            raise ValueError(f"early={self.early} and late={self.late} steps are trained: give at least one of them")
        if not self.scale > 0:
            raise ValueError(f"scale={self.scale} is how far the reward tilts the model; give more than 0")

    @property
    def references(self) -> tuple[str, ...]:
        return (REFERENCE,)

    @property
    def has_recorded_logp(self) -> bool:
        return False

    def decisions(self, recorded: int) -> tuple[int, int]:
        if not recorded:
            raise IncompatibleError("adjoints need recorded states: give the sampler the window last_steps with noise")
        early, late = self._counts(recorded)
        return early + late, early + late

    def _counts(self, noisy: int) -> tuple[int, int]:
        """Trained steps among the first and the other ones, of which there may be fewer."""
        first = round(self.split * noisy)
        return min(self.early, first), min(self.late, noisy - first)

    def probe(self, rollout: Rollout, policy: FlowPolicy, seeds: Tensor) -> AdjointRows:
        steps, first = recorded_steps(rollout)
        s = steps.dynamics.coefficients(steps.t, steps.t_next)[2]
        noisy = int((s[0] > 0).sum())
        if not noisy or first:
            raise IncompatibleError("adjoints need every step recorded, and noise: window last_steps with noise=true")
        event = self._events(noisy, seeds)
        parts = [
            self._followed(rollout, steps, policy, rows, event[rows])
            for rows in torch.arange(len(seeds)).split(self.chunk)
        ]
        sample = torch.arange(len(event))[:, None].expand(event.shape)
        return AdjointRows(steps.t[sample, event], steps.t_next[sample, event], steps, sample, event, torch.cat(parts))

    def _events(self, noisy: int, seeds: Tensor) -> Tensor:
        """[N, D] the steps that are trained, in order."""
        first = round(self.split * noisy)
        early, late = self._counts(noisy)
        drawn = uniform(seeds, (noisy,), stream=EVENT_STREAM)
        chosen = (drawn[:, :first].argsort(dim=1)[:, :early], first + drawn[:, first:].argsort(dim=1)[:, :late])
        return torch.cat(chosen, dim=1).sort(dim=1).values

    def _followed(self, rollout: Rollout, steps: Steps, policy: FlowPolicy, rows: Tensor, event: Tensor) -> Tensor:
        """[n, D, ...] on the host: the adjoints of the steps ``event`` [n, D] of some samples."""
        condition = rollout.condition.take(rows)
        known = steps.t.shape[1]
        with torch.enable_grad():
            final = put(rollout.final[rows], policy.device).detach().requires_grad_()
            (slope,) = torch.autograd.grad(judge_of(rollout)(final, rows).sum(), final)
        a = -self.scale * slope.detach()
        found = [a.cpu()]  # a_T, a_{T-1}, ...
        with policy.using(REFERENCE) as asked, torch.enable_grad():
            for k in reversed(range(int(event.min()) + int(self.pairing == "next"), known)):
                x = put(steps.states[rows, k], policy.device).requires_grad_()
                t, t_next = steps.t[rows, k], steps.t_next[rows, k]
                v = asked.velocity(x, t, condition, guidance=steps.guidance, cfg_grad="both")
                (a,) = torch.autograd.grad((mean_of(steps.dynamics, x, v, t, t_next) * a).sum(), x)
                found.append(a.cpu())
        every = torch.stack(found, dim=1)  # [n, T - k + 1, ...]
        place = known - event - int(self.pairing == "next")
        return every[torch.arange(len(rows))[:, None], place]

    def recorded_logp(self, rollout: Rollout, rows: AdjointRows) -> None:
        return None

    def __call__(
        self, policy: FlowPolicy, rows: AdjointRows, condition: Condition, references: Sequence[str] = ()
    ) -> Likelihood:
        n, d = rows.t.shape
        x, a = (put(value, policy.device).flatten(0, 1) for value in (rows.x, rows.adjoint))
        t, t_next = rows.t.flatten(), rows.t_next.flatten()
        each = condition.take(torch.arange(n).repeat_interleave(d))
        frozen = {}
        for name in dict.fromkeys((REFERENCE, *references)):
            with policy.using(name) as asked:
                frozen[name] = asked.velocity(x, t, each, guidance=rows.steps.guidance)
        v = policy.velocity(x, t, each, guidance=rows.steps.guidance, cfg_grad=self.cfg_grad)
        _, b, s = (like(c, x) for c in rows.steps.dynamics.coefficients(t, t_next))
        error = squared_norm(b / s * (v - frozen[REFERENCE]) + s * a, 1)
        extra = {f"prediction/{name}": mean_square(v - frozen[name], 1) for name in references}
        return Likelihood(-error.reshape(n, d), {key: value.reshape(n, d) for key, value in extra.items()})
