"""Checkpoints: atomic directories of safetensors and JSON, verified when read. No pickle.

``checkpoints/step_000123/`` holds ``state/state.safetensors``, ``state/values.json``, what the exporters wrote
(``lora/``, ``peft/``) and ``manifest.json`` with the size and sha256 of each file. ``latest`` and ``best`` beside it
are one-line files with a directory's name. A directory without a manifest was never finished and does not count.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from flowrl.errors import UserError
from flowrl.runtime.environment import commit, versions
from flowrl.runtime.files import raise_if_full, sha256, sync, sync_tree, write_whole

LATEST, BEST = "latest", "best"
TEMPORARY = ".tmp-"
MANIFEST = "manifest.json"
STATE, VALUES = "state/state.safetensors", "state/values.json"
SEAL = "sha256"
FORMAT = 1

Exporter = Callable[[Path], None]


@dataclass(frozen=True)
class Checkpoint:
    """What was saved, verified."""

    path: Path
    step: int
    tensors: dict[str, Tensor]
    values: dict[str, Any]
    manifest: dict[str, Any]


def save(
    root: Path,
    step: int,
    tensors: Mapping[str, Tensor],
    values: Mapping[str, Any],
    exporters: Mapping[str, Exporter],
    metrics: Mapping[str, float],
    *,
    facts: Mapping[str, Any] | None = None,
    keep: int = 2,
    best: str | None = None,
) -> Path:
    """Write checkpoint ``step`` below ``root`` (a run's ``checkpoints``) and point ``latest`` at it.

    tensors: state, kept bit for bit. values: JSON state (RNG counters, trackers, ...), floats kept exactly.
    exporters: subdirectory name -> function that fills it. metrics: recorded in the manifest.
    facts: further lines of the manifest, such as config hash and reference fingerprint.
    keep: latest checkpoints that stay. best: metric of the checkpoint that always stays; higher is better.
    Raises `UserError` when the disk is full; whatever goes wrong, earlier checkpoints stay as they were.
    """
    root.mkdir(parents=True, exist_ok=True)
    final, partial = directory(root, step), root / f"{TEMPORARY}{step:06d}-{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        _fill(partial, tensors, values, exporters)
        manifest = _manifest(partial, step, metrics, facts or {})
        text = json.dumps({**manifest, SEAL: _seal(manifest)}, indent=1)
        (partial / MANIFEST).write_text(text + "\n", encoding="utf-8")
        sync_tree(partial)
        _put(partial, final)
    except BaseException as error:  # also an interrupt: nothing half-written may stay behind
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError):
            raise_if_full(error, root)
        if isinstance(error, SafetensorError) and "No space left" in str(error):
            raise UserError(f"no space left on the disk of {root}; free some, then use --resume auto") from error
        raise
    write_whole(root / LATEST, final.name + "\n")
    if best is not None:
        _note_best(root, final.name, manifest["metrics"], best)
    prune(root, keep)
    return final


def load(path: Path) -> Checkpoint:
    """Read and verify a checkpoint directory.

    Raises `UserError` that names the damaged file and the newest older checkpoint that is intact.
    """
    problem = damage(path)
    if problem:
        raise UserError(f"checkpoint {path} cannot be used: {problem}{_remedy(path)}")
    manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    values = json.loads((path / VALUES).read_text(encoding="utf-8"))
    return Checkpoint(path, manifest["step"], load_file(path / STATE), values, manifest)


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint directory, or None."""
    if not path.is_dir():
        return "it does not exist"
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        files = {name: (entry["bytes"], entry["sha256"]) for name, entry in manifest["files"].items()}
    except FileNotFoundError:
        return f"{MANIFEST} is missing, so saving never finished"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} is damaged"
    if manifest.pop(SEAL, None) != _seal(manifest):
        return f"{MANIFEST} is damaged"
    if manifest.get("format") != FORMAT:
        return f"its format is {manifest.get('format')!r}, this flowrl reads {FORMAT}"
    for name, (size, digest) in files.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} of {size} bytes"
        if sha256(file) != digest:
            return f"{name} is damaged (its sha256 is not the recorded one)"
    return None


def directory(root: Path, step: int) -> Path:
    """``root/step_000123``."""
    return root / f"step_{step:06d}"


def all_steps(root: Path) -> list[Path]:
    """Finished checkpoint directories, oldest first. Not verified."""
    return sorted((path.parent for path in root.glob(f"step_*/{MANIFEST}")), key=_step)


