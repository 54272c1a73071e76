"""What is evaluated: a model, a training run (before and after), a LoRA, or images that exist already."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from flowrl.config import Config
from flowrl.errors import UserError
from flowrl.records.sample_files import Entry
from flowrl.types import Policy, Prompt

Kind = Literal["model", "run", "lora", "images"]
Medium = Literal["images", "completions"]
"""What a model makes."""
Overlong = Literal["error", "drop", "truncate"]
"""What is done with prompts that are too long, as ``data.overlong`` of a run."""


@dataclass(frozen=True)
class Variant:
    """One set of weights to make samples with; an arm of ``results.json``."""

    name: str
    """``base``, ``tuned`` or ``model``; also the name of its folder."""
    open: Callable[[], Policy]
    """Loads the policy; called only when samples are missing."""
    identity: Mapping[str, Any]
    """Names the weights: samples made under another identity are made again."""
    weights: str = "live"
    """The weight set to sample with."""


@dataclass(frozen=True)
class Target:
    """What the user named, understood."""

    text: str
    kind: Kind
    variants: tuple[Variant, ...] = ()
    medium: Medium = "images"
    entries: tuple[Entry, ...] = ()
    """The images of an image folder."""
    folder: Path | None = None
    """The image folder."""
    world: str | None = None
    """The embedded world that the model belongs to."""
    config: Config | None = None
    """Of a run, or of the run that a LoRA came from."""

    def prompts(self) -> tuple[Prompt, ...]:
        """The prompts an image folder came with."""
        return tuple(prompt_of(entry.metadata, entry.index) for entry in self.entries)


def prompt_of(row: Mapping[str, Any], number: int) -> Prompt:
    """The prompt of a line of metadata, whose other fields are its columns."""
    return Prompt(str(row["prompt"]), number, {key: value for key, value in row.items() if key != "prompt"})


def medium_of(family: str, model: str | Path, image_tokenizer: str | None = None) -> Medium:
    """What a model of a family makes; a causal one with an image tokenizer draws, and episodes are told in words.
    Raises `UserError` for a reward model, which makes nothing."""
    if family == "reward":
        raise UserError(
            "a reward model makes no samples: export it with --to merged, and name the folder in the reward"
            " reward_model (flowrl test-reward tries it)"
        )
    if family == "causal":
        from flowrl.models.text.image_tokens import find_image_tokenizer  # torch

        return "completions" if find_image_tokenizer(model, image_tokenizer) is None else "images"
    return "images" if family == "diffusion" else "completions"
