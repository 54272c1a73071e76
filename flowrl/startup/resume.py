"""Starting a run: fresh, or where it was. Nothing is overwritten without being asked to."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowrl.config import Config
from flowrl.errors import UserError
from flowrl.records import checkpoint, checkpoint_folder, replays
from flowrl.records.checkpoint import Checkpoint
from flowrl.records.directory import CONFIG, RunDirectory
from flowrl.records.manifest import MANIFEST
from flowrl.startup.inputs import changed_inputs

FREE_KEYS = (
    "name",
    "out",
    "train.iterations",
    "train.threads",
    "train.rank_timeout",
    "train.micro_batch",
    "train.micro_tokens",
    "train.sample_batch",
    "rollouts",
    "eval.every",
    "eval.batch",
    "log",
    "checkpoint",
    "monitor",
    "model.device",
    "model.gradient_checkpointing",
    "model.merge_adapters",
    "model.shard",
)
"""Keys (or sections) that may change on resume: they do not change what is computed, or only for how long."""
BEFORE_TRAINING = -1
"""The step before the evaluation of the untrained model."""


def start_or_resume(
    config: Config,
    run: RunDirectory,
    resume: str | None,
    *,
    inputs: Mapping[str, str] | None = None,
    allow_changed: bool = False,
) -> Checkpoint | None:
    """Prepare a run's directory (whose lock is held) and return the checkpoint to go on from, or None for a start.

    resume: None starts a new run; ``auto`` goes on from the newest intact checkpoint, or starts if there is none;
    a path goes on from that checkpoint (or that run's newest) and forgets what came after it.
    inputs: fingerprints of what the run reads besides its config (`startup.inputs.fingerprint_inputs`), compared with
    those of the checkpoint. allow_changed: go on, with a warning, where they or the libraries differ, or where
    ``train.iterations`` did under a decaying learning rate.
    Raises `UserError` if a run exists and ``resume`` is None, if checkpoints are there and none can be read, or if
    something differs that would change the mathematics. Nothing was changed or removed then.
    """
    if resume is None and run.has_results():
        raise UserError(
            f"{run.path} already holds a run; continue it with --resume auto, or write elsewhere with out=..."
        )
    if run.checkpoints.is_dir():
        checkpoint_folder.remove_leftovers(run.checkpoints)
    start = _starting_point(run, resume)
    if start is not None:
        source = start.path.absolute().parents[1]
        if run.exists() and source.resolve() != run.path.resolve():
            raise UserError(f"{run.path} already holds another run than {source}; write elsewhere with out=...")
        _check_same(config, source, start, inputs or {}, allow_changed)
        replays.carry(source, run.path, start.values.get("memory", {}))
    run.start(config.to_yaml())
    run.checkpoints.mkdir(exist_ok=True)
    run.rewind(start.step if start else BEFORE_TRAINING)
    checkpoint_folder.discard_after(run.checkpoints, start.step if start else BEFORE_TRAINING)
    return start


def changed_keys(old: Config, new: Config) -> list[str]:
    """``key: old -> new`` for every key whose change would alter what a resumed run computes."""
    before, after = flat(old.model_dump(mode="json")), flat(new.model_dump(mode="json"))
    return [
        f"{key}: {before.get(key)!r} -> {after.get(key)!r}"
        for key in dict.fromkeys([*before, *after])
        if before.get(key) != after.get(key) and not any(key == f or key.startswith(f"{f}.") for f in FREE_KEYS)
    ]


def _starting_point(run: RunDirectory, resume: str | None) -> Checkpoint | None:
    if resume is None:
        return None
    if resume != "auto":
        return load_checkpoint(Path(resume))
    found, broken = checkpoint_folder.newest_intact(run.checkpoints)
    foreign = next((path for path, problem in broken.items() if problem.startswith("its format")), None)
    if broken and (found is None or foreign is not None):
        worst = foreign or next(iter(broken))
        older = f", or name an older checkpoint, as in --resume {found}" if found else ", or start anew with out=..."
        raise UserError(
            f"{run.checkpoints} holds {len(broken)} checkpoint{'s' * (len(broken) > 1)} that cannot be read"
            f" ({worst.name}: {broken[worst]}); nothing was removed. Use the flowrl that wrote it or restore the files"
            f"{older}"
        )
    for path, problem in broken.items():
        warnings.warn(
            f"skipping checkpoint {path}: {problem}; it is kept as {checkpoint_folder.UNREADABLE_PREFIX}{path.name}",
            stacklevel=3,
        )
    return checkpoint.load(found, verified=True) if found else None


def find_checkpoint(path: Path, which: str = "latest") -> Path:
    """The checkpoint directory that a path means: itself, or the ``latest`` or ``best`` of a run.

    Raises `UserError` if there is none.
    """
    return _find_checkpoint(path, which)[0]


def load_checkpoint(path: Path, which: str = "latest") -> Checkpoint:
    """The checkpoint that `find_checkpoint` finds, read and verified. Raises `UserError`."""
    found, verified = _find_checkpoint(path, which)
    return checkpoint.load(found, verified=verified)


def _find_checkpoint(path: Path, which: str) -> tuple[Path, bool]:
    """The directory, and whether it was verified to find it."""
    if (path / MANIFEST).is_file():
        return path, False
    if not path.exists():
        raise UserError(f"checkpoint {path} does not exist; name a run or one of its checkpoints/step_...")
    root = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    best = checkpoint_folder.best(root) if which == "best" else None
    if best is not None:
        return best, False
    found = checkpoint_folder.latest(root)
    if found is None:
        raise UserError(f"{path} has no finished checkpoint; train it first, or set checkpoint.every lower")
    return found, True


def _check_same(config: Config, run: Path, start: Checkpoint, inputs: Mapping[str, str], allow_changed: bool) -> None:
    """Compare with the config, the files and the libraries that the checkpoint's run was trained with."""
    path = run / CONFIG
    before = Config.of_run(path)
    different = changed_keys(before, config)
    if different:
        raise UserError(
            "this config is not the one of the checkpoint; continuing would mix two experiments:"
            + "".join(f"\n  - {line}" for line in different)
            + "\nset these keys back, or start a new run with out=..."
        )
    if start.step >= config.train.iterations:
        return  # nothing will be computed
    found = [*_changed_schedule(before, config), *changed_inputs(start.manifest, inputs)]
    if not found:
        return
    listed = "".join(f"\n  - {line}" for line in found)
    if not allow_changed:
        raise UserError(
            f"not everything is as it was when {start.path} was saved:{listed}\n"
            "undo this, start a new run with out=..., or go on with --allow-changed"
        )
    warnings.warn(f"going on although something changed since {start.path.name}:{listed}", stacklevel=4)


def _changed_schedule(before: Config, after: Config) -> list[str]:
    """A decaying rate depends on where the run ends."""
    old, new, schedule = before.train.iterations, after.train.iterations, after.optimizer.schedule
    if old == new or schedule == "constant":
        return []
    return [f"train.iterations: {old} -> {new}, which changes every rate of optimizer.schedule={schedule}"]


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted keys and their plain values."""
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        items = enumerate(value)
    else:
        return {prefix.removesuffix("."): value}
    return {k: v for key, item in items for k, v in flat(item, f"{prefix}{key}.").items()} or {prefix[:-1]: value}
