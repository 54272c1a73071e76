"""One way to call every reward: ours, and the signatures people already have.

Accepted, told apart by parameter names: ``fn(images, prompts, **columns)`` (ours), ``fn(images, prompts, metadata)
-> (scores, info)`` and factories of it (flow_grpo, DDPO), ``fn(prompts, completions, **columns) -> list[float | None]``
(TRL), and classes whose instances are one of these.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowrl.errors import UserError, did_you_mean
from flowrl.types import Samples

SUBJECTS = ("images", "prompts", "completions")
FLOW_GRPO = {"only_strict": True}
"""Arguments of flow_grpo's rewards that our data does not name, and what its training passes."""

Answer = Callable[[Samples], Any]


def adapt(found: Callable[..., Any], name: str, options: Mapping[str, Any], device: str | None) -> Answer:
    """A function of samples alone. Classes and factories are built here, once, with the options and the device.

    Raises `UserError` for an option the reward does not have, and later for a column that the prompts do not have.
    """
    if inspect.isclass(found) or not _scores(found):
        built = found(**_settings(found, name, options, device, open_ended=True))
        if not callable(built) or not _scores(built):
            raise UserError(
                f"reward {name!r} should be a function of (images, prompts, ...) or (prompts, completions, ...), "
                f"or build one; found {inspect.signature(found)}"
            )
        return _Call(built, name, {})
    return _Call(found, name, _settings(found, name, options, device, open_ended=False))


def close(answer: Answer) -> None:
    """Let a reward free what it holds, if it has a ``close`` method."""
    if isinstance(answer, _Call) and "close" in dir(answer.function):
        answer.function.close()  # type: ignore[attr-defined]


class _Call:
    """Picks the arguments that a reward's signature names."""

    def __init__(self, function: Callable[..., Any], name: str, settings: Mapping[str, Any]) -> None:
        self.function, self.name, self.settings = function, name, dict(settings)
        self.parameters = inspect.signature(function).parameters
        self.open_ended = _takes_anything(self.parameters)

    def __call__(self, samples: Samples) -> Any:
        columns = columns_of(samples)
        values = {**columns, **_subjects(samples)}
        if "metadata" in self.parameters and "metadata" not in columns:
            values["metadata"] = [{**prompt.columns, "prompt": prompt.text} for prompt in samples.prompts]
        positional, named = self._arguments(values)
        return self.function(*positional, **named)

    def _arguments(self, values: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        positional, named, used = [], {}, set()
        for key, parameter in self.parameters.items():
            if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                continue
            if key in self.settings:
                value = self.settings[key]
            elif key in values:
                value = values[key]
            elif parameter.default is not parameter.empty:
                continue
            elif key in FLOW_GRPO:
                value = FLOW_GRPO[key]
            else:
                raise UserError(self._missing(key, values))
            used.add(key)
            if parameter.kind is parameter.POSITIONAL_ONLY:
                positional.append(value)
            else:
                named[key] = value
        if self.open_ended:
            named |= {key: value for key, value in values.items() if key not in used and key not in SUBJECTS}
        return positional, named

    def _missing(self, key: str, values: Mapping[str, Any]) -> str:
        if key in SUBJECTS:
            return f"reward {self.name!r} scores {key}, but the model makes no {key}; choose another reward"
        columns = [name for name in values if name not in SUBJECTS]
        have = ", ".join(map(repr, columns)) or "none"
        return f"reward {self.name!r} needs the column {key!r}, which the prompts do not have (columns: {have})"


def columns_of(samples: Samples) -> dict[str, list[Any]]:
    """The prompts' other fields as lists of N; None where a prompt does not have one."""
    names = dict.fromkeys(name for prompt in samples.prompts for name in prompt.columns)
    return {name: [prompt.columns.get(name) for prompt in samples.prompts] for name in names}


def as_scores(answer: Any, count: int, name: str) -> Tensor:
    """[count] float64 on the host from a tensor, array or list, or ``(scores, info)``; None becomes NaN.

    Raises `UserError` for another number of scores, another type, or an infinite score.
    """
    if isinstance(answer, tuple) and answer and not isinstance(answer[0], int | float | None):
        answer = answer[0]
    values = _numbers(answer, name)
    if values.shape != (count,):
        shape = "x".join(map(str, values.shape)) or "one number"
        raise UserError(f"reward {name!r} should return {count} scores for {count} samples, found {shape}")
    if bool(torch.isinf(values).any()):
        where = int(torch.isinf(values).nonzero()[0, 0])
        raise UserError(
            f"reward {name!r} returned {float(values[where])} for sample {where}; scores are finite, "
            "or NaN for 'could not score'"
        )
    return values


def _numbers(answer: Any, name: str) -> Tensor:
    if isinstance(answer, Tensor):
        values = answer.detach().cpu()
        if not values.is_complex():
            return values.double()
    elif isinstance(answer, Sequence | np.ndarray) and not isinstance(answer, str):
        filled = [float("nan") if value is None else value for value in answer]
        try:
            return torch.tensor([float(value) for value in filled], dtype=torch.float64)
        except (TypeError, ValueError):
            pass  # explained below, as any other wrong type
    kind = "None (a missing return?)" if answer is None else type(answer).__name__
    raise UserError(f"reward {name!r} should return a tensor, array or list of numbers, found {kind}")


def _subjects(samples: Samples) -> dict[str, Any]:
    found: dict[str, Any] = {"prompts": [prompt.text for prompt in samples.prompts]}
    if samples.images is not None:
        found["images"] = samples.images
    if samples.completions is not None:
        found["completions"] = list(samples.completions)
    return found


def _scores(function: Callable[..., Any]) -> bool:
    """Whether a callable takes samples, rather than building something that does."""
    return any(name in SUBJECTS for name in inspect.signature(function).parameters)


def _settings(
    function: Callable[..., Any], name: str, options: Mapping[str, Any], device: str | None, *, open_ended: bool
) -> dict[str, Any]:
    """Options and device that a signature accepts. ``**columns`` of a reward is no place for options: a misspelt one
    would vanish there; ``**kwargs`` of a constructor is (``open_ended``)."""
    parameters = inspect.signature(function).parameters
    anything = open_ended and _takes_anything(parameters)
    known = [key for key, p in parameters.items() if key not in SUBJECTS and p.kind is not p.VAR_KEYWORD]
    for key in options:
        if key not in known and not anything:
            raise UserError(f"reward {name!r} has no option {key!r}{did_you_mean(key, known)}")
    if "device" in parameters and "device" not in options:
        needed = parameters["device"].default is inspect.Parameter.empty
        chosen = device or (_default_device() if needed else None)
        return {**options, **({"device": chosen} if chosen else {})}
    if device is not None and not anything:
        raise UserError(f"reward {name!r} holds no model, so it has no device; remove its 'device: {device}'")
    return dict(options)


def _takes_anything(parameters: Mapping[str, inspect.Parameter]) -> bool:
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())


def _default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
