"""Commands that list what there is and try one of them: algorithms, checkpoints, rewards, test-reward."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from flowrl.cli.options import Json
from flowrl.commands.printing import part_pairs, print_findings, print_pairs, print_table
from flowrl.errors import UserError


def algorithms(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]")] = None,
    diff: Annotated[str | None, typer.Option(metavar="OTHER", help="Show only what OTHER does differently.")] = None,
    as_json: Json = False,
) -> None:
    """List algorithms, or show the parts of one. Example: `flowrl algorithms flow_grpo --diff dance_grpo`"""
    from flowrl.commands.listing import algorithm_rows, differences

    if diff is not None:
        if name is None:
            raise UserError("--diff: name two algorithms, as in `flowrl algorithms flow_grpo --diff dance_grpo`")
        lines = differences(name, diff)
        print(json.dumps(lines, indent=1)) if as_json else print_table(["", name, diff], lines)
        return
    rows = algorithm_rows(name)
    if as_json:
        print(json.dumps(rows, indent=1))
    elif name is not None:
        print_pairs([("paper", rows[0]["paper"]), ("summary", rows[0]["summary"]), *part_pairs(rows[0]["parts"])])
    else:
        print_table(["name", "paper", "summary"], [[row["name"], row["paper"], row["summary"]] for row in rows])


def checkpoints(run: Annotated[Path, typer.Argument(metavar="RUN")], as_json: Json = False) -> None:
    """List a run's checkpoints with their scores. Example: `flowrl checkpoints runs/quickstart`"""
    from flowrl.commands.listing import checkpoint_rows

    rows = checkpoint_rows(run)
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    scores = list(dict.fromkeys(name for row in rows for name in row["scores"]))
    cells = [
        [row["name"], row["time"], *(_score(row["scores"].get(name)) for name in scores), ", ".join(row["notes"])]
        for row in rows
    ]
    print_table(["checkpoint", "saved", *scores, ""], cells)


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def rewards(as_json: Json = False) -> None:
    """List the rewards that come with flowrl. Example: `flowrl rewards --json`"""
    from flowrl.score import list_rewards

    found = list_rewards()
    if as_json:
        print(
            json.dumps([{"name": r.name, "kind": r.kind, "range": r.range, "needs": r.needs} for r in found], indent=1)
        )
    else:
        rows = [[r.name, r.kind, r.range, ", ".join(r.needs), r.summary] for r in found]
        print_table(["name", "kind", "range", "needs", "what"], rows)


def test_reward(
    reward: Annotated[str, typer.Argument(metavar="PATH.py:FUNCTION")],
    prompts: Annotated[
        str | None, typer.Option(help="Prompts (and columns) to score with [default: shapes:test or sudoku:test].")
    ] = None,
    count: Annotated[int, typer.Option(min=2, help="Samples to score.")] = 8,
    size: Annotated[int, typer.Option(min=1, help="Side of the test images in pixels.")] = 32,
    text: Annotated[bool, typer.Option("--text", help="Score texts instead of images.")] = False,
    option: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="An option of the reward.")] = None,
) -> None:
    """Check that a reward keeps its promises. Example: `flowrl test-reward my_rewards.py:brightness`"""
    from flowrl.config.reading import apply_overrides
    from flowrl.data import load_prompts
    from flowrl.score.conformance import examine

    every = load_prompts(prompts or ("sudoku:test" if text else "shapes:test")).prompts
    count = min(count, len(every))
    chosen = [every[i * len(every) // count] for i in range(count)]
    findings = examine(reward, chosen, size=size, text=text, options=apply_overrides({}, option or []))
    print_findings([(f.check, "ok" if f.passed else "bad", f.detail) for f in findings])
    failed = [finding.check for finding in findings if not finding.passed]
    if failed:
        raise UserError(f"{reward} fails: {', '.join(failed)}")
