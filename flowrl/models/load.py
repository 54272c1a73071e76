"""One door to the loaders of all model families."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from flowrl.errors import UserError, did_you_mean
from flowrl.models import diffusion
from flowrl.models.causal.load import load_causal
from flowrl.models.causal.policy import CausalPolicy
from flowrl.models.control.load import load_control
from flowrl.models.control.policy import ControlPolicy
from flowrl.models.family import family_of
from flowrl.models.load_errors import errors_named
from flowrl.models.masked.load import load_masked
from flowrl.models.masked.policy import MaskedPolicy
from flowrl.models.parity import check_parity
from flowrl.models.reward.load import load_reward
from flowrl.models.reward.policy import RewardPolicy

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

LoadedPolicy = diffusion.DiffusionPolicy | CausalPolicy | MaskedPolicy | ControlPolicy | RewardPolicy
"""The policies that models are loaded as, one for each family."""
LOADERS = {
    "diffusion": diffusion.load_policy,
    "causal": load_causal,
    "masked": load_masked,
    "control": load_control,
    "reward": load_reward,
}


def load_policy(
    path_or_pipeline: str | Path | DiffusionPipeline,
    *,
    family: Literal["diffusion", "masked", "causal", "control", "reward"] | None = None,
    **options: Any,
) -> LoadedPolicy:
    """A policy from a folder, a hub name, an embedded world or a diffusers pipeline object. Its ``check_parity()`` runs
    the start-up check again: it raises, or returns the largest deviation. The trained policy of a run is
    ``flowrl.Run(path).load_policy()``.

    >>> policy = flowrl.load_policy("stabilityai/stable-diffusion-3.5-medium", call={"guidance_scale": 4.5})
    >>> policy.check_parity()
    0.0

    Args:
        family: ``None``: told by the model's files (`family_of`).
        options: those of the family's loader: :func:`flowrl.models.diffusion.load_policy`,
            :func:`flowrl.models.causal.load.load_causal`, :func:`flowrl.models.masked.load.load_masked`,
            :func:`flowrl.models.reward.load.load_reward`, :func:`flowrl.models.control.load.load_control`.

    Raises:
        UserError: for a model that is missing or unsuitable, and options that its family does not have.
    """
    named = isinstance(path_or_pipeline, (str, Path))
    chosen = family or (family_of(path_or_pipeline) if named else "diffusion")
    if chosen not in LOADERS:
        raise UserError(f"there is no model family {chosen!r}{did_you_mean(chosen, LOADERS)}")
    if chosen != "diffusion" and options.pop("call", None):
        raise UserError(f"model.call is for diffusion pipelines and means nothing for family {chosen}; remove it")
    with errors_named(path_or_pipeline if named else type(path_or_pipeline).__name__):
        policy = LOADERS[chosen](path_or_pipeline, **options)
    policy.parity = check_parity
    return policy
