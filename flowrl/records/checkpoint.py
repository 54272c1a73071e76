"""Checkpoints: atomic directories of safetensors and JSON, verified when read. No pickle.

``checkpoints/step_000123/`` holds ``state/state.safetensors``, ``state/values.json``, what the exporters wrote
(``lora/``, ``peft/``) and ``manifest.json`` with the size and sha256 of each file. ``latest`` and ``best`` beside it
are one-line files with a directory's name. A directory without a manifest was never finished and does not count.
An export that cannot be written or verified is left out, with a warning and its reason in the manifest
(``not_exported``): the state is what must not be lost.

The state holds the live weights, and their average where the run keeps one; ``flowrl export`` writes the set that the
run's evaluation uses, unless told otherwise.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
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

from flowrl.errors import UserError, describe_exception
from flowrl.files import raise_if_full, sha256, sync, sync_tree, use_default_permissions, write_atomically
from flowrl.records.machine import commit, versions

LATEST, BEST = "latest", "best"
TEMPORARY = ".tmp-"
MANIFEST = "manifest.json"
STATE, VALUES = "state/state.safetensors", "state/values.json"
SEAL = "sha256"
FORMAT = 1
NAME = re.compile(r"step_[0-9]+")
ASIDE = "unreadable-"
"""Prefix of what a run that went on from an older checkpoint could not read, and so did not remove."""
REPLACED = f"{TEMPORARY}old-"

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
    An exporter that fails, whatever it raises, costs its own folder only: a warning says so.
    Raises `UserError` when the disk is full; whatever goes wrong, earlier checkpoints stay as they were.
    """
    root.mkdir(parents=True, exist_ok=True)
    final, partial = directory(root, step), root / f"{TEMPORARY}{step:06d}-{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        _fill(partial, tensors, values)
        failed = _export(partial, exporters, step)
        manifest = _manifest(partial, step, metrics, {**(facts or {}), **({"not_exported": failed} if failed else {})})
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
    write_atomically(root / LATEST, final.name + "\n")
    if best is not None:
        _note_best(root, final.name, manifest["metrics"], best)
    prune(root, keep)
    return final


def load(path: Path) -> Checkpoint:
    """Read and verify a checkpoint directory.

    Raises `UserError` that names the damaged file and the newest older checkpoint that is intact.
    """
    problem = find_damage(path)
    if problem:
        raise UserError(f"checkpoint {path} cannot be used: {problem}{_remedy(path)}")
    try:
        manifest, values = _json(path / MANIFEST), _json(path / VALUES)
        return Checkpoint(path, int(manifest["step"]), load_file(path / STATE), dict(values), manifest)
    except (*UNREADABLE, SafetensorError) as error:  # sealed, so another program wrote it
        raise UserError(f"checkpoint {path} was not written by flowrl ({type(error).__name__}: {error})") from error


UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)
"""What reading JSON of unknown content may raise."""


def find_damage(path: Path, contents: bool = True) -> str | None:
    """What is wrong with a checkpoint directory, or None. Without ``contents`` files are not read, only measured."""
    if not path.is_dir():
        return "it does not exist"
    try:
        manifest = dict(_json(path / MANIFEST))
        if (written := manifest.get("format", FORMAT)) != FORMAT:
            return f"its format is {written!r}, this flowrl reads {FORMAT}"
        files = {str(name): (int(entry["bytes"]), entry["sha256"]) for name, entry in manifest["files"].items()}
        sealed = manifest.pop(SEAL, None) == _seal(manifest)
    except FileNotFoundError:
        return f"{MANIFEST} is missing, so saving never finished"
    except UNREADABLE:
        return f"{MANIFEST} is damaged"
    if not sealed:
        return f"{MANIFEST} is damaged"
    lost = next((name for name in (STATE, VALUES) if name not in files), None)
    if lost:
        return f"{MANIFEST} does not list {lost}"
    return next((problem for name, known in files.items() if (problem := _harm(path, name, *known, contents))), None)


def _harm(path: Path, name: str, size: int, digest: str, contents: bool) -> str | None:
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


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def directory(root: Path, step: int) -> Path:
    """``root/step_000123``."""
    return root / f"step_{step:06d}"


def finished(root: Path) -> list[Path]:
    """Finished checkpoint directories, oldest first. Not verified."""
    return [path for path in step_directories(root) if (path / MANIFEST).is_file()]


def newest_intact(root: Path) -> tuple[Path | None, dict[Path, str]]:
    """``(newest intact checkpoint or None, what is wrong with each directory newer than it)``, newest first. Nothing
    is changed. A directory that lost its manifest counts: saving moves whole directories into place, so it had one."""
    broken: dict[Path, str] = {}
    for path in reversed(step_directories(root)):
        problem = find_damage(path)
        if problem is None:
            return path, broken
        broken[path] = problem
    return None, broken


