"""``flowrl reproduce``: does a recipe still show its committed curve?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flowrl.cli.options import ConfigFile, Overrides
from flowrl.cli.printing import print_table, say
from flowrl.errors import UserError

if TYPE_CHECKING:
    from flowrl.config import Config
    from flowrl.recipes.curve import Place


def reproduce(
    config: ConfigFile,
    overrides: Overrides = None,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Stop at the first iteration at which learning shows in the band.")
    ] = False,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the run [default: the config's].")] = None,
    record: Annotated[
        str | None, typer.Option(metavar="SEEDS", help="Run these seeds, as in 0,1,2, and commit their band instead.")
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="With --record: the curve [default: as committed, else held-out reward].")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Run directory; with --record a folder of runs, finished ones are kept.")
    ] = None,
) -> int:
    """Run a recipe and compare its curve with the committed band. Exit code 0: inside, 1: outside, 2: bad input.

    Example: `flowrl reproduce configs/quickstart.yaml --smoke`
    """
    from flowrl.commands import reproduce as command
    from flowrl.recipes.curve import Place
    from flowrl.train import train

    if record is not None:
        if smoke or seed is not None or overrides:
            raise UserError("--record runs the recipe as it stands: leave out --smoke, --seed and key=value")
        seeds = _numbers(record)
        curve = command.record(config, seeds, metric, out, lambda run, until: train(run, resume="auto", until=until))
        _show([Place(name, point, point.mean) for name, found in curve.points.items() for point in found], judged=False)
        say(f"committed: {curve.metric} ends at {curve.expected[-1].mean:.4g}")
        return 0
    if metric is not None:
        raise UserError(f"--metric {metric} is for --record; a curve is compared by the metric that it has")

    def run(planned: Config, until: int | None) -> Path:
        return train(planned, until=until)

    verdict = command.reproduce(config, overrides or [], seed, smoke, out, run)
    _show(verdict.places, judged=True)
    say(verdict.sentence)
    say(f"{verdict.run}  (open report.html in it)")
    return 0 if verdict.inside else 1


def _numbers(text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise UserError(f"--record {text}: give seeds, as in 0,1,2") from None


def _show(places: Sequence[Place], *, judged: bool) -> None:
    """The band, and what a run has at each of its points."""
    rows = []
    for place in places:
        point, off = place.point, place.outside
        row = [place.metric, str(point.step), f"{point.mean:.4f}", f"{point.low:.4f} to {point.high:.4f}"]
        rows.append([*row, f"{place.value:.4f}", f"{off:+.4f}" if off else "inside"] if judged else row)
    print_table(["metric", "iteration", "expected", "band", *(["found", ""] if judged else [])], rows)
