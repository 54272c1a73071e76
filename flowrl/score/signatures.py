"""One way to call every reward: ours, and the signatures people already have.

Accepted, told apart by parameter names: ``fn(images, prompts, **columns)`` (ours), ``fn(images, prompts, metadata)
-> (scores, info)`` and factories of it (flow_grpo, whose GenEval says ``metadatas``; DDPO), ``fn(prompts, completions,
**columns) -> list[float | None]`` (TRL), verl's and Flow-Factory's (`dialects`), async functions, and classes whose
instances are one of these. None says that a reward does not apply to a sample, NaN that it could not score it. Columns
inside verl's ``reward_model`` and ``extra_info`` are found like others (`conversations.spread`).

Completions and prompts are texts. TRL's rewards of conversational data sets read ``completion[0]["content"]``: one
that fails on texts is asked again with messages, and from then on only so (``messages`` in its entry decides it
beforehand). A parameter ``messages`` gets whole conversations [N], the answer last.

A reward that compares samples says so by a parameter: ``group`` [N ints] makes every call hold whole groups;
``others`` (shaped as the images or completions) makes it a comparison of pairs, answered as how much each sample is
better than the other one: a sample's score is the mean over the others of its group.
"""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from flowrl.clients.results import NOT_APPLICABLE, as_scores
from flowrl.errors import UserError, describe_exception, did_you_mean, short_repr
from flowrl.exit_guard import catch_exit
from flowrl.score.async_calls import wait_for
from flowrl.score.columns import as_messages, columns_of, dialogues
from flowrl.score.frameworks import VERL, VerlReward, build_flow_factory, is_flow_factory
from flowrl.types import Samples
from flowrl.values import misfit

LOG = logging.getLogger("flowrl.score")
SUBJECTS = ("images", "prompts", "completions")
COMPARED = ("group", "others")
"""Parameters of rewards that see whole groups."""
METADATA = ("metadata", "metadatas")
"""Parameters of flow_grpo's rewards for the prompts' columns, one mapping per sample."""
PASSED = {"only_strict": True, "run_name": ""}
"""Arguments that our data does not name, and what flow_grpo's and d1's training pass."""
MISREAD = re.compile("string indices must be integers|'str' object has no attribute|string index out of range")
"""What a reward that reads messages says of texts."""


class Answer(Protocol):
    """A reward as a function of samples alone, and of their group numbers [N] where it is ``grouped``."""

    function: Any
    """The user's own function or object."""

    @property
    def grouped(self) -> bool:
        """Whether every call needs whole groups."""
        ...

    @property
    def style(self) -> str:
        """Whose signature it has: flowrl, flow_grpo, TRL, verl or Flow-Factory."""
        ...

    def __call__(self, samples: Samples, group: Tensor | None = None) -> Any: ...


def adapt(
    found: Callable[..., Any],
    name: str,
    options: Mapping[str, Any],
    device: str | None,
    dtype: str | None = None,
    batch_size: int | None = None,
    messages: bool | None = None,
) -> Answer:
    """A function of samples alone. Classes and factories are built here, once, with the options, device and dtype.
    ``messages`` says whether it reads TRL's conversational form; None finds out.

    Raises `UserError` for an option the reward does not have, and later for a column that the prompts do not have.
    """
    answer = _adapt(found, name, options, device, dtype, batch_size)
    if isinstance(answer, _Call):
        answer.messages = messages
    LOG.info("reward %r: %s signature%s", name, answer.style, ", sees whole groups" if answer.grouped else "")
    return answer


def _adapt(
    found: Callable[..., Any],
    name: str,
    options: Mapping[str, Any],
    device: str | None,
    dtype: str | None,
    batch_size: int | None,
) -> Answer:
    try:
        inspect.signature(found)
    except (TypeError, ValueError):
        raise UserError(f"reward {name!r}: {found!r} does not say what it takes; wrap it in a function") from None
    if is_flow_factory(found):
        precision = getattr(torch, dtype or "float32")
        return build_flow_factory(found, name, options, device or _default_device(), precision, batch_size)
    if inspect.isclass(found) or not _scores(found):
        built = _built(found, name, _settings(found, name, options, device, dtype, open_ended=True))
        if not callable(built) or not _scores(built):
            raise UserError(_no_reward(found, name))
        return _call_of(built, name, {})
    verl = any(key in VERL for key in inspect.signature(found).parameters)  # its ``**kwargs`` are meant for options
    return _call_of(found, name, _settings(found, name, options, device, dtype, open_ended=verl))


