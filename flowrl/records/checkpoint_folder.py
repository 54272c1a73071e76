"""A run's ``checkpoints/``: which are there, which is the newest intact one and the best, and which stay.

``latest`` and ``best`` are one-line files with a directory's name. A directory without a manifest was never finished
and does not count.
"""

from __future__ import annotations

import os
import re
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path

from flowrl.files import remove_file, write_atomically
from flowrl.records.manifest import MANIFEST, find_damage, read_manifest

LATEST, BEST = "latest", "best"
TEMPORARY = ".tmp-"
REPLACED = f"{TEMPORARY}old-"
UNREADABLE_PREFIX = "unreadable-"
"""Prefix of what a run that went on from an older checkpoint could not read, and so did not remove."""
NAME = re.compile(r"step_[0-9]+")


def directory(root: Path, step: int) -> Path:
    """``root/step_000123``."""
    return root / f"step_{step:06d}"


def step_of(path: Path) -> int:
    """The step in a checkpoint's name."""
    return int(path.name.removeprefix("step_"))


def step_directories(root: Path) -> list[Path]:
    """``step_...`` directories, finished or not, oldest first."""
    found = [path for path in root.glob("step_*") if NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=step_of)


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
    """The checkpoint of the best metric so far, or None. Not verified."""
    name = read_pointer(root, BEST)
    return root / name if name and (root / name / MANIFEST).is_file() else None


def read_pointer(root: Path, pointer: str) -> str | None:
    """The checkpoint that ``latest`` or ``best`` names; None where it names none."""
    try:
        name = (root / pointer).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return name if NAME.fullmatch(name) else None


def note_best(root: Path, name: str, metrics: Mapping[str, float | None], key: str) -> None:
    """Point ``best`` at the checkpoint ``name`` if its metric ``key`` is above that of the best so far."""
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


def prune(root: Path, keep: int) -> None:
    """Remove all but the latest ``keep`` checkpoints and the best, and what killed saves left behind. Where ``best``
    cannot be read, no checkpoint is removed: the best one might be among them."""
    protected = read_pointer(root, BEST)
    if protected is not None or not (root / BEST).exists():
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
        remove_file(root / BEST)
    if directory(root, step).is_dir():
        write_atomically(root / LATEST, directory(root, step).name + "\n")


def _set_aside(path: Path) -> None:
    free = path.with_name(f"{UNREADABLE_PREFIX}{path.name}")
    number = 1
    while free.exists():
        number += 1
        free = path.with_name(f"{UNREADABLE_PREFIX}{path.name}-{number}")
    os.replace(path, free)


def _remove(path: Path) -> None:
    # Renamed first: a half-removed directory must not look like a checkpoint.
    doomed = path.with_name(f"{TEMPORARY}removed-{path.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    os.replace(path, doomed)
    shutil.rmtree(doomed, ignore_errors=True)
