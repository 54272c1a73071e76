"""``flowrl rewards`` and ``flowrl test-reward``: which rewards there are, and whether one keeps its promises."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from flowrl.cli.options import Json
from flowrl.cli.printing import print_findings, print_table
from flowrl.errors import UserError


def rewards(as_json: Json = False) -> None:
    """List the rewards that come with flowrl. Example: `flowrl rewards --json`"""
    from flowrl.score import list_rewards

    found = list_rewards()
    if as_json:
        keys = ("name", "kind", "range", "needs", "differentiable")
        print(json.dumps([{key: getattr(r, key) for key in keys} for r in found], indent=1))
    else:
        marks = {True: "yes", False: ""}
        rows = [[r.name, r.kind, r.range, marks[r.differentiable], ", ".join(r.needs), r.summary] for r in found]
        print_table(["name", "kind", "range", "gradient", "needs", "what"], rows)


def test_reward(
    reward: Annotated[str, typer.Argument(metavar="PATH.py:FUNCTION")],
    prompts: Annotated[
        str | None, typer.Option(help="Prompts (and columns) to score with [default: shapes:test or sudoku:test].")
    ] = None,
    count: Annotated[int, typer.Option(min=2, max=4096, help="Samples to score.")] = 8,
    size: Annotated[int, typer.Option(min=1, max=8192, help="Side of the test images in pixels.")] = 32,
    text: Annotated[bool, typer.Option("--text", help="Score texts instead of images.")] = False,
    frames: Annotated[int, typer.Option(min=0, max=1024, help="Score videos of so many frames; 0 = images.")] = 0,
    option: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="An option of the reward.")] = None,
) -> None:
    """Check that a reward keeps its promises. Example: `flowrl test-reward my_rewards.py:brightness`"""
    from flowrl.config.overrides import apply_overrides
    from flowrl.data import load_prompts
    from flowrl.score.conformance import run_checks

    if text and frames:
        raise UserError(f"--frames {frames} is of videos, and --text gives the reward texts; remove one")
    every = load_prompts(prompts or ("sudoku:test" if text else "shapes:test")).prompts
    count = min(count, len(every))
    chosen = [every[i * len(every) // count] for i in range(count)]
    given = apply_overrides({}, option or [])
    findings = run_checks(reward, chosen, size=size, text=text, frames=frames, options=given)
    print_findings([(f.check, "ok" if f.passed else "bad", f.detail) for f in findings])
    failed = [finding.check for finding in findings if not finding.passed]
    if failed:
        raise UserError(f"{reward} fails: {', '.join(failed)}")
