"""Writing and reading a checkpoint: an atomic directory of safetensors and JSON, verified when read. No pickle.

``checkpoints/step_000123/`` holds ``state/state.safetensors``, ``state/values.json``, what the exporters wrote
(``lora/``, ``peft/``) and ``manifest.json`` (`flowrl.records.manifest`). An export that cannot be written or verified
is left out, with a warning and its reason in the manifest (``not_exported``): the state is what must not be lost.

The state holds the live weights, and their average where the run keeps one; ``flowrl export`` writes the set that the
run's evaluation uses, unless told otherwise.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from flowrl.errors import UserError, describe_exception, first_line, is_out_of_memory
from flowrl.files import raise_if_full, sync, sync_tree, use_default_permissions, write_atomically
from flowrl.records.checkpoint_folder import LATEST, REPLACED, TEMPORARY, directory, finished, note_best, prune
from flowrl.records.manifest import MANIFEST, STATE, UNREADABLE, VALUES, build_manifest, find_damage, read_json
from flowrl.records.shards import PATTERN, StoredTensors, write_shard
from flowrl.types import Ranks

Exporter = Callable[[Path], None]
"""Fills a folder of a checkpoint."""


@dataclass(frozen=True)
class Checkpoint:
    """What was saved, verified."""

    path: Path
    step: int
    tensors: Mapping[str, Tensor]
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
    shards: Path | None = None,
) -> Path:
    """Write checkpoint ``step`` below ``root`` (a run's ``checkpoints``) and point ``latest`` at it.

    tensors: state, kept bit for bit. values: JSON state (RNG counters, trackers, ...), floats kept exactly.
    exporters: subdirectory name -> function that fills it. metrics: recorded in the manifest.
    facts: further lines of the manifest, such as config hash and reference fingerprint.
    shards: a folder that `write_shards` filled, whose files become part of the checkpoint.
    keep: latest checkpoints that stay. best: metric of the checkpoint that always stays; higher is better.
    An exporter that fails, whatever it raises, costs its own folder only: a warning says so.

    Raises:
        UserError: the disk is full.
        OSError: the system refuses a file.
        In both cases, and when interrupted, earlier checkpoints stay as they were.
    """
    root.mkdir(parents=True, exist_ok=True)
    final, partial = directory(root, step), root / f"{TEMPORARY}{step:06d}-{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        _write_state(partial, tensors, values)
        if shards is not None:
            for file in sorted(shards.glob(PATTERN)):
                os.replace(file, partial / "state" / file.name)
            shards.rmdir()
        failed = _export(partial, exporters, step)
        manifest = build_manifest(partial, step, metrics, facts or {}, failed)
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        sync_tree(partial)
        _move_into_place(partial, final)
    except BaseException as error:  # also an interrupt: nothing half-written may stay behind
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError):
            raise_if_full(error, root)
        raise
    write_atomically(root / LATEST, final.name + "\n")
    if best is not None:
        note_best(root, final.name, manifest["metrics"], best)
    prune(root, keep)
    return final


def write_shards(root: Path, step: int, parts: Mapping[str, Tensor], ranks: Ranks) -> Path | None:
    """Every process writes what it holds of ``parts`` for checkpoint ``step``, into a folder below ``root`` that all of
    them see; None where there are no such tensors. The folder goes to `save`, which one process calls. Raises as
    `save`."""
    if not parts:
        return None
    folder = root / f"{TEMPORARY}shards-{step:06d}"
    if ranks.rank == 0:
        shutil.rmtree(folder, ignore_errors=True)
    ranks.wait()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with system_errors(folder):
            use_default_permissions(write_shard(folder, ranks.rank, parts))
    except OSError as error:
        raise_if_full(error, root)
        raise
    return folder


def load(path: Path, *, verified: bool = False) -> Checkpoint:
    """Read a checkpoint directory, and verify it unless it was ``verified`` just now.

    Raises `UserError` that names the damaged file and the newest older checkpoint that is intact.
    """
    problem = None if verified else find_damage(path)
    if problem:
        raise UserError(f"checkpoint {path} cannot be used: {problem}{_remedy(path)}")
    try:
        manifest, values = read_json(path / MANIFEST), read_json(path / VALUES)
        with system_errors(path / STATE):
            tensors: Mapping[str, Tensor] = load_file(path / STATE)
        files = [path / name for name in manifest["files"] if Path(name).match(PATTERN)]
        tensors = StoredTensors(tensors, files) if files else tensors
        return Checkpoint(path, int(manifest["step"]), tensors, dict(values), manifest)
    except OSError as error:
        if is_out_of_memory(error):
            raise
        raise UserError(f"checkpoint {path} cannot be read: {first_line(error)}") from error
    except (*UNREADABLE, SafetensorError) as error:  # sealed, so another program wrote it
        raise UserError(f"checkpoint {path} was not written by flowrl ({type(error).__name__}: {error})") from error


def _write_state(partial: Path, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
    (partial / "state").mkdir(parents=True)
    with system_errors(partial / STATE):
        save_file(_separate(tensors), partial / STATE)
    use_default_permissions(partial / STATE)
    (partial / VALUES).write_text(json.dumps(values) + "\n", encoding="utf-8")


@contextmanager
def system_errors(file: Path) -> Iterator[None]:
    """safetensors hides the system's error in the text of its own; from here it is an `OSError` again."""
    try:
        yield
    except SafetensorError as error:
        found = re.search(r"os error (\d+)", str(error))
        if found is None:
            raise
        number = int(found.group(1))
        raise OSError(number, os.strerror(number), str(file)) from error


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


def _move_into_place(partial: Path, final: Path) -> None:
    """Move a finished directory to its name. An older one of the same step is moved aside first."""
    aside = final.with_name(f"{REPLACED}{final.name}")
    if final.exists():
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(final, aside)
    os.replace(partial, final)
    sync(final.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _remedy(path: Path) -> str:
    others = [other for other in reversed(finished(path.parent)) if other.name != path.name]
    usable = next((other for other in others if find_damage(other) is None), None)
    if usable is None:
        return "; no other intact checkpoint is beside it, start again without --resume"
    return f"; use --resume {usable} (or --resume auto)"
