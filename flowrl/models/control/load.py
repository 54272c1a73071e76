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
from flowrl.models.control.policy import Ascent, ControlConfig, ControlPolicy, Share
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
    config = read_config(folder)
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
        network.load_state_dict({**(begun if fresh else {}), **load_file(folder / WEIGHTS)})
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
    """Train the residual alone, or everything but it and a score."""
    network.requires_grad_(residual is None)
    if network.score is not None:
        network.score.requires_grad_(False)
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
        return ComposedNetwork(parts, [each.weight for each in c.policies], c.residual, c.score is not None)
    return ControlNetwork(*shape, c.width, c.depth, c.residual, c.score is not None)


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
    for key in set(known) - {"family", "kind", "residual", "policies", "score"}:
        if key in given and (not isinstance(given[key], int) or isinstance(given[key], bool) or given[key] < 1):
            raise UserError(f"{file}: {key} is {given[key]!r}; give a whole number, 1 or more")
    made = {"policies": _shares(given.get("policies") or (), file), "score": _ascent(given.get("score"), file)}
    return ControlConfig(**{**given, **made})


def _ascent(given: Any, file: Path) -> Ascent | None:
    if given is None:
        return None
    try:
        found = Ascent(float(given["rate"]), int(given["steps"]))
    except (TypeError, KeyError, ValueError) as error:
        raise UserError(f"{file}: score has a rate and steps, found {given!r}") from error
    if not (0 <= found.rate < float("inf") and found.steps >= 0):
        raise UserError(f"{file}: score is {given!r}; give a rate of 0 or more and 0 or more steps")
    return found


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
