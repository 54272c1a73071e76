"""Control policies on disk: ``config.json`` and ``model.safetensors``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from flowrl.errors import UserError, did_you_mean
from flowrl.models.control.network import ComposedNetwork, ControlNetwork, CriticNetwork, Kind, NoiseNetwork
from flowrl.models.control.policy import ControlConfig, ControlPolicy, Share
from flowrl.models.family import embedded_model
from flowrl.models.placement import place
from flowrl.models.source import ModelSource, check_finite
from flowrl.types import Residual

CRITIC_WIDTH, CRITIC_DEPTH = 128, 2
NOISE_WIDTH, NOISE_DEPTH = 64, 2
WEIGHTS = "model.safetensors"


def load_control(
    path: str | Path,
    *,
    critic: Literal["network"] | None = None,
    noise: bool = False,
    residual: Residual | None = None,
    kind: Kind | None = None,
    conditions: int = 0,
    guidance: float | None = None,
    device: str = "auto",
    dtype: str = "float32",
    **unused: Any,
) -> ControlPolicy:
    """A policy from a folder with ``config.json`` (`ControlConfig`) and ``model.safetensors``, or an embedded world.

    Args:
        critic: ``network`` also learns values, by a network of its own that begins the same in every run.
        noise: also learn how much noise each step of a sampler has, by a network of its own (ReinFlow).
        residual: learn only what is added to every action, and let the policy as it is (ResiP). A model that has a
            residual already goes on with it.
        kind: ``mip`` also takes the weights of a flow, as the beginning of a network that is to answer chunks; any
            other has to be the model's own.
        conditions: labels that the network is to hear (CFGRL); where it hears none yet, they begin without effect.
        guidance: w with which it acts from now on, of a network that hears a label; ``None``: that of ``config.json``.
        dtype: float32; networks of this size gain nothing from less.
        unused: options of larger models (LoRA, compiling, sharding), which these are too small for.

    Raises:
        UserError: for files that are missing or do not fit each other.
    """
    if critic not in (None, "network"):
        raise UserError(f"model.critic={critic}: a control policy has no states that a head could read; use network")
    if dtype != "float32":
        raise UserError(f"model.dtype={dtype}: control policies compute in float32; remove it")
    embedded = embedded_model(str(path), "control")
    folder = embedded or Path(path).expanduser()
    config = _fitted(read_config(folder), str(path), kind, conditions, guidance)
    fresh = residual is not None and not config.residual
    if residual is not None:
        if config.residual not in (0, residual.scale):
            raise UserError(
                f"algorithm.scale={residual.scale:g}: the residual of model {str(path)!r} was trained at "
                f"{config.residual:g}; set that"
            )
        config = replace(config, residual=residual.scale)
    network = new_network(config)
    begun = {f"residual.{name}": t for name, t in network.residual.state_dict().items()} if network.residual else {}
    try:
        begun |= {"labels": network.labels.detach()} if conditions and network.labels is not None else {}
        network.load_state_dict({**(begun if fresh or conditions else {}), **load_file(folder / WEIGHTS)})
    except FileNotFoundError as error:
        raise UserError(
            f"model {str(path)!r} has no {WEIGHTS}; give the folder that the policy was saved to"
        ) from error
    except (RuntimeError, SafetensorError) as error:
        raise UserError(f"model {str(path)!r}: {WEIGHTS} does not fit config.json: {error}") from error
    check_finite(network, str(path))
    network.eval()
    choose_trained(network, residual)
    seen = config.observation * config.history
    judged = seen if residual is None else config.observation + config.action
    value = CriticNetwork(judged, CRITIC_WIDTH, CRITIC_DEPTH) if critic else None
    levels = NoiseNetwork(seen, config.action, config.chunk, NOISE_WIDTH, NOISE_DEPTH) if noise else None
    return ControlPolicy(config, network, value, ModelSource(str(path)), place(dtype, device).device, levels)


def choose_trained(network: ControlNetwork, residual: Residual | None) -> None:
    """Train the residual alone, or everything but it."""
    network.requires_grad_(residual is None)
    if network.residual is not None:
        network.residual.requires_grad_(residual is not None)
        if residual is not None:
            network.residual.log_std.fill_(residual.log_std)


def new_network(config: ControlConfig) -> ControlNetwork:
    """An untrained network of this shape."""
    c = config
    shape = (c.kind, c.observation, c.action, c.chunk, c.history)
    if c.policies:
        parts = [ControlNetwork(*shape, each.width, each.depth) for each in c.policies]
        return ComposedNetwork(parts, [each.weight for each in c.policies], c.residual)
    return ControlNetwork(*shape, c.width, c.depth, c.residual, c.conditions)


def check_weights(weights: Sequence[float]) -> None:
    """Raise `UserError` for weights of policies that are not on the simplex."""
    if len(weights) < 2 or not all(weight >= 0 for weight in weights) or abs(sum(weights) - 1) > 1e-6:
        raise UserError(f"the weights of policies are {list(weights)}; give one for each, 0 or more, that sum to 1")


def _fitted(
    config: ControlConfig, path: str, kind: Kind | None, conditions: int, guidance: float | None
) -> ControlConfig:
    """Of this kind, with so many labels at least, and this w where there are some. Raises `UserError` where that makes
    no sense of the model's weights."""
    if kind is not None and kind != config.kind:
        if (config.kind, kind) != ("flow", "mip"):
            raise UserError(f"model {path!r} is of kind {config.kind}, and the algorithm trains one of kind {kind}")
        config = replace(config, kind=kind, steps=2)
    if conditions and (config.kind not in ("flow", "ddpm") or config.policies):
        made = "made up of several" if config.policies else f"of kind {config.kind}"
        raise UserError(f"model {path!r} is {made}; guidance between labels is of a single flow or ddpm")
    config = replace(config, conditions=max(config.conditions, conditions))
    return replace(config, guidance=guidance) if config.conditions and guidance is not None else config


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
    if given.get("kind", "flow") not in get_args(Kind):
        raise UserError(f"{file}: kind is {given['kind']!r}; choose {', '.join(get_args(Kind))}")
    for key in ("residual", "guidance"):
        size = given.get(key, 0.0)
        if not isinstance(size, int | float) or isinstance(size, bool) or not 0 <= size < float("inf"):
            said = "how much of it is added to an action, 0 for none" if key == "residual" else "a number, 0 or more"
            raise UserError(f"{file}: {key} is {size!r}; give {said}")
    for key in set(known) - {"family", "kind", "residual", "policies", "guidance"}:
        least = 0 if key in ("past", "execute", "conditions") else 1
        if key in given and (not isinstance(given[key], int) or isinstance(given[key], bool) or given[key] < least):
            raise UserError(f"{file}: {key} is {given[key]!r}; give a whole number, {least} or more")
    config = ControlConfig(**{**given, "policies": _shares(given.get("policies") or (), file)})
    _check_shape(config, file)
    return config


def _check_shape(config: ControlConfig, file: Path) -> None:
    if config.past + max(1, config.execute) > config.chunk:
        raise UserError(
            f"{file}: a chunk of {config.chunk} actions has no room for past={config.past} and execute="
            f"{config.execute}; give a longer chunk"
        )
    if config.kind == "mip" and config.steps != 2:
        raise UserError(f"{file}: steps is {config.steps}, and a MIP acts in 2; set 2")


def _shares(given: Any, file: Path) -> tuple[Share, ...]:
    try:
        shares = tuple(Share(float(each["weight"]), int(each["width"]), int(each["depth"])) for each in given)
    except (TypeError, KeyError, ValueError) as error:
        raise UserError(f"{file}: policies has a weight, width and depth of each, found {given!r}") from error
    if shares:
        check_weights([share.weight for share in shares])
    return shares


def save_control(config: ControlConfig, network: ControlNetwork, folder: Path) -> None:
    """Write a policy to a folder, as `load_control` reads it; the critic is no part of it."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = asdict(config)
    (folder / "config.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
