"""The shapes world's reward: does the image show what its GenEval metadata asks for, read from pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flowrl.worlds.images.reward import Mode, metadata_of, reward
from flowrl.worlds.shapes.soft import soft_score
from flowrl.worlds.shapes.verifier import score

RANGE = "[0, 1]"
NEEDS = ("include",)


def shapes(images: Tensor, prompts: Sequence[str], *, mode: Mode = "mixed", **columns: Sequence[Any]) -> Tensor:
    """Score per image [N] in [0, 1], NaN for non-finite images; `mixed` is the mean of strict and continuous.

    `columns` holds the prompts' other fields, N values each: `include` is needed, `tag` and `exclude` are used.
    """
    return reward("shapes", score, images, prompts, mode, columns)


class shapes_soft:  # noqa: N801 - the name a config uses
    """How probable it is that an image shows what its metadata asks for, by soft comparisons of its slots: a logarithm,
    1 where it is certain, with a gradient.

    A stand-in for `shapes`, whose verifier counts and has none: watch that one (`train: false`) beside it.
    """

    def __call__(self, images: Tensor, prompts: Sequence[str], **columns: Sequence[Any]) -> Tensor:
        """Score per image [N] in [0, 1], NaN for non-finite images; ``include`` is needed."""
        finite = torch.isfinite(images).flatten(1).all(dim=1)
        return torch.where(finite, self.gradient(images.nan_to_num(), prompts, **columns), torch.nan)

    def gradient(self, images: Tensor, prompts: Sequence[str], **columns: Sequence[Any]) -> Tensor:
        """The same with a gradient to the images."""
        return soft_score(images, metadata_of("shapes", images, prompts, columns))
