"""Pictures that differ between prompts: which arguments of a pipeline's call take them, and from which column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image

from flowrl.errors import UserError, did_you_mean, first_line
from flowrl.media import open_picture, picture
from flowrl.models.diffusion.call_arguments import check_inputs
from flowrl.models.diffusion.recorder import Recorder
from flowrl.types import Prompt

Told = tuple[Any, ...]
"""What a pipeline is told of a prompt: its text and, in the order of `PromptInputs.columns`, its pictures (paths or
PIL images); the text alone stands for a prompt with the stand-in's pictures."""
SIDE = 512
"""Pixels of a stand-in where the call does not say how large its pictures are."""
TEXTS = ("a red circle above a blue square", "two dogs")


@dataclass(frozen=True)
class PromptInputs:
    """Arguments of a pipeline's call, and the column of the prompt set that holds each prompt's own."""

    columns: Mapping[str, str] = field(default_factory=dict)
    listed: bool = False
    """Whether the pipeline takes one prompt's picture as a list of one."""

    def told(self, prompt: Prompt) -> Told:
        """Raises `UserError` for a prompt without one of the columns."""
        missing = next((c for c in self.columns.values() if not isinstance(prompt.columns.get(c), str)), None)
        if missing is not None:
            raise UserError(
                f"model.inputs: the prompt {prompt.text!r} has no picture in the column {missing!r}"
                f"{did_you_mean(missing, prompt.columns)}; give every prompt a path there"
            )
        return (prompt.text, *(prompt.columns[column] for column in self.columns.values()))

    def arguments(self, told: Sequence[Told]) -> dict[str, Any]:
        """Of the call for these prompts. Raises `UserError` for a file that is no picture."""
        made: dict[str, Any] = {}
        for place, name in enumerate(self.columns, 1):
            pictures = [_opened(each[place]) for each in told]
            made[name] = pictures if self.listed or len(pictures) > 1 else pictures[0]
        return made


def prompt_inputs(recorder: Recorder, columns: Mapping[str, str] | None, prompt_cache: bool) -> PromptInputs:
    """The inputs of a pipeline whose ``call`` gets a stand-in for each of them, with which it is watched: one picture
    for all prompts or, where it refuses that, a list of one that is repeated.

    Raises:
        UserError: where it takes neither, as `check_inputs`, and for a cache on disk, which knows texts alone.
    """
    if not columns:
        return PromptInputs()
    check_inputs(columns, recorder.call, recorder.parameters, type(recorder.pipeline).__name__)
    if prompt_cache:
        raise UserError(
            "model.prompt_cache=true keeps what texts become, and model.inputs has pictures; set it to false"
        )
    probe, refusals = stand_in(recorder.call), []
    for listed in (False, True):
        recorder.call |= {name: [probe] if listed else probe for name in columns}
        try:
            recorder.record(TEXTS, 2)
            return PromptInputs(columns, listed)
        except UserError as error:
            refusals.append(first_line(error))
    raise UserError(f"model.inputs: {refusals[0]}")


def stand_in(call: Mapping[str, Any], seed: int = 0) -> Image.Image:
    """Noise of the call's size: what a picture becomes must not be the same everywhere."""
    height, width = (int(call.get(side) or SIDE) for side in ("height", "width"))
    return picture(torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed)))


def _opened(value: Any) -> Image.Image:
    try:
        return open_picture(value)
    except (OSError, ValueError) as error:
        raise UserError(f"model.inputs: {value} is no picture that can be read: {first_line(error)}") from error
