"""``flowrl export``: trained weights for other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flowrl.cli.options import Checkpoint, ExportFormat, RunFolder, Weights
from flowrl.cli.printing import say


def export(
    run: RunFolder,
    to: Annotated[ExportFormat, typer.Option(help="LoRA for diffusers, PEFT, kohya and ComfyUI; or the model.")],
    out: Annotated[Path, typer.Option(help="New folder.")],
    checkpoint: Checkpoint = "best",
    weights: Weights = None,
) -> None:
    """Write trained weights, and verify them. Example: `flowrl export runs/quickstart --to diffusers --out lora`"""
    from flowrl.runtime.display import Display

    with Display() as display:
        display.stage("starting", log=False)
        from flowrl.commands.export import export as write

        done = write(run, to.value, out, display, checkpoint=checkpoint, weights=weights)
    say(
        f"{out}: {to.value} with the {done.weights} weights; reloaded, predictions differ by at most "
        f"{done.difference:.1e}"
    )
