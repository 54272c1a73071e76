"""From anywhere in training, and from the cells between the goals in evaluation."""

from __future__ import annotations

from typing import Any, Literal

from flowrl.worlds.two_walls.grid import MIDDLE, SADDLE


def prompts(split: Literal["train", "test"]) -> list[dict[str, Any]]:
    """`prompt`, and in the test split `start`: eleven cells of the middle row, where both goals are equally far.

    Raises ValueError for another split.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', found {split!r}")
    if split == "train":
        return [{"prompt": "reach the bottom or the top"}]
    return [{"prompt": f"from column {column} of the middle row", "start": [column, MIDDLE]} for column in SADDLE]
