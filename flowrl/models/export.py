"""A policy's trained weights on disk, in the formats that other tools load."""

from __future__ import annotations

from pathlib import Path

from flowrl.models.control import export as control
from flowrl.models.control.policy import ControlPolicy
from flowrl.models.diffusion import export as diffusion
from flowrl.models.diffusion.policy import DiffusionPolicy
from flowrl.models.reward import export as reward
from flowrl.models.reward.policy import RewardPolicy
from flowrl.models.text import export as text
from flowrl.models.text.policy import TextPolicy

Exported = DiffusionPolicy | TextPolicy | ControlPolicy | RewardPolicy


def export_formats(policy: Exported) -> tuple[str, ...]:
    """What `export_policy` can write for this model, of ``diffusers``, ``peft``, ``kohya`` and ``merged``."""
    if isinstance(policy, ControlPolicy):
        return control.FORMATS
    if isinstance(policy, RewardPolicy):
        return reward.FORMATS
    return diffusion.formats(policy) if isinstance(policy, DiffusionPolicy) else text.formats(policy)


def export_policy(policy: Exported, directory: str | Path, to: str) -> float:
    """Write the live weights to a new folder, load them as users would, compare; returns the relative difference.

    Raises:
        UserError: for a format that cannot hold the weights, an occupied folder, or a reloaded model that differs.
    """
    if isinstance(policy, DiffusionPolicy):
        return diffusion.export(policy, Path(directory), to)
    if isinstance(policy, ControlPolicy):
        return control.export(policy, Path(directory), to)
    if isinstance(policy, RewardPolicy):
        return reward.export(policy, Path(directory), to)
    return text.export(policy, Path(directory), to)