def latest(root: Path) -> Path | None:
    """The newest intact checkpoint, or None. Warns about damaged ones on the way."""
    for path in reversed(all_steps(root)):
        problem = damage(path)
        if problem is None:
            return path
        warnings.warn(f"skipping checkpoint {path}: {problem}", stacklevel=2)
    return None


def best(root: Path) -> Path | None:
    """The checkpoint of the best metric so far, or None."""
    name = _pointer(root / BEST)
    return root / name if name and (root / name / MANIFEST).is_file() else None


def prune(root: Path, keep: int) -> None:
    """Remove all but the latest ``keep`` checkpoints and the best, and what killed saves left behind."""
    protected = _pointer(root / BEST)
    for path in all_steps(root)[:-keep]:
        if path.name != protected:
            _remove(path)
    clean(root)


def clean(root: Path) -> None:
    """Remove what killed saves left behind."""
    for path in root.glob(f"{TEMPORARY}*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def discard_after(root: Path, step: int) -> None:
    """Remove checkpoints later than ``step``: the run goes on from there and will write its own."""
    for path in all_steps(root):
        if _step(path) > step:
            _remove(path)
    if best(root) is None:
        (root / BEST).unlink(missing_ok=True)
    if directory(root, step).is_dir():
        write_whole(root / LATEST, directory(root, step).name + "\n")


def _fill(
    partial: Path, tensors: Mapping[str, Tensor], values: Mapping[str, Any], exporters: Mapping[str, Exporter]
) -> None:
    (partial / "state").mkdir(parents=True)
    save_file(_separate(tensors), partial / STATE)
    (partial / VALUES).write_text(json.dumps(values) + "\n", encoding="utf-8")
    for name, export in exporters.items():
        export(partial / name)


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """On the host, each with its own memory: safetensors refuses tensors that are views of one another."""
    flat, seen = {}, set()
    for name, tensor in tensors.items():
        here = tensor.detach().cpu().contiguous()
        place = here.untyped_storage().data_ptr()
        flat[name] = here.clone() if place in seen else here
        seen.add(place)
    return flat


def _manifest(partial: Path, step: int, metrics: Mapping[str, float], facts: Mapping[str, Any]) -> dict[str, Any]:
    files = sorted(path for path in partial.rglob("*") if path.is_file())
    return {
        "format": FORMAT,
        "step": step,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "versions": versions(),
        "commit": commit(),
        **facts,
        "metrics": {name: _finite(value) for name, value in metrics.items()},
        "files": {
            path.relative_to(partial).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256(path)}
            for path in files
        },
    }


def _seal(manifest: Mapping[str, Any]) -> str:
    """The manifest vouches for the files; this vouches for the manifest."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _finite(value: float) -> float | None:
    return float(value) if torch.isfinite(torch.tensor(float(value))) else None


def _put(partial: Path, final: Path) -> None:
    """Move a finished directory into place. An older one of the same step is moved aside first."""
    aside = final.with_name(f"{TEMPORARY}old-{final.name}")
    if final.exists():
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(final, aside)
    os.replace(partial, final)
    sync(final.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _note_best(root: Path, name: str, metrics: Mapping[str, float | None], key: str) -> None:
    new = metrics.get(key)
    if new is None:
        return
    champion = best(root)
    if champion is not None and champion.name != name:
        old = json.loads((champion / MANIFEST).read_text(encoding="utf-8"))["metrics"].get(key)
        if old is not None and old >= new:
            return
    write_whole(root / BEST, name + "\n")


def _remove(path: Path) -> None:
    # Renamed first: a half-removed directory must not look like a checkpoint.
    doomed = path.with_name(f"{TEMPORARY}removed-{path.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    os.replace(path, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _pointer(path: Path) -> str | None:
    return path.read_text(encoding="utf-8").strip() if path.is_file() else None


def _step(path: Path) -> int:
    digits = path.name.removeprefix("step_")
    return int(digits) if digits.isdigit() else -1


def _remedy(path: Path) -> str:
    others = [other for other in reversed(all_steps(path.parent)) if other.name != path.name]
    usable = next((other for other in others if damage(other) is None), None)
    if usable is None:
        return "; no other intact checkpoint is beside it, start again without --resume"
    return f"; use --resume {usable} (or --resume auto)"
