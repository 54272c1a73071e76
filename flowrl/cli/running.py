"""Commands about training: train, config, doctor, compare."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from flowrl.cli.options import ConfigFile, Overrides
from flowrl.commands.printing import part_pairs, print_findings, print_pairs, print_table, say


def train(
    config: ConfigFile,
    overrides: Overrides = None,
    resume: Annotated[str | None, typer.Option(help="auto, a run, or a checkpoint to go on from.")] = None,
    allow_changed: Annotated[
        bool, typer.Option("--allow-changed", help="Resume although prompts, rewards, model or libraries changed.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check and show the plan; load and train nothing.")
    ] = False,
) -> None:
    """Train. Example: `flowrl train configs/quickstart.yaml train.iterations=50`"""
    from flowrl.runtime.display import Display  # rich alone: it shows something while the rest is imported

    with Display() as shown:
        shown.stage("starting", log=False)  # a mistake is one sentence in a log
        from flowrl.config import Config
        from flowrl.startup.preflight import check

        plan = check(Config.load(config, overrides or []))
        directory, lines = plan.config.directory, []
        if not dry_run:
            import faulthandler

            from flowrl.train import train as run

            with suppress(OSError):  # an error stream without a file, as in a test or a notebook
                faulthandler.enable()  # a crash in compiled code, such as a reward's, shows whose line it was
            run(plan.config, resume=resume, allow_changed=allow_changed, display=shown)
        else:
            from flowrl.commands.listing import parts_of
            from flowrl.models.planned import planned_adapter

            options = plan.config.model.arguments(plan.algorithm.family).get("lora")
            adapter = planned_adapter(plan.config.model.path, plan.algorithm.family, options)
            facts = {"run": plan.config.name, "directory": str(directory), "config": str(config)}
            lines = [*facts.items(), *plan.geometry.lines(), *([("trained", adapter)] if adapter else [])]
            lines += part_pairs(parts_of(plan.algorithm))
    if dry_run:
        print_pairs(lines)
    else:
        say(f"{directory}  (report: {directory / 'report.html'})")


def show_config(
    config: ConfigFile,
    overrides: Overrides = None,
    as_yaml: Annotated[bool, typer.Option("--yaml", help="Print the resolved config as YAML.")] = False,
) -> None:
    """Show every key with its value and meaning. Example: `flowrl config configs/quickstart.yaml --yaml`"""
    from flowrl.config import Config
    from flowrl.startup.preflight import check

    loaded = Config.load(config, overrides or [])
    loaded = check(loaded).config
    if as_yaml:
        say(loaded.to_yaml().rstrip("\n"))
        return
    from flowrl.commands.explaining import algorithm_lines
    from flowrl.config.explain import explain, explained

    options = algorithm_lines(loaded.algorithm)
    if sys.stdout.isatty():
        rows = [[line.key, line.value, line.origin, line.meaning] for line in explained(loaded, options)]
        print_table(["key", "value", "from", "meaning"], rows)
    else:
        say(explain(loaded, options))


def doctor(
    config: Annotated[
        Path | None, typer.Argument(metavar="[CONFIG]", help="Also try this run's model and rewards.")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Check the machine, and a config on it. Example: `flowrl doctor configs/quickstart.yaml`"""
    from flowrl.commands.doctor import check_config, check_machine
    from flowrl.config import Config

    loaded = Config.load(config, overrides or []) if config else None
    findings = check_machine(loaded.directory if loaded else Path("runs"))
    print_findings([(s.name, s.state, s.detail) for s in findings])
    bad = any(finding.state == "bad" for finding in findings)
    for finding in check_config(loaded) if loaded else ():
        print_findings([(finding.name, finding.state, finding.detail)])
        bad |= finding.state == "bad"
    if bad:
        raise typer.Exit(2)


def compare(
    configs: Annotated[list[Path], typer.Argument(metavar="A.yaml B.yaml... [key=value]...")],
    seeds: Annotated[int, typer.Option(min=1, help="Runs per config, with train.seed 0, 1, ...")] = 3,
    out: Annotated[Path, typer.Option(help="Folder for the runs; finished ones are not trained again.")] = Path(
        "runs/compare"
    ),
) -> None:
    """Train configs with several seeds each. Example: `flowrl compare a.yaml b.yaml --seeds 3 train.iterations=20`"""
    from flowrl.commands.comparing import compare as run
    from flowrl.commands.comparing import mean_and_error
    from flowrl.train import train

    files = [path for path in configs if "=" not in path.name]
    changes = [str(path) for path in configs if path not in files]
    outcomes = run(files, changes, seeds, out, lambda config: train(config, resume="auto"))
    rows = []
    for outcome in outcomes:
        end, gain = mean_and_error(outcome.end), mean_and_error(outcome.gain)
        minutes = sum(outcome.seconds) / len(outcome.seconds) / 60
        cells = [f"{mean:.4f} ± {error:.4f}" for mean, error in (end, gain)]
        rows.append([outcome.name, *cells, f"{outcome.samples:,.0f}", f"{minutes:.1f}"])
    print_table(["name", "evaluation (± s.e.)", "gain (± s.e.)", "samples", "minutes"], rows)
