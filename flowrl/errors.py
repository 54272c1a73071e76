"""The one exception a user should ever read, the suggestion it carries, and how values are shown in it."""

from __future__ import annotations

import difflib
import errno
import reprlib
import traceback
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

DISTRIBUTION = "flowrl-finetune"
"""What pip calls this package; `flowrl` on the Python package index is another project."""
MOST_CHARACTERS = 600
"""Most characters of a line of a message; a longer one keeps its beginning and its end, where the remedy stands."""
MOST_LINES = 10
"""Most lines of a message: a list of findings goes on with how many more there are."""
_KEPT = frozenset("\n\t")
MOST_CHARACTERS_OF_SEVERAL = 300
"""Most characters of each line of a message of several."""


class UserError(ValueError):
    """Something the user can fix. The message names the key, the value found and the remedy; the CLI exits with 2.

    What users write ends up in it, so it is made fit to print here: control characters become visible, and its length
    is bounded (`MOST_CHARACTERS`, `MOST_LINES`, `MOST_CHARACTERS_OF_SEVERAL`).
    """

    def __init__(self, message: object) -> None:
        super().__init__(_bounded(printable(str(message))))


def did_you_mean(word: str, known: Iterable[str], section: str = "") -> str:
    """``"; did you mean 'x'?"`` or the list of what is known, for the end of an error message. ``section`` stands
    before what is meant, so that a key is named in full."""
    known = sorted(known)
    close = difflib.get_close_matches(word[:100], known, n=1, cutoff=0.5)
    if not close:
        return f"; known: {', '.join(known)}"
    return f"; did you mean {f'{section}.{close[0]}'.lstrip('.')!r}?"


def install_command(extra: str | None = None, *, constrained: bool = False) -> str:
    """The command that adds one of our extras, right wherever it is typed: to the source folder that runs, or to the
    installed package. ``constrained``: with the releases that were tested together."""
    package = Path(__file__).resolve().parent
    extras = f"[{extra}]" if extra else ""
    if not (package.parent / "pyproject.toml").is_file():
        pins = f"-c '{package / 'constraints.txt'}' " if constrained else ""
        return f"pip install {pins}'{DISTRIBUTION}{extras}'"
    here = Path.cwd() == package.parent
    pins = f"-c '{'' if here else f'{package.parent}/'}constraints.txt' " if constrained else ""
    return f"pip install {pins}-e '{'.' if here else package.parent}{extras}'"


def missing_package(what: str, package: str, extra: str, otherwise: str = "") -> UserError:
    """The error for an optional package that is not installed; ``otherwise`` says what to do without it."""
    return UserError(f"{what} needs the package {package}: {install_command(extra)}{otherwise and ', or '}{otherwise}")


def describe_exception(error: BaseException) -> str:
    """An exception of a user's code in one line: its type, its words and the last line of theirs that it came
    from."""
    words = " ".join(str(error).split())
    frames = list(traceback.extract_tb(error.__traceback__))
    theirs = [frame for frame in frames if not frame.filename.startswith(str(Path(__file__).parent))] or frames
    where = f" ({theirs[-1].filename}:{theirs[-1].lineno} in {theirs[-1].name})" if theirs else ""
    return f"{type(error).__name__}: {shorten(words, 300)}{where}"


def first_line(error: BaseException) -> str:
    """The first line of what a library says went wrong, at most 300 characters; its type where that says nothing."""
    kind = type(error).__name__
    try:
        words = str(error).strip()
    except Exception:  # a user's __str__ may fail as well
        words = ""
    if not words:
        return kind
    first = shorten(words.splitlines()[0], 300)
    return f"{kind} {first}" if isinstance(error, KeyError) else first  # whose text is the key alone


OUT_OF_MEMORY_SIGNS = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "cannot allocate memory",
    "alloc_failed",
)
"""What torch's RuntimeErrors of the CPU's, CUDA's and cuBLAS's allocators say."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, of the machine or of the accelerator."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in OUT_OF_MEMORY_SIGNS)


DISK = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENAMETOOLONG, errno.ENOTDIR)
DISK += (errno.EISDIR, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ESTALE)
"""What the system says of a file that is the user's to mend, and not a bug of ours."""


def limit_of(error: BaseException) -> str | None:
    """The sentence for a file that the system refuses, and for memory that ran out; None for any other error."""
    if isinstance(error, OSError) and error.errno in DISK and error.filename:
        return f"{shorten(str(error.filename), 200)}: {error.strerror}"
    if isinstance(error, MemoryError):
        return "out of memory; use a smaller model or a machine with more"
    if is_out_of_memory(error):
        return f"out of memory; use a smaller model, fewer samples at once, or another device ({first_line(error)})"
    return None


class _Short(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxlong, self.maxother = 3, 80, 40, 80


_short = _Short()


def short_repr(value: Any) -> str:
    """``repr`` of a value of a config, of about a line at most."""
    try:
        return shorten(_short.repr(value), 160)
    except ValueError:  # a number of more digits than Python prints
        return f"a {type(value).__name__} too long to print"


def counted(count: int, things: str) -> str:
    """``1 image``, ``2 images``: a number and what it counts, given in the plural."""
    return f"{count} {things.removesuffix('s') if count == 1 else things}"


def shorten(text: str, most: int) -> str:
    """The text, or its beginning and end around ``...``, ``most`` characters in all."""
    if len(text) <= most:
        return text
    tail = most // 3
    return f"{text[: most - tail - 5]} ... {text[-tail:]}"


def printable(text: str) -> str:
    """The text as a terminal may get it: control characters, which could move its cursor or colour it, and those that
    reorder or cannot be encoded are written as escapes. Line ends and tabs stay."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(char if char in _KEPT or _harmless(char) else _escape(char) for char in text)


_REORDERING = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")


def _harmless(char: str) -> bool:
    reorders = unicodedata.bidirectional(char) in _REORDERING
    return not reorders and unicodedata.category(char) not in ("Cc", "Cs", "Zl", "Zp")


def _escape(char: str) -> str:
    return char.encode("unicode_escape", "backslashreplace").decode("ascii") if ord(char) != 0x7F else "\\x7f"


def _bounded(text: str) -> str:
    lines = text.split("\n")
    if len(lines) > MOST_LINES:
        lines = [*lines[: MOST_LINES - 1], f"... and {len(lines) - MOST_LINES + 1} more lines"]
    most = MOST_CHARACTERS if len(lines) == 1 else MOST_CHARACTERS_OF_SEVERAL
    return "\n".join(shorten(line, most) for line in lines)
