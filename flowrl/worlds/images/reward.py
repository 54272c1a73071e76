"""The image worlds' reward: does the image show what its metadata asks for, read from pixels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from torch import Tensor

from flowrl.worlds.images.scenes import Metadata

Mode = Literal["mixed", "strict", "continuous"]


def reward(
    world: str,
    score: Callable[[Tensor, Sequence[Metadata]], tuple[Tensor, Tensor]],
    images: Tensor,
    prompts: Sequence[str],
    mode: Mode,
    columns: Mapping[str, Sequence[Any]],
) -> Tensor:
    """Score per image [N] in [0, 1], NaN for non-finite images; `mixed` is the mean of strict and continuous."""
    if mode not in ("mixed", "strict", "continuous"):
        raise ValueError(f"mode must be 'mixed', 'strict' or 'continuous', found {mode!r}")
    strict, graded = score(images, metadata_of(world, images, prompts, columns))
    if mode == "strict":
        return strict
    return graded if mode == "continuous" else 0.5 * (strict + graded)


def metadata_of(
    world: str, images: Tensor, prompts: Sequence[str], columns: Mapping[str, Sequence[Any]]
) -> list[Metadata]:
    """What each of the N images should show, from the prompts' columns. Raises `ValueError` where they do not say."""
    if "include" not in columns:
        raise ValueError(
            f"the {world} reward needs GenEval metadata: give every prompt an `include` list such as "
            f"[{{'class': 'circle', 'count': 1}}] (see flowrl.worlds.{world}.prompts); "
            f"found the columns {sorted(columns) or 'none'}"
        )
    if not len(images) == len(prompts) == len(columns["include"]):
        counts = f"{len(images)} images, {len(prompts)} prompts, {len(columns['include'])} include"
        raise ValueError(f"the {world} reward needs one prompt and one include per image, found {counts}")
    wanted = zip(columns["include"], columns.get("exclude", [None] * len(prompts)), strict=True)
    return [{"include": include, "exclude": exclude} for include, exclude in wanted]
