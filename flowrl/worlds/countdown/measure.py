"""What a base knows of Countdown: `python -m flowrl.worlds.countdown.measure --family causal`."""

from __future__ import annotations

from typing import Any

from flowrl.worlds.countdown import BASES
from flowrl.worlds.countdown.prompts import LENGTH, prompts
from flowrl.worlds.countdown.verifier import verify
from flowrl.worlds.text.commands import measure


def verdict(completion: str, row: dict[str, Any]) -> dict[str, float]:
    """Whether a completion solves its task, and whether it is well-formed."""
    found = verify(completion, row["numbers"], row["target"])
    return {"strict": found.strict, "formed": found.formed}


if __name__ == "__main__":
    measure(BASES, prompts, LENGTH, verdict)
