"""From ``algorithm`` of a config to a checked `Algorithm`."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, NoReturn, TypeVar, get_args, get_type_hints

from flowrl.composition.contract import check_class, check_values, family_of
from flowrl.composition.episodes import OPTIONS, for_family
from flowrl.composition.names import outdated, own_code
from flowrl.composition.presets import find_preset, preset_names
from flowrl.composition.slots import SLOTS, is_own, own_place, part_name, shipped_part, shipped_parts
from flowrl.errors import UserError, describe_exception, did_you_mean, short_repr
from flowrl.estimators.bound_views import EveryBlock
from flowrl.estimators.masked import MaskedViews
from flowrl.estimators.path_views import Leftmost, RecordedSteps
from flowrl.estimators.views import BlockAndAfter, Trajectory
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.coefficients import with_coefficients
from flowrl.samplers.masked import MaskedSampler
from flowrl.types import IncompatibleError
from flowrl.values import validated

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Made = TypeVar("Made")
Part = TypeVar("Part", bound="DataclassInstance")


def build(spec: str | Mapping[str, object], *, trusted: bool = True) -> Algorithm:
    """``"flow_grpo"``, or ``{use: flow_grpo, kl: 0, objective: {low: 1e-5}, sampler: {dynamics: {use: cps}}}``.

    Arguments of the preset and fields of the record may be given side by side; a mapping adjusts a part's fields, a
    mapping with ``use`` replaces it. ``use`` also takes ``path.py:Class`` and ``module:Class``, whose code is run, and
    for the preset ``path.py:function``; not ``trusted`` refuses them. Raises `UserError` that names the key for unknown
    keys, values of the wrong type, and parts that are not what their slot needs.
    """
    given = {"use": spec} if isinstance(spec, str) else dict(spec)
    if old := outdated(given):
        raise UserError(
            old[0] if len(old) == 1 else "".join(["of an older release:", *(f"\n  - {line}" for line in old)])
        )
    if not trusted and (code := own_code(given)):
        key, place = next(iter(code.items()))
        raise UserError(f"{key}: {place} is somebody's code, which is not run from here")
    name = given.pop("use", None)
    if not isinstance(name, str):
        raise UserError(f"algorithm.use: give the name of a preset; known: {', '.join(preset_names())}")
    preset = find_preset(name)
    arguments = inspect.signature(preset).parameters
    fields = {field.name for field in dataclasses.fields(Algorithm)}
    further = () if "family" in arguments else OPTIONS.keys() & given.keys() - arguments.keys()
    placed = {key: given.pop(key) for key in sorted(further)}
    for key in given:
        if key not in arguments and key not in fields:
            _refuse(f"algorithm.{key}", f"no such option of {name}", {*arguments, *fields})
    algorithm = _from_preset(preset, name, {key: value for key, value in given.items() if key in arguments})
    if placed:
        placed = {key: _typed(OPTIONS[key], value, f"algorithm.{key}") for key, value in placed.items()}
        algorithm = _attempt(lambda: for_family(algorithm, name, placed), f"algorithm.{name}", own=False)
    algorithm = _adjusted(algorithm, {key: value for key, value in given.items() if key not in arguments}, "algorithm")
    if is_own_preset(preset):
        _check_parts(algorithm, "algorithm")
    _check_families(algorithm, name)
    _check_views(algorithm)
    _check_coefficients(algorithm)
    return algorithm


def is_own_preset(preset: Callable[..., Algorithm]) -> bool:
    """Whether a preset is a user's own."""
    return not preset.__module__.startswith("flowrl.")


