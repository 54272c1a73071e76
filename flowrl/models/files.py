"""What can be seen of a model's folder without loading it: damaged, missing, or of another kind than is read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from flowrl.errors import UserError, first_line, is_out_of_memory

LARGEST_JSON = 8 << 20
"""Bytes; larger ones are vocabularies, which their reader checks."""
PICKLED = (".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle")
FIELDS: dict[str, tuple[type, str]] = {
    "architectures": (list, "a list"),
    "auto_map": (dict, "an object"),
    "block_length": (int, "a whole number"),
    "model_type": (str, "a text"),
    "weight_map": (dict, "an object"),
}
"""What the fields hold that are read before a library has checked the file; null is as good as no field."""
WEIGHTS = re.compile(r"^(?:diffusion_pytorch_model|model)(?:\.(?P<variant>[a-z]\w*))?(?:-\d+-of-\d+)?\.safetensors$")


def read_object(path: Path, key: str = "model.path") -> dict[str, Any]:
    """The JSON object in a file. Raises `UserError` for anything else and for a field of `FIELDS` that is of another
    kind, which begins with ``key`` where there is one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise unreadable(path, error, key) from error
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{_named(key, path)} is damaged: not JSON ({first_line(error)}); download or save it again"
        ) from error
    if not isinstance(value, dict):
        raise UserError(
            f"{_named(key, path)} is damaged: it should hold an object, found {type(value).__name__}; download or"
            " save it again"
        )
    for field, (kind, words) in FIELDS.items():
        if not isinstance(found := value.get(field), kind | None):
            raise UserError(
                f"{_named(key, path)} is damaged: its {field} should be {words}, found {type(found).__name__};"
                " download or save it again"
            )
    return value


@contextmanager
def open_safetensors(path: Path, key: str = "model.path") -> Iterator[safe_open]:
    """A file of weights. Raises `UserError`, which begins with ``key``, for one that is damaged or cannot be
    read."""
    try:
        with safe_open(path, framework="pt") as opened:
            yield opened
    except (SafetensorError, OSError) as error:
        if path.is_dir():
            raise UserError(f"{_named(key, path)} is a folder, where a file of weights should be") from error
        if isinstance(error, OSError):
            raise unreadable(path, error, key) from error
        with path.open("rb") as file:
            start = file.read(40)
        if start.startswith(b"version https://git-lfs"):
            raise UserError(f"{_named(key, path)} is a pointer of Git LFS and no weights; run git lfs pull") from error
        raise UserError(
            f"{_named(key, path)} is damaged or cut short ({first_line(error)}); download it again"
        ) from error


def _named(key: str, path: Path) -> str:
    return f"{key}: {path}" if key else str(path)


def unreadable(path: Path, error: OSError, key: str) -> UserError:
    """The sentence for a file that the system does not let us read. Raises the error again where memory ran out."""
    if is_out_of_memory(error):
        raise error
    advice = "change its permissions" if isinstance(error, PermissionError) else "check the path and the disk"
    return UserError(f"{_named(key, path)} cannot be read: {error.strerror or first_line(error)}; {advice}")


def check_files(folder: Path, key: str = "model.path") -> None:
    """Raise `UserError` for a config that is no JSON, and weights that are cut short, in a model's folder and the
    folders of its parts; weights as pickles only are refused as well. Reads headers, no weights."""
    places = [folder, *sorted(part for part in folder.iterdir() if part.is_dir() and _is_part(part))]
    for place in places:
        for path in sorted(place.glob("*.json")):
            if path.name.endswith(("config.json", "index.json")) and path.stat().st_size <= LARGEST_JSON:
                _check_index(path, read_object(path, key), key)
        for path in sorted(place.glob("*.safetensors")):
            with open_safetensors(path, key):
                pass  # its header is whole
        pickled = sorted(
            path.name for path in place.iterdir() if path.suffix in PICKLED and path.stem != "training_args"
        )
        if pickled and not any(place.glob("*.safetensors")):
            raise UserError(
                f"{key}: {place} holds its weights as a pickle ({pickled[0]}), which can run code and is not read; "
                "convert it once: python -m flowrl.scorers.convert SRC DST"
            )


def variant_of(folder: Path) -> str | None:
    """The name between the dots of ``model.fp16.safetensors`` where a part of the model has only such weights."""
    for place in (folder, *sorted(part for part in folder.iterdir() if part.is_dir())):
        found = {match["variant"] for path in place.glob("*.safetensors") if (match := WEIGHTS.match(path.name))}
        if found and None not in found:
            return min(name for name in found if name)
    return None


def _is_part(folder: Path) -> bool:
    """Whether a sub-folder belongs to the model, and not to what somebody keeps beside it."""
    return not folder.name.startswith((".", "checkpoint"))


def _check_index(path: Path, value: dict[str, Any], key: str) -> None:
    """Every file of weights that an index of shards names has to be there."""
    shards = value.get("weight_map")
    if path.name.endswith(".safetensors.index.json") and isinstance(shards, dict):
        for name in dict.fromkeys(map(str, shards.values())):
            if not (path.parent / name).is_file():
                raise UserError(f"{key}: {path.parent / name} is missing, which {path.name} names; download it again")
