"""Published methods as compositions of parts: one file each, named as in a config. This module finds and adjusts
them."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn, get_args, get_type_hints

from flowrl import renamed
from flowrl.errors import UserError, did_you_mean, short_repr
from flowrl.estimators.masked import MaskedViews
from flowrl.estimators.views import BlockAndAfter, Trajectory
from flowrl.parts.algorithm import Algorithm, Family
from flowrl.samplers.masked import MaskedSampler
from flowrl.values import typed

SLOTS: dict[str, tuple[str, ...]] = {
    "sampler": ("flowrl.samplers.flow", "flowrl.samplers.masked", "flowrl.samplers.causal"),
    "dynamics": ("flowrl.math.flow",),
    "window": ("flowrl.samplers.windows",),
    "estimator": (
        "flowrl.estimators.transitions",
        "flowrl.estimators.matching",
        "flowrl.estimators.masked",
        "flowrl.estimators.tokens",
    ),
    "views": ("flowrl.estimators.views",),
    "times": ("flowrl.estimators.times",),
    "advantage": ("flowrl.parts.advantages",),
    "token_advantage": ("flowrl.parts.token_advantages",),
    "selection": ("flowrl.parts.selections",),
    "loss_weight": ("flowrl.parts.loss_weights",),
    "objective": ("flowrl.parts.objectives", "flowrl.parts.bounds"),
    "regularizers": ("flowrl.parts.regularizers",),
    "aggregation": ("flowrl.parts.aggregations",),
    "ema_weights": ("flowrl.parts.ema",),
    "decay": ("flowrl.parts.ema",),
}
"""Where the parts that fit a field live."""
FAMILY_OF: dict[str, Family] = {
    "flow": "diffusion",
    "transitions": "diffusion",
    "matching": "diffusion",
    "masked": "masked",
    "causal": "causal",
    "tokens": "causal",
}
"""The models that samplers and estimators are for, by the module they come from."""


def names() -> list[str]:
    """All presets."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def find(name: str) -> Callable[..., Algorithm]:
    """The preset function of a name; `UserError` with a suggestion if there is none."""
    if name not in names():
        raise UserError(f"algorithm: there is no {name!r}{_instead(name, names())}")
    return getattr(importlib.import_module(f"{__name__}.{name}"), name)


def paper(name: str) -> str:
    """The source a preset declares."""
    find(name)
    return importlib.import_module(f"{__name__}.{name}").PAPER


def summary(name: str) -> str:
    """First paragraph of a preset's module docstring, on one line."""
    find(name)
    text = importlib.import_module(f"{__name__}.{name}").__doc__ or ""
    return " ".join(text.strip().split("\n\n")[0].split())


def build(spec: str | Mapping[str, Any]) -> Algorithm:
    """``"flow_grpo"``, or ``{use: flow_grpo, kl: 0, objective: {low: 1e-5}, sampler: {dynamics: {use: cps}}}``.

    Arguments of the preset and fields of the record may be given side by side; a mapping adjusts a part's fields, a
    mapping with
    ``use`` replaces it. Unknown keys and values of the wrong type raise `UserError` naming the key.
    """
    given = {"use": spec} if isinstance(spec, str) else dict(spec)
    name = given.pop("use", None)
    if not isinstance(name, str):
        raise UserError(f"algorithm.use: give the name of a preset; known: {', '.join(names())}")
    preset = find(name)
    arguments = inspect.signature(preset).parameters
    hints = get_type_hints(preset)
    fields = {field.name for field in dataclasses.fields(Algorithm)}
    for key in given:
        if key not in arguments and key not in fields:
            _unknown(f"algorithm.{key}", f"no such option of {name}", {*arguments, *fields})
    called = {k: _typed(hints[k], v, f"algorithm.{k}") for k, v in given.items() if k in arguments}
    try:
        algorithm = preset(**called)
    except ValueError as error:
        raise UserError(f"algorithm.{name}: {error}") from error
    algorithm = _adjust(algorithm, {k: v for k, v in given.items() if k not in arguments}, "algorithm")
    _check(algorithm, name)
    return algorithm


def describe(part: Any) -> Any:
    """A part as plain data: ``{"use": class name, field: value, ...}``."""
    if dataclasses.is_dataclass(part) and not isinstance(part, type):
        values = {field.name: describe(getattr(part, field.name)) for field in dataclasses.fields(part)}
        return {"use": type(part).__name__, **values}
    if isinstance(part, tuple):
        return [describe(item) for item in part]
    return part


