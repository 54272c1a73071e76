"""The manifest of a checkpoint: size and sha256 of each of its files, and what is wrong where they do not agree."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowrl.files import sha256
from flowrl.records.machine import commit, versions

MANIFEST = "manifest.json"
STATE, VALUES = "state/state.safetensors", "state/values.json"
SEAL = "sha256"
"""The manifest's key for the digest of its other keys."""
FORMAT = 1
UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)
"""What reading JSON of unknown content may raise."""


def build_manifest(
    folder: Path, step: int, metrics: Mapping[str, float], facts: Mapping[str, Any], failed: Mapping[str, str]
) -> dict[str, Any]:
    """What ``manifest.json`` of a checkpoint's ``folder`` says, its seal included. ``facts``: further keys; ``failed``:
    exports that were left out, and why. Metrics that are not finite become null."""
    manifest = {
        "format": FORMAT,
        "step": step,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "versions": versions(),
        "commit": commit(),
        **facts,
        **({"not_exported": failed} if failed else {}),
        "metrics": {name: float(value) if math.isfinite(value) else None for name, value in metrics.items()},
        "files": {
            path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256(path)}
            for path in sorted(path for path in folder.rglob("*") if path.is_file())
        },
    }
    return {**manifest, SEAL: seal(manifest)}


def seal(manifest: Mapping[str, Any]) -> str:
    """sha256 of a manifest without its seal: it vouches for the files, this vouches for it."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def read_manifest(path: Path) -> dict[str, Any]:
    """What the manifest of the checkpoint ``path`` says, unverified; nothing where it cannot be read."""
    try:
        return dict(read_json(path / MANIFEST))
    except UNREADABLE:
        return {}


def find_damage(path: Path, contents: bool = True) -> str | None:
    """What is wrong with a checkpoint directory, or None. Without ``contents`` files are not read, only measured."""
    if not path.is_dir():
        return "it does not exist"
    try:
        manifest = dict(read_json(path / MANIFEST))
        if (written := manifest.get("format", FORMAT)) != FORMAT:
            return f"its format is {written!r}, this flowrl reads {FORMAT}"
        files = {str(name): (int(entry["bytes"]), entry["sha256"]) for name, entry in manifest["files"].items()}
        sealed = manifest.pop(SEAL, None) == seal(manifest)
    except FileNotFoundError:
        return f"{MANIFEST} is missing, so saving never finished"
    except OSError as error:
        return f"{MANIFEST} cannot be read ({error.strerror})"
    except UNREADABLE:
        return f"{MANIFEST} is damaged"
    if not sealed:
        return f"{MANIFEST} is damaged"
    lost = next((name for name in (STATE, VALUES) if name not in files), None)
    if lost:
        return f"{MANIFEST} does not list {lost}"
    return next((problem for name, known in files.items() if (problem := _differs(path, name, *known, contents))), None)


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises one of `UNREADABLE`."""
    return json.loads(path.read_text(encoding="utf-8"))


def _differs(path: Path, name: str, size: int, digest: str, contents: bool) -> str | None:
    """How a file differs from what the manifest says of it, or None."""
    file = path / name
    try:
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} of {size} bytes"
        if contents and sha256(file) != digest:
            return f"{name} is damaged (its sha256 is not the recorded one)"
    except OSError as error:
        return f"{name} cannot be read ({error.strerror})"
    return None