def _built(found: Callable[..., Any], name: str, settings: Mapping[str, Any]) -> Any:
    """What a class or factory makes. Raises `UserError` when its own code raises."""
    try:
        inspect.signature(found).bind(**settings)
    except TypeError as error:
        what = _no_reward(found, name) if not inspect.isclass(found) else f"reward {name!r} needs an option"
        raise UserError(f"{what}: {error}") from None
    try:
        with catch_exit():
            return found(**settings)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # whatever a stranger's code raises is reported as theirs, chained
        raise UserError(f"reward {name!r} cannot be loaded: {describe_exception(error)}") from error


def _no_reward(found: Callable[..., Any], name: str) -> str:
    return (
        f"reward {name!r} should be a function of (images, prompts, ...) or (prompts, completions, ...), "
        f"or build one; found {inspect.signature(found)}"
    )


def _call_of(function: Callable[..., Any], name: str, settings: Mapping[str, Any]) -> Answer:
    parameters = inspect.signature(function).parameters
    kind = VerlReward if any(key in VERL for key in parameters) else _Call
    return kind(function, name, settings)


def version_of(answer: Answer) -> str | None:
    """What a reward says of its weights and preprocessing by an attribute ``version``; None if it says nothing."""
    version = getattr(answer.function, "version", None)
    return None if version is None else str(version)


def close(answer: Answer) -> None:
    """Let a reward free what it holds, if it has a ``close`` method."""
    if "close" in dir(answer.function):
        answer.function.close()


class _Call:
    """Picks the arguments that a reward's signature names."""

    def __init__(self, function: Callable[..., Any], name: str, settings: Mapping[str, Any]) -> None:
        self.function, self.name, self.settings = function, name, dict(settings)
        self.parameters = inspect.signature(function).parameters
        self.open_ended = _takes_anything(self.parameters)
        self.grouped = any(key in self.parameters for key in COMPARED)
        self.messages: bool | None = None
        """Whether it reads messages; None until it has been asked once."""

    @property
    def style(self) -> str:
        if any(key in self.parameters for key in METADATA):
            return "flow_grpo"
        trl = {"prompts", "completions"} <= set(self.parameters) and "images" not in self.parameters
        return "TRL" if trl else "flowrl"

    def __call__(self, samples: Samples, group: Tensor | None = None) -> Any:
        if "others" in self.parameters:
            assert group is not None
            return self._compare(samples, group)
        return self._ask(samples, {} if group is None else {"group": group.tolist()})

    def _ask(self, samples: Samples, more: Mapping[str, Any]) -> Any:
        columns = columns_of(samples)
        values = {**columns, **_subjects(samples)}
        if "messages" in self.parameters and "messages" not in columns and samples.completions is not None:
            values["messages"] = dialogues(samples)
        values |= {key: value for key, value in more.items() if key in self.parameters}
        for key in METADATA:
            if key in self.parameters and key not in columns:
                values[key] = [{**prompt.columns, "prompt": prompt.text} for prompt in samples.prompts]
        if samples.completions is None or self.messages is False or not len(samples):
            return self._call(values)
        spoken = values | as_messages(samples)
        if self.messages:
            return self._call(spoken)
        try:
            answer = self._call(values)
            self.messages = False
        except (TypeError, AttributeError, IndexError) as misread:
            if not MISREAD.search(str(misread)):
                raise
            try:
                answer = self._call(spoken)
            except Exception:  # so it was not that
                raise misread from None
            self.messages = True
            LOG.info("reward %r reads messages, as TRL's conversational data sets have them", self.name)
        return answer

    def _call(self, values: Mapping[str, Any]) -> Any:
        positional, named = self._arguments(values)
        return wait_for(self.function(*positional, **named))

    def _compare(self, samples: Samples, group: Tensor) -> Tensor:
        """[N] mean of the comparisons with each other sample of the group; NaN for a sample without others."""
        scores = torch.full((len(samples),), torch.nan, dtype=torch.float64)
        for row, key in enumerate(group.tolist()):
            others = [other for other in (group == key).nonzero()[:, 0].tolist() if other != row]
            if not others:
                continue
            first, second = take(samples, [row] * len(others)), take(samples, others)
            more = {"others": second.completions if second.images is None else second.images}
            answer = self._ask(first, more | {"group": [key] * len(others)})
            values = as_scores(answer, len(others), self.name)
            scores[row] = values[values != NOT_APPLICABLE].nanmean()
        return scores

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
            elif key in PASSED:
                value = PASSED[key]
            else:
                raise UserError(self._missing(parameter, values))
            used.add(key)
            if parameter.kind is parameter.POSITIONAL_ONLY:
                positional.append(value)
            else:
                named[key] = value
        if self.open_ended:
            named |= {key: value for key, value in values.items() if key not in used and key not in SUBJECTS}
        return positional, named

    def _missing(self, parameter: inspect.Parameter, values: Mapping[str, Any]) -> str:
        key = parameter.name
        if key in SUBJECTS:
            return f"reward {self.name!r} scores {key}, but the model makes no {key}; choose another reward"
        columns = [name for name in values if name not in SUBJECTS]
        have = ", ".join(map(repr, columns)) or "none"
        if parameter.kind is parameter.KEYWORD_ONLY:  # where options stand, though a column may fill it
            return (
                f"reward {self.name!r} needs {key!r}; give it under its options, or as a column of the prompts (which "
                f"have: {have})"
            )
        return f"reward {self.name!r} needs the column {key!r}, which the prompts do not have (columns: {have})"


