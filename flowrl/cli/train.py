"""``flowrl train``: run a config, or show what it would do."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flowrl.cli.completion import resumable
from flowrl.cli.options import ConfigFile, Overrides
from flowrl.cli.printing import print_pairs, say
from flowrl.launcher import is_first

if TYPE_CHECKING:
    from flowrl.config.stages import Stage
    from flowrl.startup.preflight import CheckedRun


def train(
    config: ConfigFile,
    overrides: Overrides = None,
    resume: Annotated[
        str | None, typer.Option(help="auto, a run, or a checkpoint to go on from.", autocompletion=resumable)
    ] = None,
    allow_changed: Annotated[
        bool, typer.Option("--allow-changed", help="Resume although prompts, rewards, model or libraries changed.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check and show the plan; load and train nothing.")
    ] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Show the run on a local page meanwhile.")] = False,
) -> None:
    """Train. Example: `flowrl train configs/quickstart.yaml train.iterations=50`"""
    from flowrl.runtime.display import Display  # rich alone: it shows something while the rest is imported

    with Display(silent=not is_first()) as display:
        display.stage("starting", log=False)  # a mistake is one sentence in a log
        from flowrl.runtime.launch import joined

        with joined() as job:
            with job.in_turn():
                stages, plans = _checked(config, overrides or [])
            lines = []
            if dry_run:
                from flowrl.commands.train import planned

                lines = [planned(plan, config) for plan in plans]
            else:
                import faulthandler

                with suppress(OSError):  # an error stream without a file, as in a test or a notebook
                    faulthandler.enable()  # a crash in compiled code, such as a reward's, shows whose line it was
                if stages is None:
                    from flowrl.report.watching import beside
                    from flowrl.train import train as run

                    directory = plans[0].config.directory
                    page = beside(directory, display.note) if watch and job.rank == 0 else nullcontext()
                    with page:
                        run(plans[0].config, resume=resume, allow_changed=allow_changed, display=display)
    for pairs in lines:
        print_pairs(pairs)
    if stages is not None and not dry_run:
        _train_stages(stages, resume, allow_changed, watch)
    if not dry_run and job.rank == 0:
        for plan in plans:
            say(f"{plan.config.directory}  (open report.html in it)")


def _checked(config: Path, overrides: list[str]) -> tuple[list[Stage] | None, list[CheckedRun]]:
    """The stages of the config, if it has some, and the run of each, or its own."""
    from flowrl.commands.stages import check_stages
    from flowrl.config import Config
    from flowrl.config.stages import load_stages
    from flowrl.startup.preflight import check_run

    stages = load_stages(config, overrides)
    return stages, [check_run(Config.load(config, overrides))] if stages is None else check_stages(stages)


def _train_stages(stages: list[Stage], resume: str | None, allow_changed: bool, watch: bool) -> None:
    from flowrl.commands.stages import train_stages
    from flowrl.report.watching import beside

    def page(run: Path) -> AbstractContextManager[object]:
        return beside(run, say) if watch else nullcontext()

    train_stages(stages, resume=resume, allow_changed=allow_changed, say=say, beside=page)
