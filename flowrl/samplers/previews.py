"""What a trajectory would have ended in after each of its recorded steps, for rewards of steps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch

from flowrl.devices import put
from flowrl.math.flow import ODE, clean_of, mean_of
from flowrl.samplers.flow import FlowSampler, as_latents
from flowrl.types import Condition, Draw, FlowPolicy, IncompatibleError, Rollout, Steps


@dataclass(frozen=True, kw_only=True)
class PreviewSampler(FlowSampler):
    """A `FlowSampler` that also ends every recorded state without noise (`flowrl.types.Steps.previews`), the one before
    the first step included: their rewards say what each step gained. They are scored, and then let go.

    preview: ``ode`` walks the rest of the grid without noise, so that the reward of a state is that of the picture it
        leads to: for T steps T (T + 1) / 2 - 1 forwards more at most. ``clean`` takes the clean latent that the network
        predicts at the state, one forward for each, blurred early on.
    """

    preview: Literal["ode", "clean"] = "ode"

    @property
    def forwards(self) -> int:
        ranges = self.window.recordable(self.steps) if self.window is not None else range(0)
        ends = range(ranges.start, ranges.start + self.recorded + 1)
        return super().forwards + sum(self.steps - k if self.preview == "ode" else min(self.steps - k, 1) for k in ends)

    @torch.no_grad()
    def __call__(self, policy: FlowPolicy, condition: Condition, draw: Draw) -> Rollout:
        made = super().__call__(policy, condition, draw)
        steps, times = made.trace, self.grid(policy)
        if not isinstance(steps, Steps):
            raise IncompatibleError("previews are those of recorded steps: give the sampler a window")
        first = self.step_ranges(draw, times).recorded.start
        previews, forwards = torch.empty_like(steps.states), made.forwards
        for d in range(steps.states.shape[1]):
            x, reached = put(steps.states[:, d], policy.device), first + d
            for k in range(reached, self.steps):
                t, t_next = (times[i].expand(len(draw)) for i in (k, k + 1))
                v = policy.velocity(x, t, condition, guidance=self.guidance)
                forwards += len(draw)
                last = self.preview == "clean" or (self.decode_clean and k == self.steps - 1)
                x = clean_of(x, v, t) if last else mean_of(ODE(), x, v, t, t_next)
                if self.preview == "clean":
                    break
            ended = self.preview == "ode" or reached == self.steps
            previews[:, d] = (as_latents(x, times[-1]) if ended else x).cpu()
        return replace(made, trace=replace(steps, previews=previews), forwards=forwards)
