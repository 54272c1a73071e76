"""Prompts, and which samples to make of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor

from flowrl.types.chats import Chat


@dataclass(frozen=True)
class Prompt:
    """One line of a prompt set."""

    text: str
    id: int
    """Position in the prompt set; groups and per-prompt statistics are keyed by it, never by the text."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """The prompt's other fields, handed to rewards by name."""
    chat: Chat | None = None
    """The conversation, where the prompt is more than one text of the user; ``text`` is then what a person reads."""

    @property
    def model_input(self) -> str | Chat:
        """What a language model is given."""
        return self.text if self.chat is None else self.chat


def prompts_of(texts: Iterable[str | Chat]) -> list[Prompt]:
    """Prompts of plain texts and conversations, numbered from 0."""
    return [
        Prompt(text.content, index, chat=text) if isinstance(text, Chat) else Prompt(text, index)
        for index, text in enumerate(texts)
    ]


@dataclass(frozen=True)
class Draw:
    """Which samples to make: everything random about a rollout follows from it."""

    seeds: Tensor
    """[N] int64; one stream of random numbers per sample, whatever batch it is made in."""
    group: Tensor
    """[N] int64; samples of one prompt share a value. Group-major."""
    iteration: int
    shared_seed: int
    """Seed of draws common to all samples of the iteration (such as a random window of steps)."""
    place: Tensor
    """[N] int64: which sample of its group it is, from 0."""
    prompts: tuple[Prompt, ...] = ()
    """Of every sample; their columns hold what data sets and environments say. Empty where no model is asked."""

    def __post_init__(self) -> None:
        assert len(self.prompts) in (0, len(self.seeds)), (len(self.prompts), len(self.seeds))

    @classmethod
    def of(cls, seeds: Tensor, group: Tensor, iteration: int, shared_seed: int, prompts: Sequence[Prompt] = ()) -> Self:
        """A draw of whole groups."""
        return cls(seeds, group, iteration, shared_seed, place_in_group(group), tuple(prompts))

    def take(self, rows: Tensor) -> Self:
        """The draw of some samples."""
        prompts = tuple(self.prompts[row] for row in rows.tolist()) if self.prompts else ()
        parts = {name: getattr(self, name)[rows] for name in ("seeds", "group", "place")}
        return replace(self, prompts=prompts, **parts)

    def __len__(self) -> int:
        return len(self.seeds)


@dataclass(frozen=True)
class PromptRows:
    """The prompts of N rows, for those who make something of their own of them: a teacher with another text encoder."""

    prompts: tuple[Prompt, ...]
    """Of all samples that were asked for together; the same object whatever rows are taken."""
    index: Tensor
    """[N] int64 into them."""

    @classmethod
    def of(cls, prompts: Sequence[Prompt]) -> Self:
        """One row for each prompt."""
        return cls(tuple(prompts), torch.arange(len(prompts)))

    def take(self, rows: Tensor) -> Self:
        """The rows with these indices [n] (repeats allowed)."""
        return replace(self, index=self.index[rows.to(self.index.device)])


def first_of_group(group: Tensor) -> Tensor:
    """[N] bool: where a group begins, for group-major ``group`` [N]."""
    return torch.cat([torch.ones(min(1, len(group)), dtype=torch.bool), group[1:] != group[:-1]])


def place_in_group(group: Tensor) -> Tensor:
    """[N] int64: how many rows before it are of the same group, for group-major ``group`` [N]."""
    rows = torch.arange(len(group))
    return rows - torch.where(first_of_group(group), rows, 0).cummax(dim=0).values if len(group) else rows
