"""One way to call every reward: ours, and the signatures people already have.

Accepted, told apart by parameter names: ``fn(images, prompts, **columns)`` (ours), ``fn(images, prompts, metadata)
-> (scores, info)`` and factories of it (flow_grpo, whose GenEval says ``metadatas``; DDPO), ``fn(prompts, completions,
**columns) -> list[float | None]`` (TRL), verl's and Flow-Factory's (`frameworks`), async functions, and classes whose
instances are one of these. None says that a reward does not apply to a sample, NaN that it could not score it. Columns
inside verl's ``reward_model`` and ``extra_info`` are found like others (`columns.flatten_columns`).

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
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from flowrl.clients.results import NOT_APPLICABLE, as_scores
from flowrl.devices import count, default_kind
from flowrl.errors import UserError, describe_exception, did_you_mean, is_out_of_memory, short_repr
from flowrl.exit_guard import catch_exit
from flowrl.launcher import own_accelerator
from flowrl.score.async_calls import wait_for
from flowrl.score.columns import as_messages, columns_of, whole_conversations
from flowrl.score.frameworks import VERL, VerlReward, build_flow_factory, is_flow_factory
from flowrl.score.per_frame import PerFrame
from flowrl.score.reward_function import AdaptedReward, takes_anything
from flowrl.score.samples import split_by_group, take
from flowrl.types import Samples
from flowrl.values import argument_problem

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


def adapt(
    found: Callable[..., Any],
    name: str,
    options: Mapping[str, Any],
    device: str | None,
    dtype: str | None = None,
    batch_size: int | None = None,
    messages: bool | None = None,
    frames: int | None = None,
) -> AdaptedReward:
    """A function of samples alone. Classes and factories are built here, once, with the options, device and dtype.
    ``messages`` says whether it reads TRL's conversational form; None finds out. ``frames``: of videos, score so many
    frames as images (`flowrl.score.per_frame`).

    Raises `UserError` for an option the reward does not have, and later for a column that the prompts do not have.
    """
    try:
        parameters = inspect.signature(found).parameters
    except (TypeError, ValueError):
        raise UserError(f"reward {name!r}: {found!r} does not say what it takes; wrap it in a function") from None
    if is_flow_factory(found):
        precision = getattr(torch, dtype or "float32")
        reward = build_flow_factory(found, name, options, device or _default_device(), precision, batch_size)
    elif inspect.isclass(found) or not _takes_samples(found):
        built = _build(found, name, _settings(found, name, options, device, dtype, open_ended=True))
        reward = _by_signature(built, name, {}, messages)
    else:
        verl = any(key in VERL for key in parameters)  # its ``**kwargs`` are meant for options
        reward = _by_signature(found, name, _settings(found, name, options, device, dtype, open_ended=verl), messages)
    LOG.info("reward %r: %s signature%s", name, reward.style, ", sees whole groups" if reward.grouped else "")
    return reward if frames is None else PerFrame(reward, frames)


def _by_signature(
    function: Callable[..., Any], name: str, settings: Mapping[str, Any], messages: bool | None
) -> AdaptedReward:
    parameters = inspect.signature(function).parameters
    if any(key in VERL for key in parameters):
        return VerlReward(function, name, settings)
    kind = PairwiseReward if "others" in parameters else SignatureReward
    return kind(function, name, settings, messages)


def _build(found: Callable[..., Any], name: str, settings: Mapping[str, Any]) -> Callable[..., Any]:
    """What a class or factory makes. Raises `UserError` when its own code raises, or it makes no reward."""
    try:
        inspect.signature(found).bind(**settings)
    except TypeError as error:
        what = _no_reward(found, name) if not inspect.isclass(found) else f"reward {name!r} needs an option"
        raise UserError(f"{what}: {error}") from None
    try:
        with catch_exit():
            built = found(**settings)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # whatever a user's code raises is reported as theirs, chained
        raise UserError(f"reward {name!r} cannot be loaded: {describe_exception(error)}") from error
    if not callable(built) or not _takes_samples(built):
        raise UserError(_no_reward(found, name))
    return built


def _no_reward(found: Callable[..., Any], name: str) -> str:
    return (
        f"reward {name!r} should be a function of (images, prompts, ...) or (prompts, completions, ...), "
        f"or build one; found {inspect.signature(found)}"
    )


class SignatureReward(AdaptedReward):
    """Picks the arguments that a reward's signature names. ``settings`` are its options.

    ``messages`` says whether it reads messages; None until it has been called once.
    """

    def __init__(
        self, function: Callable[..., Any], name: str, settings: Mapping[str, Any], messages: bool | None = None
    ) -> None:
        super().__init__(function, name)
        self.settings, self.messages = dict(settings), messages
        self.grouped = any(key in self.parameters for key in COMPARED)
        trl = {"prompts", "completions"} <= set(self.parameters) and "images" not in self.parameters
        self.style = "flow_grpo" if any(key in self.parameters for key in METADATA) else "TRL" if trl else "flowrl"

    def __call__(self, samples: Samples, group: Tensor | None = None, **more: object) -> object:
        """``more`` are further arguments by name."""
        values = self._values(samples, {**more, **({} if group is None else {"group": group.tolist()})})
        if samples.completions is None or self.messages is False or not len(samples):
            return self._call(values)
        spoken = values | as_messages(samples)
        if self.messages:
            return self._call(spoken)
        try:
            result = self._call(values)
            self.messages = False
        except (TypeError, AttributeError, IndexError) as misread:
            if not MISREAD.search(str(misread)):
                raise
            result = self._call_again(spoken, misread)
            self.messages = True
            LOG.info("reward %r reads messages, as TRL's conversational data sets have them", self.name)
        return result

    def _call(self, values: Mapping[str, object]) -> object:
        positional, named = self._arguments(values)
        return wait_for(self.function(*positional, **named))

    def _call_again(self, values: Mapping[str, object], before: Exception) -> object:
        """With messages, after texts failed with ``before``, which is raised if that was not why."""
        try:
            return self._call(values)
        except Exception as error:
            raise error if is_out_of_memory(error) else before from None

    def _values(self, samples: Samples, more: Mapping[str, object]) -> dict[str, object]:
        """All that an argument may be, by name."""
        columns = columns_of(samples)
        values: dict[str, object] = {**columns, "prompts": [prompt.text for prompt in samples.prompts]}
        if samples.images is not None:
            values["images"] = samples.images
        if samples.completions is not None:
            values["completions"] = list(samples.completions)
            if "messages" in self.parameters and "messages" not in columns:
                values["messages"] = whole_conversations(samples)
        values |= {key: value for key, value in more.items() if key in self.parameters}
        for key in METADATA:
            if key in self.parameters and key not in columns:
                values[key] = [{**prompt.columns, "prompt": prompt.text} for prompt in samples.prompts]
        return values

    def _arguments(self, values: Mapping[str, object]) -> tuple[list[object], dict[str, object]]:
        """Positional and named arguments. An option goes before a column, and a column before a default."""
        positional: list[object] = []
        named: dict[str, object] = {}
        known = {**PASSED, **values, **self.settings}
        own = {k: p for k, p in self.parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
        for key, parameter in own.items():
            if parameter.default is not parameter.empty and key not in self.settings and key not in values:
                continue
            if key not in known:
                raise UserError(self._missing(parameter, values))
            if parameter.kind is parameter.POSITIONAL_ONLY:
                positional.append(known[key])
            else:
                named[key] = known[key]
        if takes_anything(self.parameters):
            named |= {key: value for key, value in values.items() if key not in own and key not in SUBJECTS}
        return positional, named

    def _missing(self, parameter: inspect.Parameter, values: Mapping[str, object]) -> str:
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


class PairwiseReward(SignatureReward):
    """A comparison of pairs: its parameter ``others`` gets, for each sample, another one of the same group."""

    def __call__(self, samples: Samples, group: Tensor | None = None, **more: object) -> Tensor:
        """[N] mean of the comparisons with each other sample of the group; NaN for a sample without others."""
        assert group is not None
        scores = torch.full((len(samples),), torch.nan, dtype=torch.float64)
        for members in split_by_group(group, range(len(samples))):
            for row in members if len(members) > 1 else ():
                others = [other for other in members if other != row]
                first, second = take(samples, [row] * len(others)), take(samples, others)
                compared = second.completions if second.images is None else second.images
                result = super().__call__(first, group[others], others=compared)
                values = as_scores(result, len(others), self.name)
                scores[row] = values[values != NOT_APPLICABLE].nanmean()
        return scores


def _takes_samples(function: Callable[..., Any]) -> bool:
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
    anything = open_ended and takes_anything(parameters)
    known = [key for key, p in parameters.items() if key not in SUBJECTS and p.kind is not p.VAR_KEYWORD]
    for key in options:
        if key not in known and not anything:
            raise UserError(f"reward {name!r} has no option {key!r}{did_you_mean(key, known)}")
        if wrong := argument_problem(function, key, options[key]):
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


def _default_device() -> str:
    kind = default_kind()
    return kind if kind == "cpu" else own_accelerator(kind, count(kind))
