"""What a recipe's header says of it: its level, and the memory that is expected."""

from __future__ import annotations

import re
from pathlib import Path

from flowrl.errors import UserError, did_you_mean

LEVELS = {
    "accepted": "`flowrl train --dry-run` accepts it",
    "runs": "it trains on a tiny model of its kind",
    "learns": "it learns on an embedded world; its curve and band are committed",
    "measured": "it was run with real weights; its curve and band are committed",
}
"""From the least to the most that is known of a recipe."""
_LEVEL = re.compile(r"^# Level: (\S+)$", re.MULTILINE)


def header_of(path: Path) -> str:
    """The comment that a config begins with. Raises `UserError` if the file cannot be read."""
    try:
        lines = path.read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    end = next((place for place, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return "\n".join(lines[:end])


def level_of(path: Path) -> str:
    """The level of a recipe: the line ``# Level: NAME`` of its header. Raises `UserError` if it has none."""
    found = _LEVEL.findall(header_of(path))
    if len(found) != 1:
        raise UserError(
            f"{path}: its header has {len(found)} lines '# Level: NAME', and needs one, of {', '.join(LEVELS)}"
        )
    if found[0] not in LEVELS:
        raise UserError(f"{path}: no level {found[0]!r}{did_you_mean(found[0], LEVELS)}")
    return found[0]


def expected_memory(path: Path) -> str | None:
    """What the header says of memory that nobody measured, such as ``36 GB``; None where it says nothing."""
    _, _, text = header_of(path).replace("\n#", "").partition("Memory to expect")
    found = re.findall(r"about (\d+ GB)", text)
    return found[-1] if found else None
