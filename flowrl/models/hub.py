"""Models on the Hugging Face hub: which names can be one's, their small files, and what has been downloaded."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

from flowrl.models.files import read_object
from flowrl.models.load_errors import load_error

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def is_hub_id(name: str) -> bool:
    """Whether a name has the form ``owner/name``."""
    return HUB_ID.fullmatch(name) is not None and not name.startswith((".", "/", "~"))


def read_json(path: str, name: str) -> dict[str, Any] | None:
    """The JSON file ``name`` of a model's folder or of a repository on the hub; ``None`` if that has no such file, and
    for a ``path`` that is neither.

    Raises:
        UserError: for a damaged file, and where the hub refuses or cannot be reached and the repository was never
            downloaded.
    """
    folder = Path(path)
    if folder.is_dir():
        file = folder / name
        return read_object(file) if file.is_file() else None
    if not is_hub_id(path):
        return None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    local = is_offline(path)
    try:
        return read_object(Path(hf_hub_download(path, name, local_files_only=local)))
    except Exception as error:  # each version of huggingface_hub has the errors of another HTTP library
        # a FileNotFoundError as well where the hub cannot be reached
        if isinstance(error, EntryNotFoundError) and (local or not isinstance(error, FileNotFoundError)):
            return None
        raise load_error(path, error) from error


@functools.cache
def is_offline(path: str) -> bool:
    """Whether the hub cannot be asked about a repository that is in the local cache: then that is what there is. Asked
    once, as every further try would cost many retries.

    Raises:
        UserError: where the hub refuses or cannot be reached and there is nothing in the cache.
    """
    from huggingface_hub import HfApi

    try:
        HfApi().model_info(path, timeout=10)
    except Exception as error:  # as above
        failure = load_error(path, error)
        if downloaded(path) is None:
            raise failure from error
        return True
    return False


def downloaded(repository: str) -> Path | None:
    """The folder of a hub repository in the local cache; ``None`` if it was never downloaded."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, local_files_only=True))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError):
        return None


def download(repository: str, patterns: list[str] | None = None, what: str = "model") -> Path:
    """The folder of a hub repository, with the files that match ``patterns`` (``None``: all), downloaded where they are
    not in the cache. Raises `UserError`."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, allow_patterns=patterns))
    except Exception as error:  # as above
        raise load_error(repository, error, what) from error
