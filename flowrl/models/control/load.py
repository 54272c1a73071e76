"""Control policies on disk: ``config.json`` and ``model.safetensors``."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, get_args

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from flowrl.errors import UserError, did_you_mean
from flowrl.models.control.network import Activation, ControlNetwork, CriticNetwork, Kind, NoiseNetwork
from flowrl.models.control.new import config_for, new_network, untrained
from flowrl.models.control.policy import ControlConfig, ControlPolicy
from flowrl.models.family import embedded_model
from flowrl.models.placement import place
from flowrl.models.source import ModelSource, check_finite
from flowrl.paths import NEW

CRITIC_WIDTH, CRITIC_DEPTH = 128, 2
NOISE_WIDTH, NOISE_DEPTH = 64, 2
WEIGHTS = "model.safetensors"


def load_control(
    path: str | Path,
    *,
    critic: Literal["network"] | None = None,
    noise: bool = False,
    device: str = "auto",
    dtype: str = "float32",
    **unused: Any,
) -> ControlPolicy:
    """A policy from a folder with ``config.json`` (`ControlConfig`) and ``model.safetensors``, an embedded world, or an
    untrained one for an environment: ``new:gym:CartPole-v1``.

    Args:
        critic: ``network`` also learns values, by a network of its own that begins the same in every run.
        noise: also learn how much noise each step of a sampler has, by a network of its own (ReinFlow).
        dtype: float32; networks of this size gain nothing from less.
        unused: options of larger models (LoRA, compiling, sharding), which these are too small for.

    Raises:
        UserError: for files that are missing or do not fit each other.
    """
    if critic not in (None, "network"):
        raise UserError(f"model.critic={critic}: a control policy has no states that a head could read; use network")
    if dtype != "float32":
        raise UserError(f"model.dtype={dtype}: control policies compute in float32; remove it")
    if str(path).startswith(NEW):
        config = config_for(str(path).removeprefix(NEW))
        network = untrained(config)
    else:
        config, network = _read(path)
    network.eval()
    seen = config.observation * config.history
    value = CriticNetwork(seen, CRITIC_WIDTH, CRITIC_DEPTH) if critic else None
    levels = NoiseNetwork(seen, config.action, config.chunk, NOISE_WIDTH, NOISE_DEPTH) if noise else None
    return ControlPolicy(config, network, value, ModelSource(str(path)), place(dtype, device).device, levels)


def _read(path: str | Path) -> tuple[ControlConfig, ControlNetwork]:
    folder = embedded_model(str(path), "control") or Path(path).expanduser()
    config = read_config(folder)
    network = new_network(config)
    try:
        network.load_state_dict(load_file(folder / WEIGHTS))
    except FileNotFoundError as error:
        raise UserError(
            f"model {str(path)!r} has no {WEIGHTS}; give the folder that the policy was saved to"
        ) from error
    except (RuntimeError, SafetensorError) as error:
        raise UserError(f"model {str(path)!r}: {WEIGHTS} does not fit config.json: {error}") from error
    check_finite(network, str(path))
    return config, network


def read_config(folder: Path) -> ControlConfig:
    """``config.json``. Raises `UserError` naming the key that is missing, unknown or of no sense."""
    file = folder / "config.json"
    try:
        given = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {error}") from error
    known = [field.name for field in fields(ControlConfig)]
    for key in given:
        if key not in known:
            raise UserError(f"{file}: there is no key {key!r}{did_you_mean(key, known)}")
    for key in ("observation", "action"):
        if key not in given:
            raise UserError(f"{file} has no {key!r}; give the number of numbers")
    for key, choices in (("kind", get_args(Kind)), ("activation", get_args(Activation))):
        if given.get(key, choices[0]) not in choices:
            raise UserError(f"{file}: {key} is {given[key]!r}; choose {', '.join(choices)}")
    for key in set(known) - {"family", "kind", "activation"}:
        if key in given and (not isinstance(given[key], int) or isinstance(given[key], bool) or given[key] < 1):
            raise UserError(f"{file}: {key} is {given[key]!r}; give a whole number, 1 or more")
    return ControlConfig(**given)


def save_control(config: ControlConfig, network: ControlNetwork, folder: Path) -> None:
    """Write a policy to a folder, as `load_control` reads it; the critic is no part of it."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = {field.name: getattr(config, field.name) for field in fields(ControlConfig)}
    (folder / "config.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
