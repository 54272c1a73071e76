"""Starting a run: fresh, or where it was. Nothing is overwritten without being asked to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flowrl.config import Config
from flowrl.config.reading import read_yaml
from flowrl.errors import UserError
from flowrl.runtime import checkpoint
from flowrl.runtime.checkpoint import Checkpoint
from flowrl.runtime.directory import RunDirectory

FREE = (
    "name",
    "out",
    "train.iterations",
    "train.threads",
    "train.micro_batch",
    "train.sample_batch",
    "eval.every",
    "eval.batch",
    "log",
    "checkpoint",
    "monitor",
    "model.device",
    "model.gradient_checkpointing",
)
"""Keys (or sections) that may change on resume: they do not change what is computed, or only for how long."""


def begin(config: Config, run: RunDirectory, resume: str | None) -> Checkpoint | None:
    """Prepare a run's directory (whose lock is held) and return the checkpoint to go on from, or None for a start.

    resume: None starts a new run; ``auto`` goes on from the newest intact checkpoint, or starts if there is none;
    a path goes on from that checkpoint (or that run's newest) and forgets what came after it.
    Raises `UserError` if a run exists and ``resume`` is None, if a checkpoint is damaged, or if the config differs
    where it would change the mathematics.
    """
    if resume is None and run.begun():
        raise UserError(
            f"{run.path} already holds a run; continue it with --resume auto, or write elsewhere with out=..."
        )
    start = _starting_point(run, resume)
    if start is not None:
        source = start.path.absolute().parents[1]
        if run.exists() and source.resolve() != run.path.resolve():
            raise UserError(f"{run.path} already holds another run than {source}; write elsewhere with out=...")
        _check_same(config, source)
    run.start(config.to_yaml())
    run.checkpoints.mkdir(exist_ok=True)
    checkpoint.clean(run.checkpoints)
    step = start.step if start else 0
    run.rewind(step)
    checkpoint.discard_after(run.checkpoints, step)
    return start


def changes(old: Config, new: Config) -> list[str]:
    """``key: old -> new`` for every key whose change would alter what a resumed run computes."""
    before, after = _flat(old.model_dump(mode="json")), _flat(new.model_dump(mode="json"))
    return [
        f"{key}: {before.get(key)!r} -> {after.get(key)!r}"
        for key in dict.fromkeys([*before, *after])
        if before.get(key) != after.get(key) and not any(key == f or key.startswith(f"{f}.") for f in FREE)
    ]


def _starting_point(run: RunDirectory, resume: str | None) -> Checkpoint | None:
    if resume is None:
        return None
    if resume == "auto":
        path = checkpoint.latest(run.checkpoints)
        return checkpoint.load(path) if path else None
    return checkpoint.load(locate(Path(resume)))


def locate(path: Path, which: str = "latest") -> Path:
    """The checkpoint directory that a path means: itself, or the ``latest`` or ``best`` of a run.

    Raises `UserError` if there is none.
    """
    if (path / checkpoint.MANIFEST).is_file():
        return path
    if not path.exists():
        raise UserError(f"checkpoint {path} does not exist; name a run or one of its checkpoints/step_...")
    root = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    found = (checkpoint.best(root) if which == "best" else None) or checkpoint.latest(root)
    if found is None:
        raise UserError(f"{path} has no finished checkpoint; train it first, or set checkpoint.every lower")
    return found


def _check_same(config: Config, run: Path) -> None:
    """Compare with the config that the checkpoint's run was started with."""
    path = run / "config.yaml"
    different = changes(Config.of(read_yaml(path), str(path)), config)
    if different:
        raise UserError(
            "this config is not the one of the checkpoint; continuing would mix two experiments:"
            + "".join(f"\n  - {line}" for line in different)
            + "\nset these keys back, or start a new run with out=..."
        )


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted keys and their plain values."""
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        items = enumerate(value)
    else:
        return {prefix.removesuffix("."): value}
    return {k: v for key, item in items for k, v in _flat(item, f"{prefix}{key}.").items()} or {prefix[:-1]: value}