def _check(algorithm: Algorithm, name: str) -> None:
    """Raise `UserError` for a sampler or estimator of another family, and for views that the completions do not fit."""
    sampler, estimator = algorithm.sampler, algorithm.estimator
    for slot, part in (("sampler", sampler), ("estimator", estimator)):
        kind = FAMILY_OF.get(type(part).__module__.rpartition(".")[2])
        if kind is not None and kind not in algorithm.families:
            raise UserError(
                f"algorithm.{slot}: {type(part).__name__} is for {kind} models, and {name} trains "
                f"{' or '.join(algorithm.families)} ones; take another part or preset"
            )
    if not (isinstance(sampler, MaskedSampler) and isinstance(estimator, MaskedViews)):
        return
    views = estimator.views
    if isinstance(views, BlockAndAfter) and -(-sampler.length // views.block) < views.draws:
        raise UserError(
            f"algorithm.estimator.views.draws={views.draws}: each view takes another block of {views.block} positions,"
            f" of which a completion of {sampler.length} has too few; lower algorithm.estimator.views.block or draws"
        )
    if isinstance(views, Trajectory):
        steps = sampler.steps if sampler.threshold is None else sampler.length
        if steps > views.limit * views.merge:
            raise UserError(
                f"algorithm.estimator.views.limit={views.limit}: the sampler may take {steps} steps, {views.merge} a"
                f" view; raise it to {-(-steps // views.merge)}"
            )


def _adjust(part: Any, changes: Mapping[str, Any], path: str) -> Any:
    known = {field.name for field in dataclasses.fields(part)}
    hints = get_type_hints(type(part))
    new = {}
    for key, value in changes.items():
        here = f"{path}.{key}"
        if key not in known:
            _unknown(here, f"{type(part).__name__} has no such field", known)
        new[key] = _value(key, value, getattr(part, key), hints[key], here)
    try:
        return dataclasses.replace(part, **new)
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: {error}") from error


def _value(slot: str, value: Any, current: Any, hint: Any, path: str) -> Any:
    adjusts = isinstance(value, Mapping) and "use" not in value
    if slot in SLOTS and isinstance(current, tuple) and not adjusts:
        items = value if isinstance(value, list) else [value]
        return tuple(_new_part(slot, item, f"{path}.{index}") for index, item in enumerate(items))
    if slot in SLOTS and not adjusts:
        return None if value is None and type(None) in get_args(hint) else _new_part(slot, value, path)
    if isinstance(value, Mapping):
        if not dataclasses.is_dataclass(current):
            raise UserError(f"{path}: there is nothing to adjust; name a part with 'use'")
        return _adjust(current, value, path)
    return _typed(hint, value, path)


def _new_part(slot: str, spec: Any, path: str) -> Any:
    known = parts_of(slot)
    if not isinstance(spec, str) and not (isinstance(spec, Mapping) and "use" in spec):
        raise UserError(f"{path}: {short_repr(spec)} names no part; known: {', '.join(sorted(known))}")
    given = {"use": spec} if isinstance(spec, str) else dict(spec)
    wanted = given.pop("use")
    match = {_plain(name): name for name in known}.get(_plain(str(wanted)))
    if match is None:
        raise UserError(f"{path}.use: there is no {wanted!r}{_instead(str(wanted), known)}")
    kind = known[match]
    required = [f.name for f in dataclasses.fields(kind) if f.default is f.default_factory is dataclasses.MISSING]
    missing = [name for name in required if name not in given]
    if missing:
        raise UserError(f"{path}: {match} needs {', '.join(missing)}")
    hints = get_type_hints(kind)
    start = {name: _typed(hints[name], given.pop(name), f"{path}.{name}") for name in required}
    try:
        part = kind(**start)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    return _adjust(part, given, path)


def parts_of(slot: str) -> dict[str, type]:
    """The parts that fit a slot, by class name."""
    modules = [importlib.import_module(name) for name in SLOTS[slot]]
    return {
        name: kind
        for module in modules
        for name, kind in inspect.getmembers(module, inspect.isclass)
        if kind.__module__ == module.__name__ and dataclasses.is_dataclass(kind) and callable(_entry(kind))
    }


def _entry(kind: type) -> Any:
    """What makes a dataclass a part: it can be called, or (kernels) has coefficients, or (averages) a name and a
    decay."""
    if "__call__" in kind.__dict__:
        return kind.__dict__["__call__"]
    return kind.__dict__.get("coefficients") or (kind if "decay" in kind.__annotations__ else None)


def _plain(name: str) -> str:
    return name.replace("_", "").lower()


def _unknown(key: str, what: str, known: Iterable[str]) -> NoReturn:
    word = key.rpartition(".")[2]
    raise UserError(renamed.sentence(key) or f"{key}: {what}{did_you_mean(word, known)}")


def _instead(name: str, known: Iterable[str]) -> str:
    """What to write for a name that is unknown."""
    new = renamed.new_name(name)
    return did_you_mean(name, known) if new is None else f": it is called {new} now; write {new}"


def _typed(hint: Any, value: Any, path: str) -> Any:
    try:
        return typed(hint, value)
    except ValueError as error:
        raise UserError(f"{path}: {short_repr(value)} will not do: {error}") from error
