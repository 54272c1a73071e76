"""Votes on disk: a line each, appended whole and at once, so that none is lost whatever ends the program."""

from __future__ import annotations

import errno
import json
import os
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, Self, get_args

from flowrl.errors import UserError

FILE = "judgements.jsonl"
Choice = Literal["left", "right", "tie", "skip"]
CHOICES: tuple[Choice, ...] = get_args(Choice)


@dataclass(frozen=True)
class Vote:
    """What somebody said of a pair."""

    judge: str
    """Whose it is; empty where nobody said."""
    pair: str
    """`Pair.key`."""
    prompt: str
    tag: str
    this: str
    other: str
    """The two models, in words."""
    left: Literal["this", "other"]
    """Which of them was on the left."""
    vote: Choice
    measure: str
    """The reward below."""
    this_reward: float | None
    other_reward: float | None
    time: str

    @property
    def preferred(self) -> Literal["this", "other", "tie"] | None:
        """Which of the two is better; None for a pair that was skipped."""
        if self.vote == "skip":
            return None
        if self.vote == "tie":
            return "tie"
        return self.left if self.vote == "left" else ("other" if self.left == "this" else "this")

    @classmethod
    def of(cls, row: dict[str, Any]) -> Self | None:
        """The vote of a line; None for a line that is none."""
        names = [field.name for field in fields(cls)]
        if any(name not in row for name in names) or row["vote"] not in CHOICES or row["left"] not in ("this", "other"):
            return None
        return cls(**{name: row[name] for name in names})


def now() -> str:
    """As votes have it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def votes_path(run: Path) -> Path:
    """Where the votes of a run, or of the folder of an evaluation, are."""
    return run / FILE


def append_vote(path: Path, vote: Vote) -> None:
    """Add a line, on disk when this returns. A line that was cut short before it, by a full disk or a machine that went
    off, is ended first. Raises `UserError` where it cannot be written."""
    line = (json.dumps(asdict(vote), ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
    try:
        handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            size = os.fstat(handle).st_size
            if size and os.pread(handle, 1, size - 1) != b"\n":
                line = b"\n" + line
            if os.write(handle, line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}); this vote is not kept, those before it are; mend it and vote"
            " again"
        ) from error


def read_votes(path: Path) -> tuple[list[Vote], int]:
    """``(votes, lines that are none)``, in the order they were given; of a judge's several votes on a pair the last."""
    found: dict[tuple[str, str], Vote] = {}
    damaged = 0
    if not path.is_file():
        return [], 0
    for line in path.read_bytes().split(b"\n"):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        vote = Vote.of(row) if isinstance(row, dict) else None
        if vote is None:
            damaged += 1
            continue
        key = (vote.judge, vote.pair)
        found.pop(key, None)
        found[key] = vote
    return list(found.values()), damaged
