"""The ways that are asked for; six of them are held out from training by reinforcement.

The demonstrations show all ways, so the test split measures whether what is learned carries over to ways that were
never rewarded.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from flowrl.worlds.avoid.layout import WAYS, way_name

HELD_OUT = ("0-0-1", "0-1-3", "0-2-2", "1-0-0", "1-1-2", "1-2-1")
"""Two in each row's middle and outer gaps, so that every gap is also asked for in training."""


SPLITS = ("train", "test", "demonstrations")


def prompts(split: Literal["train", "test", "demonstrations"]) -> list[dict[str, Any]]:
    """`prompt`, and `way`: the gap of each row from the left. A prompt without the column `way` lets every way count.
    `demonstrations` are the prompts of `train`, once for each recorded episode of their way: `observed`, `action`, and
    `reward`, 1 for the action that crosses the line.

    Raises ValueError for another split.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, found {split!r}")
    if split == "demonstrations":
        return _recorded()
    names = [way_name(way) for way in WAYS]
    chosen = [name for name in names if (name in HELD_OUT) == (split == "test")]
    return [{"prompt": f"cross by the gaps {name}", "way": name} for name in chosen]


def _recorded() -> list[dict[str, Any]]:
    """The demonstrations that ship, of the ways of `train`."""
    from flowrl.worlds.avoid.demonstrations import demonstrations, shown_ways  # arrays: only where they are asked for

    observed, action, length = demonstrations()
    ends = np.cumsum(length)
    rows = {row["way"]: row for row in prompts("train")}
    found = []
    for number, way in enumerate(shown_ways()):
        if way in rows:
            steps = slice(ends[number] - length[number], ends[number])
            done = action[steps].tolist()
            paid = [0.0] * (len(done) - 1) + [1.0]
            found.append({**rows[way], "observed": observed[steps].tolist(), "action": done, "reward": paid})
    return found
