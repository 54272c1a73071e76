"""Files that are either whole or absent, whatever kills the process."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flowrl.errors import UserError, shorten

LONGEST_INSIDE = 200
"""Bytes that the longest path below a run's folder takes, its name included."""


def check_writable(path: Path, key: str) -> None:
    """Raise `UserError` where no folder ``path`` can be made or written to; ``key`` is what the user set. Makes
    nothing."""
    advice = "name another place"
    try:
        os.lstat(path.absolute() / ("x" * LONGEST_INSIDE))  # raises for what no file system takes as a name
    except FileNotFoundError:
        pass
    except NotADirectoryError as error:
        below = next(parent for parent in (path, *path.absolute().parents) if _is_file(parent))
        what = "is a file, and a folder is written there" if below == path else f"lies below the file {below}"
        raise UserError(f"{key}: {shorten(str(path), 200)} {what}; {advice}") from error
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(f"{key}: {shorten(str(path), 200)!r} cannot be made: {why}; {advice}") from error
    where = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    if not os.access(where, os.W_OK | os.X_OK):
        raise UserError(f"{key}: {where} cannot be written to; {advice}, or change its permissions")


def _is_file(path: Path) -> bool:
    try:
        return path.exists() and not path.is_dir()
    except OSError:
        return False


def write_atomically(path: Path, text: str) -> None:
    """Replace a file's text atomically and durably. Raises `UserError` when the disk is full, and where a folder has
    the file's name."""
    partial = path.with_name(f".tmp-{path.name}")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except IsADirectoryError as error:
        remove_file(partial)  # which may be the folder itself
        raise _in_the_way(path) from error
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise_if_full(error, path)
        raise
    sync(path.parent)


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A place beside ``path`` to write a file to, which takes its name once it is whole and on the disk. Raises
    `UserError` when the disk is full."""
    partial = path.with_name(f".tmp-{path.name}")
    try:
        yield partial
        sync(partial)
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise_if_full(error, path)
        raise
    sync(path.parent)


def remove_file(path: Path) -> None:
    """Remove a file, if there is one. Raises `UserError` where a folder has its name."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        if path.is_dir():
            raise _in_the_way(path) from error
        raise


def _in_the_way(folder: Path) -> UserError:
    return UserError(f"{folder} is a folder, where flowrl keeps a file; move it away")


def sync(path: Path) -> None:
    """Ask the disk to keep a file, or a directory's entries."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(root: Path) -> None:
    """`sync` every file and directory below ``root``, and itself."""
    for folder, _, names in os.walk(root, topdown=False):
        for name in names:
            sync(Path(folder) / name)
        sync(Path(folder))


def use_default_permissions(path: Path) -> None:
    """Give a file the permissions that a file of this process has by itself: safetensors and ``tempfile`` make files
    for their owner alone."""
    probe = path.with_name(f".tmp-mode-{path.name}")
    probe.touch()
    path.chmod(probe.stat().st_mode & 0o777)
    probe.unlink()


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def raise_if_full(error: OSError, path: Path) -> None:
    """`UserError` for a full disk or an exhausted quota; returns for any other error."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise UserError(
            f"no space left on the disk of {path}; free some (or set checkpoint.keep lower), then use --resume auto"
        ) from error
