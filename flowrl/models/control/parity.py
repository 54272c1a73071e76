"""Whether a control policy's answers depend on the batch they are made in."""

from __future__ import annotations

import torch

from flowrl.errors import UserError
from flowrl.math.random import normal
from flowrl.models.control.condition import ControlCondition
from flowrl.models.control.policy import ControlPolicy

ROWS = 16
TOLERANCE = 1e-5


def check(policy: ControlPolicy) -> float:
    """The largest relative deviation of actions in a batch from those of single rows. Raises `UserError` where it is
    more than rounding."""
    config, seeds = policy.config, torch.arange(ROWS)
    seen = normal(seeds, (config.history, config.observation), stream=0)
    seen = policy.network.observations.undo(seen.to(policy.device)).cpu()

    def asked(rows: torch.Tensor) -> torch.Tensor:
        condition = ControlCondition(len(rows)).seeing(seen[rows])
        if config.kind == "gaussian":
            return policy.gaussian(condition)[0]
        if config.kind == "categorical":
            return policy.choices(condition)
        x = normal(seeds[rows], policy.latent_shape, stream=1, device=policy.device)
        return policy.velocity(x, policy.snap(torch.full((len(rows),), 0.5, dtype=torch.float64)), condition)

    calls = policy.network_calls
    with torch.no_grad():
        whole = asked(seeds)
        single = torch.cat([asked(row[None]) for row in seeds])
    policy.network_calls = calls
    found = float((whole - single).abs().max() / whole.abs().max().clamp(min=1e-12))
    if not found <= TOLERANCE:
        raise UserError(f"actions of a batch deviate by {found:.2g} from those of single rows; use another device")
    return found
