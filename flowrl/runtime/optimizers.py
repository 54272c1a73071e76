"""Optimisers by name: any of ``torch.optim``, ``bitsandbytes.optim`` or another package; and their state on disk.

What an optimiser keeps may be tensors of any type (bitsandbytes has blocks of eight bits), plain numbers (counts of
steps) and, in some, numbers of a whole group (Prodigy's estimate of the distance): a checkpoint holds all of it.
"""

from __future__ import annotations

import importlib
import inspect
import io
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any

import torch
from torch import Tensor, nn

from flowrl.config.schema import OptimizerConfig
from flowrl.errors import UserError, did_you_mean, first_line, is_out_of_memory, missing_package
from flowrl.models.sharding import is_sharded, split_alike
from flowrl.runtime.half_weights import MasterWeights, StochasticRounding

SHARED = ("betas", "eps", "weight_decay")
"""Keys of ``optimizer`` that go to every class that has a parameter of the name and form."""
PACKAGES = {"bitsandbytes": "quantize", "prodigyopt": "optimizers"}
"""Packages that bare names are looked for in, after torch, with the extra that installs each."""
OF_BITSANDBYTES = ("8bit", "32bit", "Paged", "AdEMAMix", "LAMB", "LARS", "Lion")
"""Parts of names that bitsandbytes alone has; torch's are looked for first."""


def optimizer_class(name: str) -> type[torch.optim.Optimizer]:
    """The class that ``optimizer.use`` names: of ``torch.optim``, ``bitsandbytes.optim`` or ``prodigyopt`` by its name
    alone, of any package as ``package.module.Class``.

    Raises:
        UserError: there is none, or its package is not installed.
    """
    place, _, kind = name.rpartition(".")
    if not place:
        place = _home(name)
    package = place.partition(".")[0]
    try:
        module = importlib.import_module(place)
    except ImportError as error:
        if package in PACKAGES:
            raise missing_package(f"optimizer.use={name}", package, PACKAGES[package], "use another") from error
        raise UserError(f"optimizer.use={name}: {place} cannot be imported: {first_line(error)}") from error
    found = getattr(module, kind, None)
    if _is_optimizer(found):
        return found  # pyright: ignore[reportReturnType]
    raise UserError(f"optimizer.use: {place} has no optimiser {kind!r}{did_you_mean(kind, _optimizers(module))}")


def _home(name: str) -> str:
    """The module a bare name is of; torch's where none is known, which then says what it has."""
    if name in _optimizers(torch.optim):
        return "torch.optim"
    if name == "Prodigy":
        return "prodigyopt"
    return "bitsandbytes.optim" if any(part in name for part in OF_BITSANDBYTES) else "torch.optim"


def _optimizers(module: Any) -> list[str]:
    return sorted(name for name in dir(module) if not name.startswith("_") and _is_optimizer(getattr(module, name)))


def _is_optimizer(found: object) -> bool:
    return isinstance(found, type) and issubclass(found, torch.optim.Optimizer) and found is not torch.optim.Optimizer


def optimizer_arguments(config: OptimizerConfig) -> dict[str, Any]:
    """Keyword arguments of the class: ``lr``, those of `SHARED` that it has in the same form, and ``options``.

    Raises:
        UserError: an option that the class does not have, or a key of `SHARED` that was changed and means nothing to
            it.
    """
    kind = optimizer_class(config.use)
    parameters = inspect.signature(kind).parameters
    unknown = sorted(set(config.options) - set(parameters))
    known = [name for name in parameters if name not in ("params", "lr", *SHARED)]
    if unknown:
        raise UserError(
            f"optimizer.options: {config.use} has no {unknown[0]!r}"
            f"{did_you_mean(unknown[0], [*known, *(name for name in SHARED if name in parameters)])}"
        )
    if "lr" in config.options or "params" in config.options:
        raise UserError("optimizer.options: the learning rate is optimizer.lr, which optimizer.schedule acts on")
    found: dict[str, Any] = {"lr": config.lr} if config.use != "AdamW" else {"lr": config.lr, "fused": True}
    for key in SHARED:
        value = getattr(config, key)
        if _fits(parameters.get(key), value):
            found[key] = value
        elif key not in config.options and value != type(config).model_fields[key].default:
            raise UserError(f"optimizer.{key} means nothing for {config.use}; remove it, or see optimizer.options")
    _check_rate(config, parameters)
    return found | {key: tuple(v) if isinstance(v, list) else v for key, v in config.options.items()}


def _fits(parameter: inspect.Parameter | None, value: Any) -> bool:
    """Whether a parameter's default has the form of ``value``: a number, or as many of them."""
    if parameter is None:
        return False
    default = parameter.default
    if isinstance(value, tuple):
        return isinstance(default, tuple | list) and len(default) == len(value)
    return isinstance(default, int | float) and not isinstance(default, bool)


def _check_rate(config: OptimizerConfig, parameters: Mapping[str, inspect.Parameter]) -> None:
    """Raise `UserError` where a rate of AdamW's was left for an optimiser that finds the size of its steps itself."""
    own = parameters["lr"].default if "lr" in parameters else None
    left = type(config).model_fields["lr"].default
    if isinstance(own, int | float) and own >= 0.5 and config.lr == left:
        raise UserError(
            f"optimizer.lr={config.lr:g} is AdamW's, and {config.use} chooses the size of its steps by a factor on them"
            f" ({own:g} by default); set optimizer.lr={own:g}"
        )