def _from_preset(preset: Callable[..., Algorithm], name: str, given: Mapping[str, object]) -> Algorithm:
    arguments = inspect.signature(preset).parameters
    missing = [key for key, argument in arguments.items() if argument.default is argument.empty and key not in given]
    if missing:
        raise UserError(f"algorithm: {name} needs {', '.join(missing)}")
    hints = _attempt(lambda: get_type_hints(preset), "algorithm", own=is_own_preset(preset))
    values = {key: _typed(hints.get(key, object), value, f"algorithm.{key}") for key, value in given.items()}
    algorithm = _attempt(lambda: preset(**values), f"algorithm.{name}", own=is_own_preset(preset))
    if not isinstance(algorithm, Algorithm):
        raise UserError(f"algorithm: {name} returned {short_repr(algorithm)}; a preset returns an Algorithm")
    return algorithm


def _adjusted(part: Part, changes: Mapping[str, object], path: str) -> Part:
    """The part with some fields changed."""
    known = {field.name for field in dataclasses.fields(part)}
    hints = get_type_hints(type(part))
    new = {}
    for key, value in changes.items():
        here = f"{path}.{key}"
        if key not in known:
            _refuse(here, f"{part_name(type(part))} has no such field", known)
        new[key] = _field(key, value, getattr(part, key), hints[key], here)
    return _attempt(lambda: dataclasses.replace(part, **new), path, own=is_own(type(part)))


def _field(name: str, value: object, current: object, hint: object, path: str) -> object:
    """The value of a field: a part where the field is a slot, the current part adjusted, or plain data."""
    adjusts = isinstance(value, Mapping) and "use" not in value
    if name in SLOTS and isinstance(current, tuple) and not adjusts:
        items = value if isinstance(value, list) else [value]
        return tuple(_new_part(name, item, f"{path}.{index}") for index, item in enumerate(items))
    if name in SLOTS and not adjusts:
        return None if value is None and type(None) in get_args(hint) else _new_part(name, value, path)
    if isinstance(value, Mapping):
        if not dataclasses.is_dataclass(current) or isinstance(current, type):
            raise UserError(f"{path}: there is nothing to adjust; name a part with 'use'")
        return _adjusted(current, value, path)
    return _typed(hint, value, path)


def _new_part(slot: str, spec: object, path: str) -> DataclassInstance:
    """A part by its name, ``{use: name, field: value}`` or the place of a user's own."""
    if isinstance(spec, str):
        given: dict[str, object] = {"use": spec}
    elif isinstance(spec, Mapping) and "use" in spec:
        given = dict(spec)
    else:
        raise UserError(f"{path}: {short_repr(spec)} names no part; known: {', '.join(sorted(shipped_parts(slot)))}")
    name = str(given.pop("use"))
    kind = _class_of(slot, name, path)
    required = [f.name for f in dataclasses.fields(kind) if f.default is f.default_factory is dataclasses.MISSING]
    missing = [field for field in required if field not in given]
    if missing:
        raise UserError(f"{path}: {part_name(kind)} needs {', '.join(missing)}")
    hints = get_type_hints(kind)
    start = {field: _field(field, given.pop(field), None, hints[field], f"{path}.{field}") for field in required}
    part = _adjusted(_attempt(lambda: kind(**start), path, own=is_own(kind)), given, path)
    if is_own(kind):
        check_values(part, SLOTS[slot].protocol, path)
    return part


def _class_of(slot: str, name: str, path: str) -> type:
    place = own_place(name, path)
    if place is None:
        return shipped_part(slot, name, path)
    try:
        found = place.find(keep=True)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return check_class(found, SLOTS[slot].protocol, name, path)


def _check_parts(part: DataclassInstance, path: str) -> None:
    """Raise `UserError` for a user's own part, set by a preset, that is not what its slot needs."""
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        for item in value if isinstance(value, tuple) else (value,):
            kind, here = type(item), f"{path}.{field.name}"
            if field.name in SLOTS and item is not None and is_own(kind):
                check_class(kind, SLOTS[field.name].protocol, part_name(kind), here)
                check_values(item, SLOTS[field.name].protocol, here)
            if dataclasses.is_dataclass(item) and not isinstance(item, type):
                _check_parts(item, here)


