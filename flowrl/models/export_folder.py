"""The folder of an export: it appears whole and verified, or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from flowrl.errors import UserError
from flowrl.files import use_default_permissions
from flowrl.models.deviation import TOLERANCE
from flowrl.models.load_errors import is_disk_full
from flowrl.models.lora import Adaptation

ORIGIN_FILE = "flowrl.json"
"""What an export says of the run it came from; other tools pass over it."""


@dataclass(frozen=True)
class Difference:
    """Largest differences of a reloaded model's predictions, relative to the largest value. Predictions are those of
    the network itself: guidance would multiply their rounding by its scale."""

    found: float
    """Of the reloaded model from the policy."""
    rounding: Callable[[], float]
    """Measures it of the policy with its adapter merged into the base's precision, from itself: what rounding alone
    does to this network. Asked where the tolerance is not kept."""


def into_folder(
    directory: Path,
    to: str,
    known: tuple[str, ...],
    adaptation: Adaptation,
    dtype: torch.dtype,
    write: Callable[[Path], Difference],
    origin: Mapping[str, Any] | None = None,
) -> float:
    """Let ``write`` fill a new folder and compare, and move it to ``directory`` (new or empty) if it is good.
    ``origin``, what is known of the run, becomes `ORIGIN_FILE`.

    Returns:
        `Difference.found`.

    Raises:
        UserError: for a format that cannot hold the weights, an occupied folder, or a reloaded model that differs.
    """
    _check(directory, to, known, adaptation)
    with _work_folder(directory) as work:
        difference = write(work)
        if not difference.found <= TOLERANCE[dtype] and not difference.found <= 2 * difference.rounding():
            raise UserError(
                f"the {to} export differs from the trained model by {difference.found:.2g} once reloaded; nothing was"
                " written"
            )
        if origin is not None:
            (work / ORIGIN_FILE).write_text(json.dumps(origin, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        for file in work.rglob("*"):
            if file.is_file():
                use_default_permissions(file)
        if directory.exists():
            directory.rmdir()
        work.rename(directory)
    return difference.found


def _check(directory: Path, to: str, known: tuple[str, ...], adaptation: Adaptation) -> None:
    if to not in known:
        raise UserError(f"cannot export to {to!r}; choose one of {', '.join(known)}")
    if adaptation.lora is None and to != "merged":
        raise UserError(f"a fully fine-tuned model has no adapter to export to {to!r}; use merged")
    if directory.exists() and any(directory.iterdir()):
        raise UserError(f"{directory} already exists and is not empty; remove it or export elsewhere")


@contextmanager
def _work_folder(directory: Path) -> Iterator[Path]:
    """An empty folder beside ``directory``, gone at the end unless it was moved. Raises `UserError` where it cannot be
    made, or the disk is full."""
    work = directory.parent / f".{directory.name}.{os.getpid()}"  # tempfile's folders are for their owner alone
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
    except OSError as error:
        raise UserError(f"{directory} cannot be made: {error.strerror}; name another place") from error
    try:
        yield work
    except (OSError, SafetensorError) as error:
        if is_disk_full(error):
            advice = "free some and export again; a run goes on with --resume auto"
            raise UserError(f"no space left on the disk of {directory}; {advice}") from error
        raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
