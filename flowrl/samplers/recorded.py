"""Samples of a data set: read, not made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from flowrl.errors import UserError, did_you_mean
from flowrl.media import read_picture
from flowrl.types import DATA, Draw, IncompatibleError, Prompt, Rollout, Sampler, TokenTrace

OTHER = "flowrl: completion of another prompt"
"""The column of `Recorded.mismatched`."""


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """Take the samples of a prompt from its ``columns``: the first sample of a group from the first column, and so on;
    ``data.group`` is their number. A sample is a text, or the list of messages whose last one it is; a picture is a
    path, bytes or a PIL image.

    A completion becomes the tokens that the model would have said: the text alone, then the end token of an answer. One
    longer than the sampler's ``length`` is refused or left out with its prompt, or cut there and has no end, as
    ``data.overlong`` says. Prompts
    that samples come from evaluate the policy with ``sampler``, whose temperature records do not have: they are scored
    at temperature 1.
    """

    sampler: Sampler
    """What samples for evaluation, and how long completions may be; `MakesNothing` for a reward model, which reads
    whole conversations of that length."""
    columns: tuple[str, ...] = ("chosen", "rejected")
    ratings: tuple[str, ...] = ()
    """What the data set says of the samples (`Rollout.feedback`): a column for each of them, numbers or true and
    false. Without, the first sample is rated 1 and the others 0."""
    margin: str = ""
    """A column of numbers, by how much the first sample is better: it is rated so, and the others 0."""
    mismatched: bool = False
    """Another sample at the end of every group: the first column of the prompt before, about which nothing is said
    (KTO's estimate of the KL)."""
    trace_end: str = ""
    """Where it is given, a group has every sample a second time without its reasoning: what stands before the last
    ``trace_end`` is replaced by ``empty_trace``. A sample without one stays as it is."""
    empty_trace: str = ""
    ends: Literal["one", "all"] = "one"
    """``all``: end tokens up to the sampler's length are part of a completion, as in LLaDA's and d1's SFT, which so
    teach a masked model where to stop."""
    test: Literal["sampled", "recorded"] = "sampled"
    """``recorded``: evaluations read the samples of the held-out prompts too, and say what the objective measures of
    them, such as the share of pairs that are told apart rightly."""

    def __post_init__(self) -> None:
        if not self.columns:
            raise ValueError("columns=() names no samples; give the data set's columns, such as [chosen, rejected]")
        if self.ratings and len(self.ratings) != len(self.columns):
            raise ValueError(
                f"ratings={list(self.ratings)} should name a column for each of columns={list(self.columns)}, or none"
            )

        if self.trace_end and self.mismatched:
            raise ValueError("trace_end and mismatched both add samples to a group; remove one of them")
        if self.margin and self.ratings:
            raise ValueError(f"margin={self.margin!r} and ratings={list(self.ratings)} both rate samples; remove one")

    @property
    def family(self) -> str:
        """The models that it is for: those of its sampler."""
        return getattr(self.sampler, "family", "")

    @property
    def group(self) -> int:
        """Samples of a prompt."""
        return len(self.columns) * (1 + bool(self.trace_end)) + self.mismatched

    @property
    def length(self) -> int:
        """Tokens of a completion, at most."""
        return getattr(self.sampler, "length", 0)

    @property
    def forwards(self) -> int:
        return 0

    @property
    def recorded(self) -> int:
        return self.length

    def heldout(self, steps: int | None, guidance: float | None, temperature: float | None) -> Sampler:
        """The sampler of evaluations."""
        return self if self.test == "recorded" else self.sampler.heldout(steps, guidance, temperature)

    def prepared(self, prompts: Sequence[Prompt], where: str) -> list[Prompt]:
        """The prompts of a data set, checked. Raises `UserError` for one without a column, or with nothing in it."""
        for prompt in prompts:
            for name in (*self.columns, *self.ratings, *([self.margin] if self.margin else [])):
                if prompt.columns.get(name) is None and (name in self.columns or name not in prompt.columns):
                    what = "is empty" if name in prompt.columns else "is missing"
                    raise UserError(
                        f"{where}, entry {prompt.id + 1}: the column {name!r} {what}; name it in data.columns, or in"
                        f" algorithm.sampler.columns{did_you_mean(name, prompt.columns)}"
                    )
        if not self.mismatched:
            return list(prompts)
        first = self.columns[0]
        before = [prompts[-1], *prompts[:-1]]
        return [
            replace(prompt, columns={**prompt.columns, OTHER: last.columns[first]})
            for prompt, last in zip(prompts, before, strict=True)
        ]

    def texts(self, prompt: Prompt) -> list[str]:
        """The completions that a prompt has. Raises `UserError` for a sample that is no text."""
        return [text_of(prompt.columns[name], prompt) for name in self.columns if name in prompt.columns]

    def __call__(self, policy: Any, condition: Any, draw: Draw) -> Rollout:
        again = self.columns if self.trace_end else ()
        names = (*self.columns, *again, *([OTHER] if self.mismatched else []))
        places = draw.place.tolist()
        if max(places, default=0) >= len(names):
            raise UserError(
                f"data.group: {max(places) + 1} samples of a prompt, of which the data set has {len(names)}: set it so"
            )
        values = [prompt.columns[names[place]] for prompt, place in zip(draw.prompts, places, strict=True)]
        feedback = torch.tensor([self._rating(*pair) for pair in zip(draw.prompts, places, strict=True)])
        final, trace, times = self._read(policy, values, draw)
        made = Rollout.of(draw, condition, final, trace, times=times)
        return replace(made, source=torch.full_like(draw.group, DATA), feedback=feedback.double())

    def _read(self, policy: Any, values: list[Any], draw: Draw) -> tuple[Tensor, TokenTrace | None, Tensor | None]:
        if self.family == "diffusion":
            pictures = [picture_of(value, prompt) for value, prompt in zip(values, draw.prompts, strict=True)]
            sampler: Any = self.sampler
            return policy.encode(pictures, draw.seeds), None, sampler.grid(policy)
        texts = [text_of(value, prompt) for value, prompt in zip(values, draw.prompts, strict=True)]
        if self.trace_end:
            bare = (draw.place >= len(self.columns)).tolist()
            texts = [self._untraced(text) if alone else text for text, alone in zip(texts, bare, strict=True)]
        if self.family == "reward":
            tokens, mask = policy.read(draw.prompts, texts, self.length)
            return policy.encode(texts, self.length)[0], TokenTrace(tokens, mask, 1.0), None
        tokens, mask = policy.encode(texts, self.length)
        said = mask.any(dim=1) & (mask & torch.isin(tokens, torch.tensor(policy.end_tokens))).any(dim=1)
        if self.ends == "all":
            tail = ~mask & said[:, None]
            tokens, mask = torch.where(tail, policy.end_tokens[0], tokens), mask | tail
        return tokens, TokenTrace(tokens, mask, 1.0, ended=said), None

    def _untraced(self, text: str) -> str:
        _, end, answer = text.rpartition(self.trace_end)
        return f"{self.empty_trace}{end}{answer}" if end else text

    def _rating(self, prompt: Prompt, place: int) -> float:
        place = place % len(self.columns) if self.trace_end else place
        if place >= len(self.columns):
            return math.nan
        if self.margin:
            return 0.0 if place else number_of(prompt, self.margin)
        if not self.ratings:
            return float(place == 0)
        return number_of(prompt, self.ratings[place])


@dataclass(frozen=True, kw_only=True)
class MakesNothing:
    """What stands for the sampler of a reward model, which makes no samples. Raises `IncompatibleError` where it is
    asked for some."""

    length: int = 1024
    """Tokens of a conversation, prompt and completion, at most."""
    family: ClassVar[str] = "reward"

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"length={self.length} leaves no room for a conversation; give 1 or more")

    @property
    def forwards(self) -> int:
        return 0

    @property
    def recorded(self) -> int:
        return self.length

    def heldout(self, steps: int | None, guidance: float | None, temperature: float | None) -> Sampler:
        """Itself."""
        return self

    def __call__(self, policy: Any, condition: Any, draw: Draw) -> Rollout:
        raise IncompatibleError(
            "a reward model rates samples and makes none: set algorithm.sampler.test=recorded, and load its export as"
            " the reward reward_model"
        )


def text_of(value: Any, prompt: Prompt) -> str:
    """The completion that a column holds: a text, or the last message of a conversation."""
    if isinstance(value, list) and value and isinstance(value[-1], dict):
        value = value[-1].get("content", value[-1].get("value"))
    if not isinstance(value, str):
        raise UserError(
            f"data: entry {prompt.id + 1}: a completion should be a text or a list of messages, found {value!r}"
        )
    return value


def picture_of(value: Any, prompt: Prompt) -> Tensor:
    """The picture [3, h, w] that a column holds."""
    try:
        return read_picture(value)
    except (OSError, ValueError) as error:
        raise UserError(
            f"data: entry {prompt.id + 1}: a sample should be a picture (a path from here, bytes, a PIL image): {error}"
        ) from error


def number_of(prompt: Prompt, name: str) -> float:
    """What a column says, as a number; NaN for nothing."""
    value = prompt.columns.get(name)
    if value is None:
        return math.nan
    if not isinstance(value, bool | int | float):
        raise UserError(f"data: entry {prompt.id + 1}: {name} should be a number or true/false, found {value!r}")
    return float(value)
