"""The one exception a user should ever read, and the suggestion it carries."""

from __future__ import annotations

import difflib
import traceback
from collections.abc import Iterable
from pathlib import Path

DISTRIBUTION = "flowrl-finetune"
"""What pip calls this package; `flowrl` on the Python package index is another project."""


class UserError(ValueError):
    """Something the user can fix. The message names the key, the value found and the remedy; the CLI exits with 2."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` or the list of what is known, for the end of an error message."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"


def install(extra: str) -> str:
    """The command that adds one of our extras, right wherever it is typed: to the source folder that runs, or to the
    installed package."""
    folder = Path(__file__).resolve().parents[1]
    if not (folder / "pyproject.toml").is_file():
        return f"pip install '{DISTRIBUTION}[{extra}]'"
    return f"pip install -e '{'.' if Path.cwd() == folder else folder}[{extra}]'"


def missing(what: str, package: str, extra: str, otherwise: str = "") -> UserError:
    """The error for an optional package that is not installed; ``otherwise`` says what to do without it."""
    return UserError(f"{what} needs the package {package}: {install(extra)}{otherwise and ', or '}{otherwise}")


def told(error: BaseException) -> str:
    """An exception of a stranger's code in one line: its type, its words and where it was raised."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({frame.filename}:{frame.lineno} in {frame.name})"