def latest(root: Path) -> Path | None:
    """The newest intact checkpoint, or None. Warns about damaged ones on the way."""
    found, broken = newest_intact(root)
    for path, problem in broken.items():
        if (path / MANIFEST).is_file():
            warnings.warn(f"skipping checkpoint {path}: {problem}", stacklevel=2)
    return found


def best(root: Path) -> Path | None:
    """The checkpoint of the best metric so far, or None."""
    name = read_pointer(root, BEST)
    return root / name if name and (root / name / MANIFEST).is_file() else None


def prune(root: Path, keep: int) -> None:
    """Remove all but the latest ``keep`` checkpoints and the best, and what killed saves left behind."""
    protected = read_pointer(root, BEST)
    for path in finished(root)[:-keep]:
        if path.name != protected:
            _remove(path)
    remove_leftovers(root)


def remove_leftovers(root: Path) -> None:
    """Remove what killed saves left behind. A checkpoint that was being replaced when the process died comes back."""
    for path in root.glob(f"{REPLACED}step_*"):
        former = path.with_name(path.name.removeprefix(REPLACED))
        if not former.exists() and (path / MANIFEST).is_file():
            os.replace(path, former)
    for path in root.glob(f"{TEMPORARY}*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def discard_after(root: Path, step: int) -> None:
    """Remove checkpoints later than ``step``: the run goes on from there and will write its own. What cannot be read is
    not removed, but renamed to ``unreadable-step_...``."""
    for path in step_directories(root):
        if step_of(path) > step and find_damage(path) is None:
            _remove(path)
        elif step_of(path) > step:
            _set_aside(path)
    if best(root) is None:
        (root / BEST).unlink(missing_ok=True)
    if directory(root, step).is_dir():
        write_atomically(root / LATEST, directory(root, step).name + "\n")


def _set_aside(path: Path) -> None:
    free = path.with_name(f"{ASIDE}{path.name}")
    number = 1
    while free.exists():
        number += 1
        free = path.with_name(f"{ASIDE}{path.name}-{number}")
    os.replace(path, free)


def step_directories(root: Path) -> list[Path]:
    """``step_...`` directories, finished or not, oldest first."""
    found = [path for path in root.glob("step_*") if NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=step_of)


def _fill(partial: Path, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
    (partial / "state").mkdir(parents=True)
    save_file(_separate(tensors), partial / STATE)
    use_default_permissions(partial / STATE)
    (partial / VALUES).write_text(json.dumps(values) + "\n", encoding="utf-8")


def _export(partial: Path, exporters: Mapping[str, Exporter], step: int) -> dict[str, str]:
    """Run the exporters; what went wrong by name of the folder, which is then absent."""
    failed = {}
    for name, export in exporters.items():
        try:
            export(partial / name)
        except Exception as error:  # whatever it is, hours of training are worth more than this folder
            shutil.rmtree(partial / name, ignore_errors=True)
            failed[name] = str(error) if isinstance(error, UserError) else describe_exception(error)
            warnings.warn(
                f"checkpoint {step} is saved without its export {name}/: {failed[name]}; training goes on, and "
                "`flowrl export` can write it from the checkpoint later",
                stacklevel=3,
            )
    return failed


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
    aside = final.with_name(f"{REPLACED}{final.name}")
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
        known = read_manifest(champion).get("metrics")
        old = known.get(key) if isinstance(known, dict) else None
        if isinstance(old, int | float) and old >= new:
            return
    write_atomically(root / BEST, name + "\n")


def _remove(path: Path) -> None:
    # Renamed first: a half-removed directory must not look like a checkpoint.
    doomed = path.with_name(f"{TEMPORARY}removed-{path.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    os.replace(path, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def read_manifest(path: Path) -> dict[str, Any]:
    """What a checkpoint's manifest says, unverified; nothing where it cannot be read."""
    try:
        return dict(_json(path / MANIFEST))
    except UNREADABLE:
        return {}


def read_pointer(root: Path, pointer: str) -> str | None:
    """The checkpoint that ``latest`` or ``best`` names; None where it names none."""
    try:
        name = (root / pointer).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return name if NAME.fullmatch(name) else None


def step_of(path: Path) -> int:
    """The step in a checkpoint's name."""
    return int(path.name.removeprefix("step_"))


def _remedy(path: Path) -> str:
    others = [other for other in reversed(finished(path.parent)) if other.name != path.name]
    usable = next((other for other in others if find_damage(other) is None), None)
    if usable is None:
        return "; no other intact checkpoint is beside it, start again without --resume"
    return f"; use --resume {usable} (or --resume auto)"
