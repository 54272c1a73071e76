"""``flowrl compare``: several configs, several seeds each, in one table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flowrl.cli.completion import config_files
from flowrl.cli.printing import print_table


def compare(
    configs: Annotated[
        list[Path], typer.Argument(metavar="A.yaml B.yaml... [key=value]...", autocompletion=config_files)
    ],
    seeds: Annotated[int, typer.Option(min=1, help="Runs per config, with train.seed 0, 1, ...")] = 3,
    out: Annotated[Path, typer.Option(help="Folder for the runs; finished ones are not trained again.")] = Path(
        "runs/compare"
    ),
) -> None:
    """Train configs with several seeds each. Example: `flowrl compare a.yaml b.yaml --seeds 3 train.iterations=20`"""
    from flowrl.commands.compare import compare as run
    from flowrl.commands.compare import mean_and_error
    from flowrl.train import train

    files = [path for path in configs if "=" not in path.name]
    changes = [str(path) for path in configs if path not in files]
    results = run(files, changes, seeds, out, lambda config: train(config, resume="auto"))
    rows = []
    for result in results:
        end, gain = mean_and_error(result.end), mean_and_error(result.gain)
        minutes = sum(result.seconds) / len(result.seconds) / 60
        cells = [f"{mean:.4f} ± {error:.4f}" for mean, error in (end, gain)]
        rows.append([result.name, *cells, f"{result.samples:,.0f}", f"{minutes:.1f}"])
    print_table(["name", "evaluation (± s.e.)", "gain (± s.e.)", "samples", "minutes"], rows)
