"""A reward as an actor of a Ray cluster: ``use: ray:NAME`` and the options of NAME, with ``ray: {num_gpus: 1}``.

Ray itself serialises between its processes with cloudpickle: a cluster is one trusted machine in several places.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from flowrl.clients.remote_reward import GroupedRemoteReward, RemoteReward, ScoreInputs, seeing_groups
from flowrl.clients.results import NOT_APPLICABLE, RewardError
from flowrl.errors import UserError, did_you_mean

PLACEMENT = ("num_cpus", "num_gpus", "resources", "accelerator_type", "memory", "runtime_env", "address", "timeout")
START_SECONDS = 600.0
ACTOR = "flowrl.remote.actor"
"""The module of what runs in the actor. It imports rewards, so nothing here may import it."""


def check_placement(given: Mapping[str, Any], where: str) -> None:
    """Raise `UserError` for a key that places no actor; ``where`` is whose keys they are."""
    for key in given:
        if key not in PLACEMENT:
            raise UserError(f"{where} has no key {key!r}{did_you_mean(key, PLACEMENT)}")


def connect_to_ray(
    use: str,
    *,
    device: str | None = None,
    dtype: str | None = None,
    ray: Mapping[str, Any] | None = None,
    **options: Any,
) -> RemoteReward | GroupedRemoteReward:
    """What scores a reward in an actor; it asks for ``group`` if the reward there does. As `RayReward`."""
    return seeing_groups(RayReward(use, {"options": options, "device": device, "dtype": dtype}, ray or {}))


class RayReward(RemoteReward):
    """Scores samples in an actor, exactly as here: images travel unrounded.

    ``ray`` holds the actor's placement (``num_cpus``, ``num_gpus``, ``resources``, ``accelerator_type``, ``memory``,
    ``runtime_env``), the cluster's ``address`` (default ``auto``; ``local`` starts one here) and ``timeout`` in seconds
    per call. Everything else are options of the reward. Raises `UserError` for another key of ``ray``, a cluster that
    does not answer or a reward that does not load; `RewardError` when the actor fails, dies or takes too long.
    """

    def __init__(self, use: str, settings: Mapping[str, Any], ray: Mapping[str, Any]) -> None:
        given = dict(ray)
        check_placement(given, f"reward 'ray:{use}': ray")
        self._use = use
        self._timeout = float(given.pop("timeout", 300.0))
        self._ray: Any = import_ray()
        join(self._ray, f"reward 'ray:{use}'", str(given.pop("address", "auto")))
        spec = {"use": use, **settings}
        kind = importlib.import_module(ACTOR).RewardActor
        self._actor = self._ray.remote(kind).options(**given).remote(spec)
        try:
            self.grouped, self.version = self._ray.get(self._actor.facts.remote(), timeout=START_SECONDS)
        except self._ray.exceptions.RayError as error:  # also what its constructor raised
            raise UserError(f"reward 'ray:{use}' does not load in its actor: {cause(error)}") from error

    def score(self, inputs: ScoreInputs) -> Tensor:
        """As a call, exactly as here."""
        pixels = None if inputs.images is None else inputs.images.detach().cpu().float().numpy()
        texts = None if inputs.completions is None else list(inputs.completions)
        groups = list(range(len(inputs.prompts)) if inputs.group is None else inputs.group)
        call = self._actor.score.remote(list(inputs.prompts), dict(inputs.columns), pixels, texts, groups)
        try:
            scores = self._ray.get(call, timeout=self._timeout)
        except self._ray.exceptions.RayError as error:
            raise RewardError(f"reward 'ray:{self._use}' failed in its actor: {cause(error)}") from error
        return torch.tensor([NOT_APPLICABLE if score is None else score for score in scores], dtype=torch.float64)

    def close(self) -> None:
        """End the actor."""
        self._ray.kill(self._actor)


def join(ray: Any, who: str, address: str) -> None:
    """Connect to a cluster, or start one here (``local``). Raises `UserError` that names ``who`` needs it."""
    if ray.is_initialized():
        return
    try:
        ray.init(address=address, include_dashboard=None if address != "local" else False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(f"{who}: no Ray cluster at {address!r} ({error}); start one with `ray start --head`") from error


def import_ray() -> Any:
    """Ray, which is an extra, and slow to import."""
    return importlib.import_module("ray")


def cause(error: Exception) -> str:
    """The last line of what Ray says, which is the exception of the actor."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1][:500]
