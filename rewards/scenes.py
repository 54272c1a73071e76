"""The scenes world's reward: does the image show what its GenEval metadata asks for, read from pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from flowrl.worlds.images.reward import Mode, reward
from flowrl.worlds.scenes.verifier import score

RANGE = "[0, 1]"
NEEDS = ("include",)


def scenes(images: Tensor, prompts: Sequence[str], *, mode: Mode = "mixed", **columns: Sequence[Any]) -> Tensor:
    """Score per image [N] in [0, 1], NaN for non-finite images; `mixed` is the mean of strict and continuous.

    `columns` holds the prompts' other fields, N values each: `include` is needed.
    """
    return reward("scenes", score, images, prompts, mode, columns)
