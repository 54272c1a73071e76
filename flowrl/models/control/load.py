"""Control policies on disk: ``config.json`` and ``model.safetensors``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from flowrl.errors import UserError, did_you_mean
from flowrl.models.control.beside import begin_flows, is_one_of, read_beside, with_new
from flowrl.models.control.coordinates import time_grid
from flowrl.models.control.form import Ascent, ControlConfig, Share
from flowrl.models.control.network import (
    Activation,
    ControlNetwork,
    CriticNetwork,
    Kind,
    NoiseNetwork,
)
from flowrl.models.control.new import config_for, new_network, untrained
from flowrl.models.control.policy import SAME_TIME, ControlPolicy
from flowrl.models.family import embedded_model
from flowrl.models.placement import place
from flowrl.models.source import ModelSource, check_finite
from flowrl.paths import NEW
from flowrl.types import Acting, Beside, Residual

CRITIC_WIDTH, CRITIC_DEPTH = 128, 2
NOISE_WIDTH, NOISE_DEPTH = 64, 2
WEIGHTS = "model.safetensors"
BASE = "base."
"""Prefix of the network that acts at times above ``tuned_from``."""
WHOLE = ("observation", "action", "chunk", "history", "width", "depth", "steps")
"""Keys of numbers that are 1 or more."""
COUNTS = ("past", "execute", "conditions")
"""Keys of numbers that are 0 or more."""


def load_control(
    path: str | Path,
    *,
    critic: Literal["network"] | None = None,
    noise: bool = False,
    tuned: tuple[int, int] | None = None,
    residual: Residual | None = None,
    kind: Kind | None = None,
    conditions: int = 0,
    guidance: float | None = None,
    beside: Mapping[str, Beside] | None = None,
    acting: Acting | None = None,
    device: str = "auto",
    dtype: str = "float32",
    **unused: Any,
) -> ControlPolicy:
    """A policy from a folder with ``config.json`` (`ControlConfig`) and ``model.safetensors``, an embedded world, or an
    untrained one for an environment: ``new:gym:CartPole-v1``.

    Args:
        critic: ``network`` also learns values, by a network of its own that begins the same in every run.
        noise: also learn how much noise each step of a sampler has, by a network of its own (ReinFlow).
        tuned: (K, F) lets the network learn at the times of the last F of K steps, and act by a copy of it that does
            not learn at the larger ones (DPPO). A model that was made so keeps the copy it has.
        residual: learn only what is added to every action, and let the policy as it is (ResiP). A model that has a
            residual already goes on with it.
        kind: ``mip`` also takes the weights of a flow, to begin from; any other has to be the model's own.
        conditions: labels that the network is to hear (CFGRL); where it hears none yet, they begin without effect.
        guidance: w with which it acts from now on, of a network that hears a label; ``None``: that of ``config.json``.
        beside: the networks beside its own that a method trains, those of the folder where it has them and they are of
            this form, others new; ``None``: those of the folder.
        acting: how it acts with them; as the folder says where ``beside`` is ``None``.
        dtype: float32; networks of this size gain nothing from less.
        unused: options of larger models (LoRA, compiling, sharding), which these are too small for.

    Raises:
        UserError: for files that are missing or do not fit each other.
    """
    _check_options(critic, dtype)
    new = str(path).startswith(NEW)
    folder = embedded_model(str(path), "control") or Path(path).expanduser()
    config = config_for(str(path).removeprefix(NEW)) if new else read_config(folder)
    config, kept = _with_beside(_fitted(config, str(path), kind, conditions, guidance), beside, acting)
    fresh = residual is not None and not config.residual
    config = config if residual is None else _with_residual(config, residual, str(path))
    network, base = (untrained(config), None) if new else _read(path, folder, config, fresh, kept)
    check_finite(network, str(path))
    network.eval()
    choose_trained(network, residual)
    seen = config.observation * config.history
    judged = seen if residual is None else config.observation + config.action
    value = CriticNetwork(judged, CRITIC_WIDTH, CRITIC_DEPTH) if critic else None
    levels = NoiseNetwork(seen, config.action, config.chunk, NOISE_WIDTH, NOISE_DEPTH) if noise else None
    if tuned is not None:
        config, base = _frozen(config, network, base, tuned, str(path))
    source = ModelSource(str(path))
    return ControlPolicy(config, network, value, source, place(dtype, device).device, levels, base)


def _check_options(critic: str | None, dtype: str) -> None:
    if critic not in (None, "network"):
        raise UserError(f"model.critic={critic}: a control policy has no states that a head could read; use network")
    if dtype != "float32":
        raise UserError(f"model.dtype={dtype}: control policies compute in float32; remove it")


def _read(
    path: str | Path, folder: Path, config: ControlConfig, fresh: bool, kept: Sequence[str]
) -> tuple[ControlNetwork, ControlNetwork | None]:
    try:
        return _networks(config, load_file(folder / WEIGHTS), fresh, kept)
    except FileNotFoundError as error:
        raise UserError(
            f"model {str(path)!r} has no {WEIGHTS}; give the folder that the policy was saved to"
        ) from error
    except (RuntimeError, SafetensorError) as error:
        raise UserError(f"model {str(path)!r}: {WEIGHTS} does not fit config.json: {error}") from error


def _with_beside(
    config: ControlConfig, beside: Mapping[str, Beside] | None, acting: Acting | None
) -> tuple[ControlConfig, list[str]]:
    """With these networks beside, and which of them the model has already; as it is without any."""
    if beside is None:
        return config, list(config.beside)
    kept = [name for name, form in config.beside.items() if beside.get(name) == form]
    return replace(config, beside=dict(beside), acting=acting), kept


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


def _with_residual(config: ControlConfig, residual: Residual, path: str) -> ControlConfig:
    """Raises `UserError` where the model has one of another scale."""
    if config.residual not in (0, residual.scale):
        raise UserError(
            f"algorithm.scale={residual.scale:g}: the residual of model {path!r} was trained at "
            f"{config.residual:g}; set that"
        )
    return replace(config, residual=residual.scale)


def _networks(
    config: ControlConfig, tensors: dict[str, Tensor], fresh: bool, kept: Sequence[str]
) -> tuple[ControlNetwork, ControlNetwork | None]:
    """The network of these weights, with an untrained residual where it is ``fresh`` and untrained networks beside it
    but for those that are ``kept``, and the one that acts at larger times where there is one. Raises `RuntimeError` for
    weights that do not fit."""
    network = new_network(config)
    added = network.residual.state_dict() if fresh and network.residual is not None else {}
    begun = {f"residual.{name}": value for name, value in added.items()}
    begun |= {} if network.labels is None else {"labels": network.labels.detach()}  # unless the model has them
    held = {**begun, **{key: value for key, value in tensors.items() if not key.startswith(BASE)}}
    network.load_state_dict(with_new(held, network, kept))
    begin_flows(network, [name for name, form in config.beside.items() if form.kind == "flow" and name not in kept])
    if config.tuned_from is None:
        return network, None
    base = new_network(replace(config, residual=0.0, beside={}, score=None))
    base.load_state_dict({key.removeprefix(BASE): value for key, value in tensors.items() if key.startswith(BASE)})
    return network, base.eval()


def _frozen(
    config: ControlConfig, network: ControlNetwork, base: ControlNetwork | None, tuned: tuple[int, int], path: str
) -> tuple[ControlConfig, ControlNetwork]:
    """With the network that acts at the first K - F of K steps: the one that the model has, or a copy of it as it is.
    Raises `UserError` where the model has one for other times."""
    steps, last = tuned
    start = float(time_grid(config.kind, config.steps, steps)[steps - last])
    if base is None or config.tuned_from is None:
        base = new_network(replace(config, residual=0.0, beside={}, score=None))
        base.load_state_dict({key: value for key, value in network.state_dict().items() if key in base.state_dict()})
        return replace(config, tuned_from=start), base.eval()
    if abs(config.tuned_from - start) > SAME_TIME:
        raise UserError(
            f"model {path!r} was tuned from time {config.tuned_from:g} on, and the last {last} of {steps} steps begin"
            f" at {start:g}; set algorithm.steps and algorithm.tuned as in the run that made it"
        )
    return config, base


def choose_trained(network: ControlNetwork, residual: Residual | None) -> None:
    """Train the residual alone, or everything but it and a score."""
    network.requires_grad_(residual is None)
    if network.score is not None:
        network.score.requires_grad_(False)
    if network.residual is not None:
        network.residual.requires_grad_(residual is not None)
        if residual is not None:
            network.residual.log_std.fill_(residual.log_std)


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
    for key, value in given.items():
        if wrong := _wrong(key, value):
            raise UserError(f"{file}: {key} is {value!r}; {wrong}")
    parts = {"encoder": tuple(given.get("encoder", ())), "policies": _shares(given.get("policies") or (), file)}
    beside, how = read_beside(given, file)
    config = ControlConfig(
        **given | parts | {"beside": beside, "acting": how, "score": _ascent(given.get("score"), file)}
    )
    if config.blocks and config.depth % 2 == 0:
        raise UserError(f"{file}: depth is {config.depth}; give an odd one, as blocks put all but one into pairs")
    if config.bound is not None and config.kind != "ddpm":
        raise UserError(f"{file}: bound is of what a DDPM predicts, and kind is {config.kind}; remove it")
    check_shape(config, str(file))
    return config


def check_shape(config: ControlConfig, where: str) -> None:
    """Raise `UserError` for numbers that do not go together."""
    if config.past + max(1, config.execute) > config.chunk:
        raise UserError(
            f"{where}: a chunk of {config.chunk} actions has no room for past={config.past} and execute="
            f"{config.execute}; give a longer chunk"
        )
    if config.kind == "mip" and config.steps != 2:
        raise UserError(f"{where}: steps is {config.steps}, and a MIP acts in 2; set 2")


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


CHOICES: dict[str, tuple[str, ...]] = {"kind": get_args(Kind), "activation": get_args(Activation)}
MOST = {"bound": math.inf, "tuned_from": 1.0}


def _wrong(key: str, value: Any) -> str:
    """What a key of ``config.json`` should be instead of this; empty where it is that."""
    if key in CHOICES:
        return "" if value in CHOICES[key] else f"choose {', '.join(CHOICES[key])}"
    if key in WHOLE:
        return "" if _whole(value, 1) else "give a whole number, 1 or more"
    if key in COUNTS:
        return "" if _whole(value, 0) else "give a whole number, 0 or more"
    if key in ("residual", "guidance"):
        fits = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf
        said = "how much of it is added to an action, 0 for none" if key == "residual" else "a number, 0 or more"
        return "" if fits else f"give {said}"
    if key in ("blocks", "norm"):
        return "" if isinstance(value, bool) else "give true or false"
    if key == "encoder":
        fits = isinstance(value, list) and all(_whole(width, 1) for width in value)
        return "" if fits else "give a list of whole numbers, 1 or more"
    if key == "embedding":
        return "" if value == 0 or (_whole(value, 4) and value % 2 == 0) else "give an even number from 4 on, or 0"
    if key in MOST:
        fits = value is None or (isinstance(value, int | float) and 0 < value <= MOST[key])
        return "" if fits else f"give a number above 0, {MOST[key]:g} at most, or null"
    return ""


def _whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def save_control(
    config: ControlConfig, network: ControlNetwork, folder: Path, base: ControlNetwork | None = None
) -> None:
    """Write a policy to a folder, as `load_control` reads it, with what acts at times above ``config.tuned_from`` and
    the networks beside its own that it acts with; the critic is no part of it."""
    folder.mkdir(parents=True, exist_ok=True)
    needed = {name: config.beside[name] for name in (config.acting.needs if config.acting else ())}
    facts = asdict(replace(config, beside=needed))
    facts = {key: value for key, value in facts.items() if value or key not in ("beside", "acting")}
    (folder / "config.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    both = {"": network, **({} if base is None else {BASE: base})}
    named = {f"{prefix}{name}": value for prefix, net in both.items() for name, value in net.state_dict().items()}
    tensors = {key: t.detach().cpu().contiguous() for key, t in named.items() if is_one_of(key, needed)}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
