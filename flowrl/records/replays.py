"""Samples of earlier iterations on disk, to be learned from again: a file for each iteration in a run's ``replays/``,
written whole or not at all. A checkpoint holds the names of those in use; the files stay as long as one names them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from flowrl.errors import UserError
from flowrl.files import replaced, use_default_permissions
from flowrl.records.checkpoint import system_errors
from flowrl.records.checkpoint_folder import finished
from flowrl.records.manifest import UNREADABLE, VALUES, read_json
from flowrl.types import Memory, PastSamples

FOLDER = "replays"
NAME = re.compile(r"iteration_[0-9]+\.safetensors")
MEMORY = "replays"
"""Where in a run's memory the names of the files in use are, the oldest first."""
PAST = "past."
"""Prefix of what is known of the samples in a file (`PastSamples`); the other tensors are the samples."""


def file_name(iteration: int) -> str:
    """Of the samples of an iteration, counted from 0."""
    return f"iteration_{iteration:06d}.safetensors"


def names_in(memory: Memory) -> list[str]:
    """The files in use, the oldest first."""
    return [str(name) for name in memory.get(MEMORY, [])]


class Ring:
    """The files of a run. One process reads and writes them."""

    def __init__(self, run: Path) -> None:
        self.folder, self._checkpoints = run / FOLDER, run / "checkpoints"
        self.known: dict[str, PastSamples] = {}
        """What every process knows of the files that it has heard of."""

    def write(self, name: str, past: PastSamples, tensors: Mapping[str, Tensor]) -> None:
        """Keep the samples [K, ...] of an iteration. Raises `UserError` when the disk is full."""
        about = {f"{PAST}{key}": value for key, value in vars(past).items()}
        self.folder.mkdir(parents=True, exist_ok=True)
        with replaced(self.folder / name) as partial, system_errors(partial):
            save_file({key: value.contiguous().clone() for key, value in {**tensors, **about}.items()}, partial)
            use_default_permissions(partial)

    def about(self, name: str) -> PastSamples:
        """What is known of the samples of a file. Raises `UserError`."""
        with _opened(self.folder / name) as file:
            return PastSamples(**{key: file.get_tensor(f"{PAST}{key}") for key in PastSamples.__dataclass_fields__})

    def read(self, names: Sequence[str], place: Tensor, row: Tensor) -> dict[str, Tensor]:
        """Samples [k, ...] by the names of their tensors: ``row`` [k] of the file ``names[place]``. Raises
        `UserError`."""
        parts: dict[str, list[Tensor]] = {}
        for number in place.unique():
            rows = row[place == number].tolist()
            with _opened(self.folder / names[int(number)]) as file:
                for key in file.keys():  # noqa: SIM118  (it is no mapping)
                    if not key.startswith(PAST):
                        held = file.get_slice(key)
                        parts.setdefault(key, []).extend(held[at : at + 1] for at in rows)
        order = torch.cat([(place == number).nonzero()[:, 0] for number in place.unique().tolist()]).argsort()
        return {key: torch.cat(each)[order] for key, each in parts.items()}

    def prune(self, names: Iterable[str]) -> None:
        """Remove the files that neither ``names`` nor a checkpoint names, and what killed writes left behind."""
        if not self.folder.is_dir():
            return
        there = {path for path in self.folder.iterdir() if NAME.fullmatch(path.name.removeprefix(".tmp-"))}
        idle = {path for path in there if path.name not in set(names)}
        if not idle:
            return
        try:
            named = [dict(read_json(path / VALUES)["memory"]) for path in finished(self._checkpoints)]
        except UNREADABLE:  # nobody knows what it names
            return
        kept = {name for memory in named for name in names_in(memory)}
        for path in idle:
            if path.name not in kept:
                path.unlink(missing_ok=True)


def carry(source: Path, run: Path, memory: Memory) -> None:
    """Have the files that a checkpoint of the run ``source`` names in the directory of ``run``, which goes on from it.
    Raises `UserError` for one that is missing."""
    names = names_in(memory)
    missing = next((name for name in names if not (source / FOLDER / name).is_file()), None)
    if missing is not None:
        raise UserError(
            f"{source / FOLDER / missing} is missing: the checkpoint learns again from samples in it; go on from "
            "another one, or start a new run with out=..."
        )
    if source.resolve() == run.resolve():
        return
    (run / FOLDER).mkdir(parents=True, exist_ok=True)
    for name in names:
        with replaced(run / FOLDER / name) as partial:
            partial.write_bytes((source / FOLDER / name).read_bytes())


@contextmanager
def _opened(path: Path) -> Iterator[safe_open]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError:
        raise UserError(f"{path} is missing: samples in it are learned from again; go on from a checkpoint") from None
    except SafetensorError as error:
        raise UserError(f"{path} cannot be read ({error}): go on from an older checkpoint") from error
