"""Velocities at the states of a rollout, held against a direction in the space of samples: a likelihood for samplers
without one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from flowrl.devices import put, wide
from flowrl.math.gaussians import mean_square
from flowrl.math.groups import group_index
from flowrl.types import CfgGrad, Condition, FlowPolicy, IncompatibleError, Likelihood, Rollout, Rows, Steps


@dataclass(frozen=True)
class DirectionRows(Rows):
    """The states of a rollout, and of every sample how it differs from its group."""

    large: ClassVar[frozenset[str]] = frozenset({"x", "direction"})

    x: Tensor  # [N, D, ...]
    direction: Tensor  # [N, D, ...] one for each sample, repeated without copying
    t: Tensor  # [N, D]
    guidance: float | None


Length = Literal["inverse", "unit"]
"""Of a direction: ``d / (mean d^2 + 1e-6)``, or ``d / sqrt(mean d^2 + 1e-6)`` of root mean square 1."""


def directions(final: Tensor, group: Tensor, length: Length = "inverse") -> Tensor:
    """[N, ...] d, the sample less the mean of its group, scaled to a length."""
    index, count = group_index(group)
    flat = final.flatten(1).double()
    sums = torch.zeros(count, flat.shape[1], dtype=flat.dtype).index_add(0, index, flat)
    d = flat - (sums / index.bincount(minlength=count)[:, None])[index]
    square = d.square().mean(dim=1, keepdim=True) + 1e-6
    return (d / (square if length == "inverse" else square.sqrt())).to(final.dtype).reshape(final.shape)


@dataclass(frozen=True, kw_only=True)
class Directions:
    """``mean d^2 - mean (v - (v_old - d))^2`` at every state of the rollout, where d is how the finished sample differs
    from its group's mean, over its own mean square: 0 at the old policy, and more the further v has turned from v_old
    towards ``-d``, i.e. (velocities point from clean to noise) towards making more of that difference. FDFO, finite
    differences of the reward along d (arXiv:2603.12893); there the group is a pair.

    Needs a sampler whose window records its steps; the kernel's noise may be small, since no density is taken of it.
    The sample itself is data: no gradient goes through the states.
    """

    to: str = "old"
    """The weight set that sampled."""
    cfg_grad: CfgGrad = "both"
    length: Length = "inverse"

    @property
    def references(self) -> tuple[str, ...]:
        return (self.to,)

    @property
    def has_recorded_logp(self) -> bool:
        return True

    def decisions(self, recorded: int) -> tuple[int, int]:
        if not recorded:
            raise IncompatibleError("the sampler records no state, so there is nothing to train; give it a window")
        return recorded + 1, recorded + 1

    def probe(self, rollout: Rollout, policy: FlowPolicy, seeds: Tensor) -> DirectionRows:
        steps = rollout.trace
        if not isinstance(steps, Steps):
            raise IncompatibleError("directions need recorded states: give the sampler a window and some noise")
        t = torch.cat([steps.t, steps.t_next[:, -1:]], dim=1)
        d = directions(rollout.final.float().cpu(), rollout.group, self.length)
        return DirectionRows(steps.states, d[:, None].expand(-1, t.shape[1], *d.shape[1:]), t, steps.guidance)

    def recorded_logp(self, rollout: Rollout, rows: DirectionRows) -> Likelihood:
        """0, whatever the rollout."""
        return Likelihood(torch.zeros(rows.t.shape, dtype=torch.float64))

    def __call__(
        self, policy: FlowPolicy, rows: DirectionRows, condition: Condition, references: Sequence[str] = ()
    ) -> Likelihood:
        n, count = rows.t.shape
        x, d = (put(value.flatten(0, 1), policy.device) for value in (rows.x, rows.direction))
        repeated = condition.take(torch.arange(n).repeat_interleave(count))

        def velocity(model: FlowPolicy) -> Tensor:
            t = rows.t.reshape(-1)
            return model.velocity(x, t, repeated, guidance=rows.guidance, cfg_grad=self.cfg_grad)

        frozen = {}
        for name in dict.fromkeys((self.to, *references)):  # before the live pass, whose graph has its weights
            with policy.using(name) as asked:
                frozen[name] = velocity(asked)
        v = velocity(policy)
        turned = wide((v - frozen[self.to]).flatten(1))
        logp = -(turned.square() + 2 * turned * wide(d.flatten(1))).mean(dim=1)
        extra = {f"prediction/{name}": mean_square(v - other, 1).reshape(n, count) for name, other in frozen.items()}
        return Likelihood(logp.reshape(n, count), extra)