def take(samples: Samples, rows: Sequence[int]) -> Samples:
    """Some of the samples; a view where they follow one another, so that a change in place is noticed."""
    prompts = [samples.prompts[row] for row in rows]
    completions = None if samples.completions is None else [samples.completions[row] for row in rows]
    if samples.images is None:
        return Samples(prompts, None, completions)
    together = list(rows) == list(range(rows[0], rows[0] + len(rows))) if rows else False
    images = samples.images[rows[0] : rows[-1] + 1] if together else samples.images[list(rows)]
    return replace(samples, prompts=prompts, images=images, completions=completions)


def _subjects(samples: Samples) -> dict[str, Any]:
    found: dict[str, Any] = {"prompts": [prompt.text for prompt in samples.prompts]}
    if samples.images is not None:
        found["images"] = samples.images
    if samples.completions is not None:
        found["completions"] = list(samples.completions)
    return found


def _scores(function: Callable[..., Any]) -> bool:
    """Whether a callable takes samples, rather than building something that does."""
    return any(name in (*SUBJECTS, *VERL) for name in inspect.signature(function).parameters)


def _settings(
    function: Callable[..., Any],
    name: str,
    options: Mapping[str, Any],
    device: str | None,
    dtype: str | None,
    *,
    open_ended: bool,
) -> dict[str, Any]:
    """Options, device and dtype that a signature accepts. ``**columns`` of a reward is no place for options: a misspelt
    one would vanish there; ``**kwargs`` of a constructor is (``open_ended``)."""
    parameters = inspect.signature(function).parameters
    anything = open_ended and _takes_anything(parameters)
    known = [key for key, p in parameters.items() if key not in SUBJECTS and p.kind is not p.VAR_KEYWORD]
    for key in options:
        if key not in known and not anything:
            raise UserError(f"reward {name!r} has no option {key!r}{did_you_mean(key, known)}")
        if wrong := misfit(function, key, options[key]):
            raise UserError(f"reward {name!r}: options.{key}: {short_repr(options[key])} will not do: {wrong}")
    given = dict(options)
    for key, value in (("device", device), ("dtype", dtype)):
        if key in parameters and key not in options:
            needed = key == "device" and parameters[key].default is inspect.Parameter.empty
            chosen = value or (_default_device() if needed else None)
            given |= {key: chosen} if chosen else {}
        elif value is not None and key in options:
            raise UserError(f"reward {name!r}: {key} is given twice; remove it from the options")
        elif value is not None and not anything:
            raise UserError(f"reward {name!r} holds no model, so it has no {key}; remove its '{key}: {value}'")
    return given


def _takes_anything(parameters: Mapping[str, inspect.Parameter]) -> bool:
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())


def _default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