def check_optimizer(config: OptimizerConfig, critic: bool = False, half: bool = False) -> None:
    """Try the optimiser on a matrix of zeros, before a model is loaded. ``critic``: with a second group at another
    rate. ``half``: on weights in bfloat16.

    Raises:
        UserError: a class, option or value that does not exist or cannot be used, or a state that cannot be saved.
    """
    dtype = torch.bfloat16 if half else torch.float32
    groups = [[nn.Parameter(torch.zeros(64, 64, dtype=dtype))] for _ in range(1 + critic)]
    if half:
        _check_accumulation(groups[0][0])
    if config.use == "AdamW" and not config.options:
        return  # whose keys have been checked
    with _explained(config), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # paged states are of GPUs
        optimizer = build_optimizer(config, groups, seed=0)
        rates = config.lr, config.critic_lr or 10 * config.lr
        for group, rate in zip(optimizer.param_groups, rates, strict=False):
            group["lr"] = rate
            group["params"][0].grad = torch.ones(64, 64)
        optimizer.step()
        json.dumps(optimizer_state(optimizer)[1])


@contextmanager
def _explained(config: OptimizerConfig) -> Iterator[None]:
    """What an optimiser's class raises inside becomes a `UserError`; what it prints is not shown."""
    try:
        with redirect_stdout(io.StringIO()):
            yield
    except UserError:
        raise
    except Exception as error:  # whatever the class raises
        if is_out_of_memory(error):
            raise
        given = ", ".join(f"{key}={value}" for key, value in optimizer_arguments(config).items())
        raise UserError(f"optimizer.use={config.use} cannot be used with {given}: {first_line(error)}") from error


def _check_accumulation(parameter: nn.Parameter) -> None:
    if not hasattr(parameter, "grad_dtype"):
        raise UserError(
            "model.trained_dtype=bfloat16 accumulates gradients in float32, which torch can from 2.10 on, and this is"
            f" {torch.__version__}; set model.trained_dtype=float32, or install a newer one"
        )


def build_optimizer(
    config: OptimizerConfig, groups: Sequence[Sequence[nn.Parameter]], seed: int
) -> torch.optim.Optimizer:
    """The optimiser of some groups of parameters: the policy's, and a critic's.

    Parameters in bfloat16 get float32 masters, or with ``optimizer.masters: false`` stochastic rounding, whose random
    numbers follow from ``seed``; and their gradients are accumulated in float32. Raises `UserError` as
    `optimizer_class` and `optimizer_arguments` do, and for parameters that the class does not take.
    """
    kind, arguments = optimizer_class(config.use), optimizer_arguments(config)
    packed = [{"params": list(group)} for group in groups if len(group)]
    parameters = [p for group in packed for p in group["params"]]
    half = [p for p in parameters if p.dtype != torch.float32]
    for parameter in half:
        parameter.grad_dtype = torch.float32
    with _explained(config):
        if not half:
            return kind(packed, **arguments)
        wrapper = MasterWeights if config.masters else StochasticRounding
        return wrapper(packed, lambda given: kind(given, **arguments), lr=config.lr, seed=seed)


# ---- state


def optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """``(tensors, values)`` of everything that changes in steps, by ``parameter/name`` and ``groups/group/name``; the
    learning rates are the schedule's and left out, as are settings that are what the config made them."""
    packed = optimizer.state_dict()
    found = {f"{index}/{key}": v for index, entry in packed["state"].items() for key, v in _leaves(entry)}
    for number, group in enumerate(packed["param_groups"]):
        for key, value in group.items():
            if key not in ("params", "lr", "initial_lr") and not _same(value, optimizer.defaults.get(key, found)):
                found[f"groups/{number}/{key}"] = value
    odd = [
        v
        for v in found.values()
        if isinstance(v, Tensor) and type(v) not in (Tensor, nn.Parameter) and not is_sharded(v)
    ]
    if odd:
        raise UserError(f"optimizer.use: its state is a {type(odd[0]).__name__}, which a checkpoint cannot hold")
    tensors = {key: value for key, value in found.items() if isinstance(value, Tensor)}
    return tensors, {key: value for key, value in found.items() if key not in tensors}


def restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], values: Mapping[str, Any]
) -> None:
    """Continue from what `optimizer_state` returned. Raises `KeyError` or `ValueError` for what does not fit."""
    packed = optimizer.state_dict()
    packed["state"] = {}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for path in (*tensors, *values):
        value = tensors[path] if path in tensors else values[path]
        first, *names = path.split("/")
        if first == "groups":
            number, key = int(names[0]), names[1]
            group = packed["param_groups"][number]
            group[key] = tuple(value) if isinstance(value, list) else value
            continue
        entry = packed["state"].setdefault(int(first), {})
        for name in names[:-1]:
            entry = entry.setdefault(name, {})
        entry[names[-1]] = split_alike(value, parameters[int(first)]) if isinstance(value, Tensor) else value
    optimizer.load_state_dict(packed)


def _leaves(entry: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in entry.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value


def _same(value: Any, default: Any) -> bool:
    if isinstance(value, Tensor) or isinstance(default, Tensor):
        return value is default
    return type(value) is type(default) and value == default
