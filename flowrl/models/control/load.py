"""Control policies on disk: ``config.json`` and ``model.safetensors``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from flowrl.errors import UserError, did_you_mean
from flowrl.models.control.beside import BesideNetwork
from flowrl.models.control.network import ComposedNetwork, ControlNetwork, CriticNetwork, Kind, NoiseNetwork
from flowrl.models.control.policy import ControlConfig, ControlPolicy, Share
from flowrl.models.family import embedded_model
from flowrl.models.placement import place
from flowrl.models.source import ModelSource, check_finite
from flowrl.types import Acting, Beside, Residual

CRITIC_WIDTH, CRITIC_DEPTH = 128, 2
NOISE_WIDTH, NOISE_DEPTH = 64, 2
WEIGHTS = "model.safetensors"


def load_control(
    path: str | Path,
    *,
    critic: Literal["network"] | None = None,
    noise: bool = False,
    residual: Residual | None = None,
    beside: Mapping[str, Beside] | None = None,
    acting: Acting | None = None,
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
        beside: the networks beside its own that a method trains, those of the folder where it has them and they are of
            this form, others new; ``None``: those of the folder.
        acting: how it acts with them; as the folder says where ``beside`` is ``None``.
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
    saved = read_config(folder)
    config = saved if beside is None else replace(saved, beside=dict(beside), acting=acting)
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
        held = {**(begun if fresh else {}), **load_file(folder / WEIGHTS)}
        network.load_state_dict(_with_new(held, saved, config, network))
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
        network = ComposedNetwork(parts, [each.weight for each in c.policies], c.residual)
    else:
        network = ControlNetwork(*shape, c.width, c.depth, c.residual)
    for name, form in c.beside.items():
        network.beside[name] = BesideNetwork(name, form, c.observation * c.history, c.chunk, c.action)
    return network


def _with_new(
    held: Mapping[str, Tensor], saved: ControlConfig, config: ControlConfig, network: ControlNetwork
) -> dict[str, Tensor]:
    """The weights of a folder, without those of networks beside that are not asked for; new ones begin as they are."""
    kept = {name for name, form in config.beside.items() if saved.beside.get(name) == form}
    found = {key: value for key, value in held.items() if _beside(key) in ("", *kept)}
    fresh = {key: value for key, value in network.state_dict().items() if _beside(key) not in ("", *kept)}
    return {**found, **fresh}


def _beside(key: str) -> str:
    """The network beside that a weight is of; empty for the policy's own."""
    return key.split(".")[1] if key.startswith("beside.") else ""


def check_weights(weights: Sequence[float]) -> None:
    """Raise `UserError` for weights of policies that are not on the simplex."""
    if len(weights) < 2 or not all(weight >= 0 for weight in weights) or abs(sum(weights) - 1) > 1e-6:
        raise UserError(f"the weights of policies are {list(weights)}; give one for each, 0 or more, that sum to 1")


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
    size = given.get("residual", 0.0)
    if not isinstance(size, int | float) or isinstance(size, bool) or not 0 <= size < float("inf"):
        raise UserError(f"{file}: residual is {size!r}; give how much of it is added to an action, 0 for none")
    for key in set(known) - {"family", "kind", "residual", "policies", "beside", "acting"}:
        if key in given and (not isinstance(given[key], int) or isinstance(given[key], bool) or given[key] < 1):
            raise UserError(f"{file}: {key} is {given[key]!r}; give a whole number, 1 or more")
    given |= _with_beside(given, file)
    return ControlConfig(**{**given, "policies": _shares(given.get("policies") or (), file)})


def _with_beside(given: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """The networks beside and how the policy acts with them."""
    try:
        beside = {name: Beside(**form) for name, form in (given.get("beside") or {}).items()}
        acting = Acting(**given["acting"]) if given.get("acting") else None
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{file}: 'beside' or 'acting' is of no sense: {error}") from error
    lost = next((name for name in (acting.needs if acting else ()) if name not in beside), None)
    if lost is not None:
        raise UserError(f"{file}: 'acting' asks a network {lost!r}, which 'beside' does not describe")
    return {"beside": beside, "acting": acting}


def _shares(given: Any, file: Path) -> tuple[Share, ...]:
    try:
        shares = tuple(Share(float(each["weight"]), int(each["width"]), int(each["depth"])) for each in given)
    except (TypeError, KeyError, ValueError) as error:
        raise UserError(f"{file}: policies has a weight, width and depth of each, found {given!r}") from error
    if shares:
        check_weights([share.weight for share in shares])
    return shares


def save_control(config: ControlConfig, network: ControlNetwork, folder: Path) -> None:
    """Write a policy to a folder, as `load_control` reads it, with the networks beside its own that it acts with; the
    critic of values is no part of it."""
    folder.mkdir(parents=True, exist_ok=True)
    needed = {name: config.beside[name] for name in (config.acting.needs if config.acting else ())}
    facts = asdict(replace(config, beside=needed))
    facts = {key: value for key, value in facts.items() if value or key not in ("beside", "acting")}
    (folder / "config.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    state = {name: tensor for name, tensor in network.state_dict().items() if _beside(name) in ("", *needed)}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
