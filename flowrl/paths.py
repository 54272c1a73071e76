"""Paths that users write, and where things are kept between runs."""

from __future__ import annotations

import os
from pathlib import Path

from flowrl.errors import UserError, shorten

CACHE = "FLOWRL_CACHE"
"""Environment variable that names another folder than ``~/.cache/flowrl``."""
NEW = "new:"
"""Of a model's name: an untrained policy for the environment that follows, such as ``new:gym:CartPole-v1``."""


def cache_folder(name: str) -> Path:
    """Where things of one kind are kept; removing it is safe."""
    return Path(os.environ.get(CACHE) or Path.home() / ".cache" / "flowrl") / name


def expand_user(path: str | Path, key: str = "path") -> Path:
    """The path with ``~`` replaced. Raises `UserError`, naming the ``key``, for what no file system takes as a path."""
    found = os.path.expanduser(path)
    try:
        os.lstat(found)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass  # whether it is there is another question
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{key}: {shorten(str(path), 120)!r} is no path: {why}") from error
    return Path(found)


def absolute_folder(path: str) -> str:
    """A folder that is there as an absolute path, which holds when somebody changes the working directory; any other
    name (of a world, of the hub) as it is."""
    folder = os.path.expanduser(path)
    return os.path.abspath(folder) if os.path.isdir(folder) else path
