"""What of a run may leave this machine: its config and files without local paths, addresses, names of users, tokens."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from flowrl.config import Config
from flowrl.errors import UserError
from flowrl.models.adapters.peft import sort_header
from flowrl.models.hub import is_hub_id

HIDDEN = "HIDDEN"
"""Stands where a value was left out."""
PRIVATE = ("out", "log", "rollouts")
"""Sections that say where a run was made, not what it is."""
SECRET_KEY = re.compile(r"(?:^|[_-])(?:api_?key|key|tokens?|secret|passw(?:or)?d|auth\w*|credentials?|headers?)$", re.I)
"""Names of arguments (a user's, or a library's) whose values nobody should see."""
TOKEN = re.compile(
    r"\b(?:hf_|api_org_|sk-|ghp_|gho_|github_pat_|glpat-|xox[a-z]-|AKIA|AIza|eyJ)[\w-]{12,}|\bBearer\s+\S+"
    r"|\b(?=\w*\d)(?=\w*[G-Zg-z])\w{40,}\b"
)
"""Tokens of well-known services by how they begin, and long words of letters and digits that are no hash."""
ADDRESS = re.compile(r"\w+://|^(?:\d{1,3}(?:\.\d{1,3}){3}|localhost|[\w-]+(?:\.[\w-]+)*:\d{2,5})(?:[:/]\S*)?$")
"""Of servers, with a scheme, by number, or with a port."""
FOLDER = re.compile(r"(?:[A-Za-z]:[\\/]|\\\\|~|/|\.{1,2}/)[^\n]*")
"""What a config's value that names a file begins with."""
DEEP = re.compile(r"(?:~[\w.-]*|[A-Za-z]:)?[/\\][^\s/\\][^\n/\\]*[/\\][^\n]+")
"""A path of two parts at least: one alone may be a word of a model, such as ``/think``."""
OWN_CODE = re.compile(r"[^:\n]*\.py:\w+|callable:.*")
"""What is not in the repository: functions of a file, or of the program that called `flowrl.train`."""
PLACES = ("model.path", "model.adapter", "data.train", "data.test")
"""Keys that name folders and files, also by relative paths."""
FREE = (
    "rewards",
    "algorithm",
    "model.call",
    "model.inputs",
    "model.chat_template_kwargs",
    "optimizer.options",
    "data.columns",
)
"""Keys whose content users name themselves."""
SAME = ("tokenizer.json", "vocab.json", "merges.txt")
"""Files of words of a language, in which nothing is a path."""


def public_config(config: Config) -> tuple[dict[str, Any], list[str]]:
    """The keys that are not their defaults, as plain data, and those of them whose values were shortened or hidden, or
    name code that others do not have."""
    changed: list[str] = []
    whole = config.model_dump(mode="json", exclude_defaults=True, exclude=set(PRIVATE))
    return {key: _public(key, value, changed) for key, value in whole.items()}, changed


