"""What a run reads besides its config, as fingerprints: a resumed run says when they are not what they were."""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

import flowrl.worlds
from flowrl.composition import own_code
from flowrl.config import Config
from flowrl.config.teacher import every_teacher
from flowrl.data import PromptSet
from flowrl.records.machine import versions
from flowrl.score.given import Given
from flowrl.score.registry import place_of
from flowrl.worlds import world_names

WHOLE = 1 << 20
"""Files up to so many bytes are hashed whole."""
SAMPLES, SAMPLE = 64, 1 << 14
"""Of larger ones: size, header (safetensors), and so many evenly spaced pieces of so many bytes."""
MANIFEST_KEY = "inputs"
"""Of the manifest."""


def fingerprint_inputs(
    config: Config, train: PromptSet, test: PromptSet | None, given: Given | None = None
) -> dict[str, str]:
    """Fingerprint by the key of the config that names the input; what is not on this machine is left out.

    Prompts: all texts and columns in order. Rewards and the user's own parts of the algorithm: the syntax trees (so:
    not comments or layout) of the file and of the files beside it that it imports, of ``given`` ones of their source;
    files and folders that options of rewards name. Base model and adapter: every file's name and size, small files
    whole, of large ones the header and a sample of 1 MiB; for models of the hub, the commit.
    """
    found = {"data.train": _prompts(train), "data.test": _prompts(test) if test else None}
    found["model.path"] = _model(config.model.path)
    if config.model.adapter is not None:
        found["model.adapter"] = _model(config.model.adapter)
    for key, _, member in every_teacher(config.teachers):
        for part, name in (("path", member.path), ("adapter", member.adapter)):
            if name is not None:
                found[f"{key}.{part}"] = _model(name)
    for reward in config.rewards:
        label = f"rewards.{reward.name or reward.use}"
        found[label] = given[reward.use].fingerprint if given and reward.use in given else _reward(reward.use)
        for key, value in reward.options.items():
            if isinstance(value, str) and _exists(value):
                found[f"{label}.{key}"] = fingerprint_files(Path(value).expanduser())
    for key, place in own_code(config.algorithm).items():
        found[key] = _code(place.path) if place.path else None
    return {key: value for key, value in found.items() if value is not None}


def changed_inputs(manifest: Mapping[str, Any], inputs: Mapping[str, str]) -> list[str]:
    """One line for each input or library that is not the one a checkpoint's manifest records. What either side does
    not know is not compared."""
    recorded = manifest.get(MANIFEST_KEY)
    before: Mapping[str, Any] = recorded if isinstance(recorded, dict) else {}
    lines = [f"{key}: {_word(key)}" for key, value in inputs.items() if before.get(key, value) != value]
    old = manifest.get("versions")
    if isinstance(old, dict):
        now = versions()
        lines += [
            f"{name}: version {old[name]} -> {now[name]}"
            for name in now
            if old.get(name) is not None and _release(name, old[name]) != _release(name, now[name])
        ]
    return lines


def fingerprint_files(path: Path) -> str:
    """Fingerprint of a file, or of all files below a folder by their names."""
    digest = hashlib.sha256()
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    for file in files:
        if any(part.startswith(".") or part == "__pycache__" for part in file.relative_to(path).parts):
            continue  # caches and version control; Python compiles modules when it pleases
        digest.update(f"{file.relative_to(path)}\0{_file(file)}\0".encode())
    return digest.hexdigest()


def _word(key: str) -> str:
    if key.startswith("data."):
        return "the prompts or their columns are others"
    if key.startswith(("rewards.", "algorithm")):
        return "the code, or a file it is given, was changed"
    return "the files are others"


def _release(name: str, version: Any) -> str:
    """Python's patch level and the tags of builds do not change results."""
    text = str(version).partition("+")[0]
    return ".".join(text.split(".")[:2]) if name == "python" else text


def _prompts(prompts: PromptSet) -> str:
    digest = hashlib.sha256()
    for prompt in prompts.prompts:
        chat = prompt.chat and prompt.chat.content
        row = json.dumps([prompt.text, dict(prompt.columns), *([chat] if chat else [])], sort_keys=True, default=_value)
        digest.update(row.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _value(value: object) -> str:
    """What stands for a column's value that is no plain data: of pictures, their pixels."""
    if isinstance(value, Image.Image):
        return f"{value.mode} {value.size} {hashlib.sha256(value.tobytes()).hexdigest()}"
    return hashlib.sha256(value).hexdigest() if isinstance(value, bytes) else repr(value)


def _exists(text: str) -> bool:
    try:
        return "/" in text and Path(text).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # too long, a NUL, no such user
        return False


def _model(name: str) -> str | None:
    """Of a world, a folder, a file, or a model of the hub that was downloaded."""
    if name in world_names():
        return fingerprint_files(Path(flowrl.worlds.__path__[0], name))
    path = Path(name).expanduser()
    if path.exists():
        return fingerprint_files(path)
    return _revision(name)


def _revision(name: str) -> str | None:
    """The commit of the copy of a hub repository that would be used."""
    from huggingface_hub.constants import HF_HUB_CACHE

    repository = "--".join(name.split("/")[:2])  # what follows is a file of it
    reference = Path(HF_HUB_CACHE) / f"models--{repository}" / "refs" / "main"
    return f"commit {reference.read_text().strip()}" if reference.is_file() else None


def _reward(use: str) -> str | None:
    """Of a reward's own code; None for one that is scored elsewhere."""
    if use.startswith(("http://", "https://", "ray:")):
        return None
    path = place_of(use).path
    return _code(path) if path else None


def _code(path: Path) -> str | None:
    """Of a Python file and, transitively, the modules beside it that it imports."""
    digest, seen, open_files = hashlib.sha256(), set(), [path]
    while open_files:
        file = open_files.pop()
        if file in seen or not file.is_file():
            continue
        seen.add(file)
        try:
            parsed = ast.parse(file.read_text(encoding="utf-8"))
        except (SyntaxError, ValueError, OSError):
            digest.update(f"{file.name}\0{_file(file)}".encode())
            continue
        digest.update(f"{file.name}\0{ast.dump(parsed)}".encode())
        open_files += sorted(_beside(file, parsed))
    return digest.hexdigest() if seen else None


def _beside(file: Path, parsed: ast.Module) -> Iterable[Path]:
    names = set()
    for node in ast.walk(parsed):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            names |= {module, *(f"{module}.{alias.name}".strip(".") for alias in node.names)}
    for name in filter(None, names):
        place = file.parent.joinpath(*name.split("."))
        yield from (found for found in (place.with_suffix(".py"), place / "__init__.py") if found.is_file())


def _file(path: Path) -> str:
    facts = path.stat()
    return _sampled(path, facts.st_size, facts.st_mtime_ns)


@functools.lru_cache(maxsize=4096)
def _sampled(path: Path, size: int, changed: int) -> str:
    """Of a file's size and bytes: all of them, or the header and a sample. ``changed`` is for the memory's sake."""
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        if size <= WHOLE:
            digest.update(file.read())
            return digest.hexdigest()
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if path.suffix == ".safetensors" else SAMPLE
        digest.update(start + file.read(min(length, size, 1 << 26)))
        for piece in range(SAMPLES):
            file.seek((size - SAMPLE) * piece // (SAMPLES - 1))
            digest.update(file.read(SAMPLE))
    return digest.hexdigest()
