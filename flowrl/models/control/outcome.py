"""What came of an episode, in words."""

from __future__ import annotations

from collections.abc import Sequence

OUTCOME = ("return", "decisions", "truncated", "success", "mode")
"""The numbers that are an episode's result, [N, 5] (`flowrl.samplers.episodes`)."""


def describe_episode(numbers: Sequence[float]) -> str:
    """``success, 27 decisions, return 1, way 5`` of the numbers of `OUTCOME`."""
    known = dict(zip(OUTCOME, numbers, strict=True))
    end = "cut by the time limit" if known["truncated"] else "ended"
    said = {1.0: "success", 0.0: "no success"}.get(known["success"])
    words = [said] if said else []
    words += [f"{end} after {known['decisions']:.0f} decisions", f"return {known['return']:.6g}"]
    return ", ".join([*words, *([f"mode {known['mode']:.0f}"] if known["mode"] >= 0 else [])])
