"""The ways that are asked for; six of them are held out from training by reinforcement.

The demonstrations show all ways, so the test split measures whether what is learned carries over to ways that were
never rewarded.
"""

from __future__ import annotations

from typing import Any, Literal

from flowrl.worlds.avoid.layout import WAYS, way_name

HELD_OUT = ("0-0-1", "0-1-3", "0-2-2", "1-0-0", "1-1-2", "1-2-1")
"""Two in each row's middle and outer gaps, so that every gap is also asked for in training."""


SPLITS = ("train", "test", "demonstrations")


def prompts(split: Literal["train", "test", "demonstrations"]) -> list[dict[str, Any]]:
    """`prompt`, and `way`: the gap of each row from the left. A prompt without the column `way` lets every way count.
    ``demonstrations``: the episodes that ship, three of each way, with the columns `observed` and `action`.

    Raises ValueError for another split.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, found {split!r}")
    if split == "demonstrations":
        from flowrl.worlds.avoid.demonstrations import records  # the board: only where its episodes are read

        return records()
    names = [way_name(way) for way in WAYS]
    chosen = [name for name in names if (name in HELD_OUT) == (split == "test")]
    return [{"prompt": f"cross by the gaps {name}", "way": name} for name in chosen]