def _check_families(algorithm: Algorithm, name: str) -> None:
    """Raise `UserError` for a sampler or estimator that is for other models than the algorithm trains."""
    beside = [(f"companions.{index}.estimator", each.estimator) for index, each in enumerate(algorithm.companions)]
    for slot, part in (("sampler", algorithm.sampler), ("estimator", algorithm.estimator), *beside):
        kind = type(part)
        family = family_of(kind, part_name(kind), f"algorithm.{slot}", part)
        if family not in algorithm.families:
            raise UserError(
                f"algorithm.{slot}: {part_name(kind)} is for {family} models, and {name} trains "
                f"{' or '.join(algorithm.families)} ones; take another part or preset"
            )


def _check_coefficients(algorithm: Algorithm) -> None:
    """Raise `UserError` for a coefficient of a field that is none, or no number."""
    try:
        with_coefficients(algorithm, {})
    except IncompatibleError as error:
        raise UserError(f"algorithm.coefficients: {error}") from error


def _check_views(algorithm: Algorithm) -> None:
    """Raise `UserError` for views of an estimator that the sampler's completions do not fit."""
    sampler, estimator = algorithm.sampler, algorithm.estimator
    if not (isinstance(sampler, MaskedSampler) and isinstance(estimator, MaskedViews)):
        return
    views = estimator.views
    if isinstance(views, BlockAndAfter) and -(-sampler.length // views.block) < views.draws:
        raise UserError(
            f"algorithm.estimator.views.draws={views.draws}: each view takes another block of {views.block} positions,"
            f" of which a completion of {sampler.length} has too few; lower algorithm.estimator.views.block or draws"
        )
    if isinstance(views, Leftmost | EveryBlock):
        key, most = ("limit", views.limit) if isinstance(views, Leftmost) else ("length", views.length)
        if sampler.length > most:
            raise UserError(
                f"algorithm.estimator.views.{key}={most}: raise it to the sampler's length {sampler.length}"
            )
    if isinstance(views, Leftmost) and not sampler.left_to_right:
        raise UserError(
            "algorithm.estimator.views: Leftmost scores completions that were decoded from left to right, one token "
            f"per step; set algorithm.sampler.order=leftmost and algorithm.sampler.steps={sampler.length}"
        )
    if isinstance(views, RecordedSteps) and views.limit != sampler.kept_steps:
        raise UserError(
            f"algorithm.estimator.views.limit={views.limit}: the sampler records {sampler.kept_steps} steps; "
            + ("make it that" if sampler.kept_steps else "set algorithm.sampler.keep_steps=true")
        )
    if getattr(views, "needs_scores", False) and not sampler.keep_scores:
        raise UserError(
            "algorithm.estimator.views: these are chosen by scores of the drawn tokens; set "
            "algorithm.sampler.keep_scores=true"
        )
    if isinstance(views, Trajectory):
        steps = sampler.steps if sampler.threshold is None else sampler.length
        if steps > views.limit * views.merge:
            raise UserError(
                f"algorithm.estimator.views.limit={views.limit}: the sampler may take {steps} steps, {views.merge} a"
                f" view; raise it to {-(-steps // views.merge)}"
            )


def _attempt(make: Callable[[], Made], path: str, *, own: bool) -> Made:
    """What ``make`` returns; what it raises as a `UserError`. Of a user's ``own`` code that may be anything, and the
    message says the line."""
    try:
        return make()
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    except Exception as error:
        if own:
            raise UserError(f"{path}: {describe_exception(error)}") from error
        if isinstance(error, TypeError):
            raise UserError(f"{path}: {error}") from error
        raise


def _refuse(key: str, what: str, known: Iterable[str]) -> NoReturn:
    section, _, word = key.rpartition(".")
    raise UserError(f"{key}: {what}{did_you_mean(word, known, section)}")


def _typed(hint: object, value: object, path: str) -> object:
    try:
        return validated(hint, value)
    except ValueError as error:
        raise UserError(f"{path}: {short_repr(value)} will not do: {error}") from error
