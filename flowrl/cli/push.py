"""``flowrl push``: trained weights on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flowrl.cli.options import Checkpoint, ExportFormat, RunFolder, Weights
from flowrl.cli.printing import print_table, say
from flowrl.errors import UserError


def push(
    run: RunFolder,
    hub_id: Annotated[str, typer.Argument(metavar="HUB_ID", help="Repository, OWNER/NAME.")],
    to: Annotated[
        ExportFormat | None, typer.Option(help="As of flowrl export [default: what diffusers or PEFT loads].")
    ] = None,
    exported: Annotated[
        Path | None, typer.Option("--export", help="Send this export of the run instead of making one.")
    ] = None,
    checkpoint: Checkpoint = "best",
    weights: Weights = None,
    public: Annotated[bool, typer.Option("--public", help="Everybody may read it; a new one is private else.")] = False,
    update: Annotated[bool, typer.Option("--update", help="Commit over the files of a repository.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Write RUN/push and show what would be sent; send nothing.")
    ] = False,
) -> None:
    """Export a run to the Hugging Face hub, with a model card. Example: `flowrl push runs/quickstart me/shapes`"""
    if exported is not None and (to is not None or weights is not None or checkpoint != "best"):
        raise UserError("--export: its format, checkpoint and weights are what they are; leave the other option out")
    from flowrl.runtime.display import Display

    with Display() as display:
        display.stage("starting", log=False)
        from flowrl.commands.push import PushOptions
        from flowrl.commands.push import push as send

        options = PushOptions(to and to.value, exported, checkpoint, weights, public, update, dry_run)
        done = send(run, hub_id, options, display)
    if done.address is not None:
        say(f"{done.address} ({'private' if done.private else 'public'}), {len(done.files)} files")
        return
    print_table(["file", "bytes"], [[name, f"{size:,}"] for name, size in done.files])
    kind = "private" if done.private else "public"
    say(f"nothing was sent; in {done.folder} is what would go to {hub_id} (a new repository is {kind})")
