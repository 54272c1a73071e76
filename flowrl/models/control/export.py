"""Trained control policies on disk."""

from __future__ import annotations

from pathlib import Path

import torch

from flowrl.math.random import normal
from flowrl.models.control.condition import ControlCondition
from flowrl.models.control.load import load_control, save_control
from flowrl.models.control.policy import ControlPolicy
from flowrl.models.export_folder import Difference, into_folder

FORMATS = ("merged",)


def export(policy: ControlPolicy, directory: Path, to: str) -> float:
    """Write the live weights as a folder that `load_control` reads, and compare its actions; the critic is no part of
    it. Raises `UserError` as `flowrl.models.export_folder.into_folder` does."""

    def write(work: Path) -> Difference:
        save_control(policy.config, policy.network, work, policy.base)
        again = load_control(work, device="cpu")
        shape = (policy.config.history, policy.config.observation)
        seen = policy.network.observations.undo(normal(torch.arange(8), shape, stream=0).to(policy.device)).cpu()
        mine, other = _actions(policy, seen), _actions(again, seen)
        return Difference(float((mine - other).abs().max() / mine.abs().max().clamp(min=1e-12)), lambda: 0.0)

    return into_folder(directory, to, FORMATS, policy.adaptation, policy.dtype, write, policy.origin)


@torch.no_grad()
def _actions(policy: ControlPolicy, seen: torch.Tensor) -> torch.Tensor:
    """Chunks at observations [n, history, o], and their first actions as they are executed; the log-probabilities of
    choices."""
    if policy.config.kind == "categorical":
        return policy.choices(ControlCondition(len(seen)).seeing(seen)).cpu()
    chunk = policy.chunk(seen).cpu()
    first = policy.executed(seen, policy.network.actions(chunk[:, 0].to(policy.device))).cpu()
    return torch.cat([chunk, first[:, None]], dim=1)
