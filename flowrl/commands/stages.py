"""Runs one after the other, each of which starts from the weights of the one before (`flowrl.config.stages`). Each is
an ordinary run in a folder of its own; nothing here trains."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from flowrl.commands.export import export
from flowrl.config.stages import Stage
from flowrl.errors import UserError
from flowrl.launcher import launch
from flowrl.records import checkpoint_folder
from flowrl.runtime.display import Display
from flowrl.startup.preflight import CheckedRun, check_run
from flowrl.train import train

ADAPTERS = ("lora", "peft")
"""Folders of a checkpoint that hold an adapter, the one of the model's own library first."""
MERGED = "merged"
"""Folder of a stage's run with its weights, where they are no adapter."""

Beside = Callable[[Path], AbstractContextManager[object]]


def check_stages(stages: Sequence[Stage]) -> list[CheckedRun]:
    """Check all stages before anything of the first is loaded. Raises `UserError` that names the stage."""
    processes = launch()
    if processes is not None and processes.size > 1:
        raise UserError(
            "stages: they run in one process, and several were started; train each stage by itself, with model.adapter"
            " of the one before"
        )
    checked = []
    for stage in stages:
        try:
            checked.append(check_run(stage.config))
        except UserError as error:
            raise UserError(f"stage {stage.name}: {error}") from error
    return checked


def train_stages(
    stages: Sequence[Stage],
    *,
    resume: str | None = None,
    allow_changed: bool = False,
    say: Callable[[str], None] = lambda text: None,
    beside: Beside = lambda run: nullcontext(),
) -> list[Path]:
    """Train the stages, checked by `check_stages`, and return their directories. ``auto`` goes on in the stage that is
    not finished. ``beside`` is entered with the directory of every run.

    A stage that ended before its last iteration, by a signal or an alarm, ends them all.
    Raises:
        UserError: as `flowrl.train.train`, naming the stage; ``resume`` is a path.
        KeyboardInterrupt: as it does.
    """
    if resume not in (None, "auto"):
        raise UserError(f"--resume {resume}: a config of stages goes on where it was with --resume auto")
    if resume is None:
        begun = next((stage for stage in stages if checkpoint_folder.finished(_checkpoints(stage))), None)
        if begun is not None:
            raise UserError(
                f"{begun.config.directory} already holds a run; continue with --resume auto, or write elsewhere "
                "with out=..."
            )
    for number, stage in enumerate(stages):
        if number:
            stage = stage.after(**_start_of(stages[number - 1], say))
        directory = stage.config.directory
        if _done(stage):
            say(f"stage {stage.name}: finished before ({directory})")
            continue
        say(f"stage {stage.name}, {number + 1} of {len(stages)}: {directory}")
        with beside(directory):
            try:
                train(stage.config, resume=resume, allow_changed=allow_changed)
            except UserError as error:
                raise UserError(f"stage {stage.name}: {error}") from error
        if not _done(stage):
            left = [other.name for other in stages[number + 1 :]]
            if left:
                say(f"stage {stage.name} ended early, so {', '.join(left)} did not begin; go on with --resume auto")
            break
    return [stage.config.directory for stage in stages]


def _checkpoints(stage: Stage) -> Path:
    return stage.config.directory / "checkpoints"


def _done(stage: Stage) -> bool:
    found = checkpoint_folder.finished(_checkpoints(stage))
    return bool(found) and checkpoint_folder.step_of(found[-1]) >= stage.config.train.iterations


def _start_of(before: Stage, say: Callable[[str], None]) -> dict[str, str]:
    """The keys of ``model`` that make a run start where the stage ``before`` ended."""
    last = checkpoint_folder.finished(_checkpoints(before))[-1]
    adapter = next((last / name for name in ADAPTERS if (last / name).is_dir()), None)
    if adapter is not None:
        return {"adapter": str(adapter)}
    merged = before.config.directory / MERGED
    if not merged.is_dir():
        say(f"stage {before.name}: writing its weights to {merged}")
        partial = merged.with_name(f".tmp-{MERGED}")
        shutil.rmtree(partial, ignore_errors=True)
        export(before.config.directory, MERGED, partial, Display(before.name), checkpoint=str(last))
        partial.rename(merged)
    return {"path": str(merged)}
