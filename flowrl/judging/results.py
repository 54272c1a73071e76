"""What votes say: how often one model is preferred, by tag, and whether the reward prefers what people do."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from flowrl.errors import counted
from flowrl.evaluation.statistics import wilson
from flowrl.judging.votes import Vote

NOTES = (
    "a tie counts as half a win; skipped pairs count nowhere; intervals are Wilson's, 95 %, of independent votes",
    "agreement: of the pairs with a preference, how often the reward is higher for the preferred one (equal: half)",
)


def summarise(votes: Sequence[Vote]) -> list[dict[str, Any]]:
    """For each comparison: ``this, other, judges, votes, wins, losses, ties, skipped``; ``win_rate`` of ``this``,
    ``tags`` (the same by tag), ``agreement`` with the reward ``measure``, and ``left``, how often the left one was
    preferred. A rate is ``{value, low, high, votes}``; value and interval are None where there are no votes."""
    compared: dict[tuple[str, str], list[Vote]] = {}
    for vote in votes:
        compared.setdefault((vote.this, vote.other), []).append(vote)
    return [_comparison(this, other, each) for (this, other), each in compared.items()]


def _comparison(this: str, other: str, votes: Sequence[Vote]) -> dict[str, Any]:
    tags = sorted({vote.tag for vote in votes if vote.tag})
    preferences = [vote for vote in votes if vote.preferred in ("this", "other")]
    found = [vote.preferred for vote in votes]
    return {
        "this": this,
        "other": other,
        "judges": len({vote.judge for vote in votes}),
        "votes": len(votes),
        "wins": found.count("this"),
        "losses": found.count("other"),
        "ties": found.count("tie"),
        "skipped": found.count(None),
        "win_rate": _win_rate(votes),
        "tags": {tag: _win_rate(vote for vote in votes if vote.tag == tag) for tag in tags},
        "measure": next((vote.measure for vote in votes), ""),
        "agreement": _rate([share for vote in preferences if (share := _agrees(vote)) is not None]),
        "left": _rate([float(vote.vote == "left") for vote in preferences]),
    }


def _win_rate(votes: Iterable[Vote]) -> dict[str, Any]:
    worth = {"this": 1.0, "tie": 0.5, "other": 0.0}
    return _rate([worth[vote.preferred] for vote in votes if vote.preferred is not None])


def _agrees(vote: Vote) -> float | None:
    """1 where the reward prefers what the judge does, 1/2 where it has no preference; None where it is not known."""
    if vote.this_reward is None or vote.other_reward is None:
        return None
    better = vote.this_reward - vote.other_reward
    return 0.5 if better == 0 else float((better > 0) == (vote.preferred == "this"))


def _rate(shares: Sequence[float]) -> dict[str, Any]:
    low, high = wilson(sum(shares), len(shares))
    value = sum(shares) / len(shares) if shares else math.nan
    numbers = {"value": value, "low": low, "high": high}
    return {**{key: None if math.isnan(number) else number for key, number in numbers.items()}, "votes": len(shares)}


def table(found: dict[str, Any]) -> list[tuple[str, str]]:
    """``(label, text)`` of a comparison."""
    counts = ", ".join(f"{name} {found[name]}" for name in ("wins", "losses", "ties", "skipped"))
    return [
        ("compared", f"{found['this']} against {found['other']}"),
        ("votes", f"{found['votes']} of {counted(found['judges'], 'judges')}: {counts}"),
        ("win rate", _text(found["win_rate"])),
        *((f"  {tag}", _text(rate)) for tag, rate in found["tags"].items()),
        (f"agreement with {found['measure']}", _text(found["agreement"])),
        ("left preferred", _text(found["left"]) + _bias(found["left"])),
    ]


def _text(rate: dict[str, Any]) -> str:
    if rate["value"] is None:
        return "no votes"
    return f"{rate['value']:.1%} ({rate['low']:.1%} to {rate['high']:.1%}), {counted(rate['votes'], 'votes')}"


def _bias(rate: dict[str, Any]) -> str:
    if rate["value"] is None or rate["low"] <= 0.5 <= rate["high"]:
        return ""
    return "; sides are random, so this pulls the win rate towards 50 %"
