"""Opening a run: what rank 0 does alone, its directory and trackers, and what all ranks then know, where to go on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch import Tensor

from flowrl.config import Config
from flowrl.errors import UserError
from flowrl.records.checkpoint import Checkpoint
from flowrl.records.directory import RunDirectory
from flowrl.records.machine import versions
from flowrl.records.shards import StoredTensors
from flowrl.runtime.launch import Job
from flowrl.runtime.ranks import together
from flowrl.runtime.trackers import Trackers
from flowrl.runtime.watch import name_of
from flowrl.startup.inputs import fingerprint_inputs
from flowrl.startup.preflight import CheckedRun
from flowrl.startup.resume import flat, start_or_resume
from flowrl.types import Ranks, exchange

OWN_KEYS = ("out", "model.device", "train.threads")
"""Keys of the config that may differ from machine to machine."""


@contextmanager
def open_run(
    job: Job, ranks: Ranks, run: CheckedRun, resume: str | None, *, allow_changed: bool
) -> Iterator[tuple[RunDirectory, Trackers, Checkpoint | None]]:
    """The run's directory, its trackers and the checkpoint to go on from, if one is there.

    Only rank 0 opens and reads files of the directory, which other machines may not see: they are told the rest.
    Raises `UserError` as `start_or_resume` and `Trackers`, and where a rank reads other inputs than rank 0.
    """
    config = run.config
    inputs = fingerprint_inputs(config, run.train, run.test, run.given)
    _check_alike(ranks, config, inputs)
    directory = RunDirectory(config.directory.absolute())  # a reward may change the working directory
    start: Checkpoint | None = None
    trackers: Trackers | None = None
    with ExitStack() as opened:

        def open_files() -> None:
            nonlocal start, trackers
            opened.enter_context(directory)
            start = start_or_resume(config, directory, resume, inputs=inputs, allow_changed=allow_changed)
            directory.keep_rewards({reward.file_name: reward.record for reward in run.given.values()})
            trackers = opened.enter_context(Trackers(config, directory, start.step if start else None))

        job.write(open_files)
        yield directory, trackers or Trackers.none(directory), _told(ranks, start)


def _check_alike(ranks: Ranks, config: Config, inputs: Mapping[str, str]) -> None:
    """Raise `UserError` where a rank would compute something else than rank 0."""
    known = {key: value for key, value in flat(config.model_dump(mode="json")).items() if key not in OWN_KEYS}
    said = exchange(ranks, [known, dict(inputs), versions()])
    for rank, (its_config, its_inputs, its_versions) in enumerate(said):
        for what, first, its in (("", said[0][0], its_config), ("version of ", said[0][2], its_versions)):
            for key in dict.fromkeys([*first, *its]):
                if first.get(key) != its.get(key):
                    raise UserError(
                        f"{name_of(rank)} has another {what}{key} than rank 0: {its.get(key)!r}, not "
                        f"{first.get(key)!r}; give all ranks the same"
                    )
        other = [key for key in said[0][1] if key in its_inputs and its_inputs[key] != said[0][1][key]]
        if other:
            raise UserError(
                f"{name_of(rank)} reads other files for {other[0]} than rank 0; give all machines the same ones"
            )


def _told(ranks: Ranks, start: Checkpoint | None) -> Checkpoint | None:
    """Rank 0's checkpoint, on every rank. Parts of tensors are read by each, from the folder itself."""
    if ranks.size == 1:
        return start
    facts, own, parts = None, {}, []
    if start is not None:
        own, parts = _items(start)
        shapes = {name: [str(value.dtype).removeprefix("torch."), list(value.shape)] for name, value in own.items()}
        facts = [str(start.path), start.step, start.values, start.manifest, shapes, [str(file) for file in parts]]
    facts = exchange(ranks, facts)[0]
    if facts is None:
        return None
    path, step, values, manifest, shapes, parts = facts
    tensors: Mapping[str, Tensor] = {
        name: ranks.first(own[name] if start is not None else torch.empty(shape, dtype=getattr(torch, dtype)))
        for name, (dtype, shape) in shapes.items()
    }
    with together(ranks):
        missing = next((file for file in parts if not Path(file).is_file()), None)
        if missing is not None:
            raise UserError(f"{missing} is not seen here: model.shard=fsdp needs a run directory that all ranks share")
        tensors = StoredTensors(tensors, [Path(file) for file in parts]) if parts else tensors
    return Checkpoint(Path(path), step, tensors, values, manifest)


def _items(start: Checkpoint) -> tuple[dict[str, Tensor], list[Path]]:
    """``(tensors by name in order, files of the parts of others)``."""
    stored = start.tensors
    whole, files = (stored.whole, stored.files) if isinstance(stored, StoredTensors) else (stored, [])
    return dict(sorted(whole.items())), files