def public_origin(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What an export remembers of its run (`flowrl.models.export_folder.ORIGIN_FILE`), likewise."""
    return {key: _public("model.path" if key == "base" else key, value, []) for key, value in facts.items()}


def hub_base(config: Config) -> str | None:
    """The base model's id on the hub; None for a folder and for an embedded world."""
    path = config.model.path
    return path if is_hub_id(path) and not Path(path).is_dir() else None


def _public(key: str, value: Any, changed: list[str]) -> Any:
    if isinstance(value, Mapping):
        return {name: _public(f"{key}.{name}", inner, changed) for name, inner in value.items()}
    if isinstance(value, list):
        return [_public(f"{key}.{place}", inner, changed) for place, inner in enumerate(value)]
    shown = _shown(key, value) if isinstance(value, str) else value
    if key.startswith(FREE) and value is not None and any(map(SECRET_KEY.search, key.split("."))):
        shown = HIDDEN
    if shown != value or (isinstance(value, str) and OWN_CODE.fullmatch(value)):
        changed.append(key)
    return shown


def _shown(key: str, value: str) -> str:
    """A text as others may read it: of a path its last part, of an address nothing."""
    if ADDRESS.search(value):
        return HIDDEN
    if FOLDER.fullmatch(value) or OWN_CODE.fullmatch(value):
        return _last_part(value)
    if (
        key in PLACES
        and "/" in value
        and not value.startswith("hf:")
        and (Path(value).exists() or not is_hub_id(value))
    ):
        return _last_part(value)
    return without_secrets(value)


def without_secrets(text: str) -> str:
    """A text without tokens, and without the home directory."""
    for home in _homes():
        text = text.replace(home, HIDDEN)
    return TOKEN.sub(HIDDEN, text)


def _last_part(path: str) -> str:
    name = (PureWindowsPath if re.match(r"[A-Za-z]:\\|\\\\", path) else PurePosixPath)(path).name
    return HIDDEN if not name or name.strip("~") in {Path(home).name for home in _homes()} else without_secrets(name)


def _homes() -> list[str]:
    """The user's home directory, by all its names that could stand in a file."""
    found = {str(Path.home()), os.path.realpath(Path.home())}
    return sorted((home for home in found if len(home) > 1), key=len, reverse=True)


# ---- files


def strip_files(folder: Path) -> list[str]:
    """Take local paths out of the JSON files and the headers of weights in a folder, where libraries name the base
    model. Returns the files that were changed."""
    changed = []
    for file in _files(folder):
        if file.suffix == ".json":
            before = _json(file.read_text(encoding="utf-8"))
            if (after := _stripped(before)) != before:
                file.write_text(json.dumps(after, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
                changed.append(file.relative_to(folder).as_posix())
        elif file.suffix == ".safetensors" and _strip_header(file):
            changed.append(file.relative_to(folder).as_posix())
    return changed


def check_nothing_private(folder: Path, secrets: list[str]) -> None:
    """Raise `UserError` where a file of a folder still holds one of the ``secrets``, a token, or the home directory."""
    for file in _files(folder):
        if file.suffix in (".json", ".md", ".yaml", ".txt", ".jinja", ".py"):
            text = file.read_text(encoding="utf-8", errors="replace")
        elif file.suffix == ".safetensors":
            text = json.dumps(_header(file).get("__metadata__", {}))
        else:
            continue
        words = [*secrets, *(f"{home}{os.sep}" for home in _homes())]
        found = next((word for word in words if word and word in text), None)
        if found is not None:
            kind = "a token of yours" if found in secrets else "a path in your home directory"
            name = file.relative_to(folder)
            raise UserError(f"{name} would hold {kind}; take it out of the run's config, and export again")


def _files(folder: Path) -> Iterator[Path]:
    return (file for file in sorted(folder.rglob("*")) if file.is_file() and file.name not in SAME)


def _stripped(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _stripped(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_stripped(inner) for inner in value]
    if not isinstance(value, str):
        return value
    if DEEP.fullmatch(value):
        return None
    return without_secrets(value) if any(home in value for home in _homes()) else value


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _header(file: Path) -> dict[str, Any]:
    with file.open("rb") as opened:
        return dict(json.loads(opened.read(int.from_bytes(opened.read(8), "little"))))


def _strip_header(file: Path) -> bool:
    """Rewrite the header of a file of weights where its metadata, which may be JSON within JSON, names local paths."""
    metadata = _header(file).get("__metadata__", {})
    clean = {}
    for key, text in metadata.items():
        inner = _json(text)
        nested = isinstance(inner, dict)
        clean[key] = json.dumps(_stripped(inner), indent=2) if nested and _stripped(inner) != inner else text
        if not nested and _stripped(text) != text:
            clean[key] = ""
    if clean == metadata:
        return False
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.dumps({**json.loads(data[8 : 8 + length]), "__metadata__": clean}).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])
    sort_header(file)
    return True
