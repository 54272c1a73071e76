"""Policies from configs and from trained runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

from flowrl.composition import build, describe, own_code
from flowrl.config import Config
from flowrl.config.model import FAMILY_KEYS, TRAINED_WITH
from flowrl.errors import UserError
from flowrl.models import LoadedPolicy, load_adapter, load_policy
from flowrl.parts.algorithm import Algorithm
from flowrl.records.directory import CONFIG, RunDirectory
from flowrl.records.shards import below
from flowrl.startup.model_checks import with_adapter_shape
from flowrl.startup.resume import load_checkpoint
from flowrl.version import __version__

BESIDE = ("residual", "tuned", "beside", "acting", "network")
"""What an algorithm says of the networks of a control policy, besides critic and noise."""
WEIGHTS = "weights/"
"""Prefix of the weight sets among a checkpoint's tensors."""


def open_policy(config: Config, *, shard: bool = False) -> LoadedPolicy:
    """The policy a run starts from, with ``model.adapter`` loaded if there is one; split over the processes as
    ``model.shard`` says where it is trained (``shard``)."""
    algorithm = build(config.algorithm)
    fitted = with_adapter_shape(config, algorithm.family)
    needed: dict[str, Any] = {name: getattr(algorithm, name) for name in BESIDE}
    arguments = fitted.model.arguments(algorithm.family, algorithm.valued, algorithm.explores, **needed)
    arguments |= _scale(config, algorithm)
    policy = load_policy(**(arguments if shard else {**arguments, "shard": "none"}))
    if config.model.adapter is not None:
        load_adapter(cast(Any, policy), os.path.expanduser(config.model.adapter))
    policy.origin = origin(config)
    return policy


def policy_of_run(run: Path | str, checkpoint: Path | str = "best") -> LoadedPolicy:
    """A run's model with the weight sets of a checkpoint: ``best``, ``latest`` or a path.

    ``live`` holds the trained weights, ``using("ema")`` their average if the run kept one; a critic that the algorithm
    brought is left out. ``best`` is the latest where the run never evaluated. Raises `UserError` if there is no run or
    no intact checkpoint.
    """
    path = Path(run)
    config = Config.of_run(RunDirectory.open(path).path / CONFIG)
    named = checkpoint in ("best", "latest")
    loaded = load_checkpoint(path, str(checkpoint)) if named else load_checkpoint(Path(checkpoint))
    algorithm = build(config.algorithm)
    family = algorithm.family
    needed: dict[str, Any] = {name: getattr(algorithm, name) for name in BESIDE}
    arguments = config.model.arguments(family, **needed) | _scale(config, algorithm)
    policy = load_policy(**{**arguments, "shard": "none"})
    if config.model.adapter is not None and family == "diffusion":  # it may also adapt the text encoders
        load_adapter(cast(Any, policy), os.path.expanduser(config.model.adapter))
    policy.weights.drop_reference(hashed=False)  # a checkpoint brings one that has moved
    policy.weights.load(below(loaded.tensors, WEIGHTS))
    known = origin(config)
    policy.origin = None if known is None else {**known, "checkpoint": loaded.path.name}
    return policy


def _scale(config: Config, algorithm: Algorithm) -> dict[str, float]:
    """The guidance with which a policy that hears a label acts: that of its evaluation, also in an export."""
    if "conditions" not in algorithm.network:
        return {}
    episodes: Any = algorithm.sampler.heldout(config.eval.sampling_steps, config.eval.guidance, None)
    scale = getattr(getattr(episodes, "sampler", None), "guidance", None)
    return {} if scale is None else {"guidance": float(scale)}


STAND_IN = {
    "diffusion": "flow_grpo",
    "masked": "diffu_grpo",
    "causal": "grpo",
    "control": "fpo",
    "reward": "reward_model",
}
"""Presets whose sampler is replaced where a run's own algorithm cannot be remembered, by the family they are for."""


def origin(config: Config) -> dict[str, Any] | None:
    """What an export remembers of its run, so that `flowrl sample` and `flowrl eval` of it make samples as the run's
    evaluation did: how the model was opened and called, the algorithm with its sampler, the evaluation's settings.

    An export runs nobody's code: of an algorithm with parts of the user's own it remembers the sampler alone. None
    where that is one of them; the export is then sampled as its model does by itself.
    """
    algorithm = build(config.algorithm)
    family, spec = algorithm.family, config.algorithm
    if own_code(spec):
        spec = {"use": STAND_IN[family], "sampler": describe(algorithm.sampler.heldout(None, None, None))}
    if own_code(spec):
        return None
    keys = {"dtype", "quantize", *FAMILY_KEYS[family]} - set(TRAINED_WITH)
    return {
        "flowrl": __version__,
        "base": config.model.path,
        "run": config.name,
        "family": family,
        "model": config.model.model_dump(mode="json", include=keys),
        "algorithm": spec,
        "eval": {key: getattr(config.eval, key) for key in ("sampling_steps", "guidance", "temperature")},
    }


def make_live(policy: LoadedPolicy, weights: str) -> None:
    """Make the weight set ``weights`` the live one, which is what is exported. Raises `UserError` if there is none."""
    if weights not in policy.weights.names():
        raise UserError(f"--weights: the run keeps no {weights!r} weights; choose one of {policy.weights.names()}")
    prefix = f"{weights}/"
    state = {key: value for key, value in policy.weights.state().items() if key.startswith(prefix)}
    policy.weights.load({f"live/{key.removeprefix(prefix)}": value for key, value in state.items()})
    if policy.origin is not None:
        policy.origin = {**policy.origin, "weights": weights}


def evaluation_weights(config: Config) -> str:
    """The weight set that a run's evaluation uses."""
    return "ema" if config.eval.weights == "ema" and config.train.ema is not None else "live"
