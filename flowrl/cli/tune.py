"""``flowrl tune``: the fastest batch sizes for a run on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flowrl.cli.options import ConfigFile, Overrides
from flowrl.cli.printing import print_table, say
from flowrl.errors import UserError

if TYPE_CHECKING:
    from flowrl.commands.tune import Arm


def tune(
    config: ConfigFile,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="File to write [default: NAME.tuned.yaml].")] = None,
    key: Annotated[list[str] | None, typer.Option(help="Key to try, such as train.micro_batch [default: all].")] = None,
    seconds: Annotated[float, typer.Option(min=0.0, help="How long each size is measured.")] = 3.0,
) -> None:
    """Try batch sizes, checkpointing and compilation here, and write the fastest that fit into a file of overrides.
    Results change by rounding alone.

    Example: `flowrl tune configs/quickstart.yaml --out fast.yaml`, then
    `flowrl train configs/quickstart.yaml fast.yaml`
    """
    from flowrl.runtime.display import Display

    with Display() as display:
        display.stage("starting", log=False)
        from flowrl.commands import tune as command
        from flowrl.config import Config

        loaded = Config.load(config, overrides or [])
        path = out or Path(f"{loaded.name}.tuned.yaml")
        command.check_free(path)
        arms = command.tune(loaded, key or command.KEYS, seconds, display.stage)
    best = command.winner(arms)
    _show(arms)
    if best is None:
        raise UserError("nothing that was tried fits this machine; flowrl doctor names what makes it smaller")
    changes = command.overrides_of(best, loaded)
    first = arms[0]
    gain = "" if first.stopped or best is first else f"; {first.name}: {first.seconds:.3g} s"
    note = f"flowrl tune {config}: {best.seconds:.3g} s per sample"
    command.write_overrides(path, changes, note)
    say(f"{best.name}: {best.seconds:.3g} s per sample{gain}")
    say(f"{path}: flowrl train {config} {path}" + ("" if changes else "  (nothing to change)"))


def _show(arms: list[Arm]) -> None:
    """All that was tried; a mark at what was chosen."""
    rows = []
    for arm in arms:
        for row in arm.rows:
            cost, chosen = row.tried.cost, arm.chosen.get(row.key) == row.tried.size
            time = "" if cost is None else f"{cost.seconds * 1000:.3g}"
            memory = "" if cost is None else f"{cost.memory / 2**30:.2f}"
            mark = "fastest" if chosen and not arm.stopped else row.tried.why
            rows.append([row.arm, row.key, str(row.tried.size), time, memory, mark])
        if arm.stopped:
            rows.append([arm.name, "", "", "", "", arm.stopped])
    print_table(["with", "key", "size", "ms per sample", "peak GiB", ""], rows)
