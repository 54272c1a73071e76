"""The result of an evaluation as a table for the terminal."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

ARMS = ("base", "tuned", "model", "images")


def show(results: Mapping[str, Any], console: Console | None = None) -> None:
    """Print one table per suite: arms side by side with their 95 % intervals, and the paired difference."""
    console = Console() if console is None else console
    for suite in results["suites"].values():
        title = f"{suite['title']}: {suite['prompts']} prompts, {suite['images_per_prompt']} images each"
        console.print(Text(title, style="bold"))
        console.print(suite_table(suite))
        for note in notes(suite):
            console.print(Text(note, style="dim"))


def suite_table(suite: Mapping[str, Any]) -> Table:
    """Rows are tags, overall and further measures; columns are arms and the difference."""
    arms = [arm for arm in ARMS if arm in suite["arms"]]
    compared = bool(suite["difference"])
    table = Table(header_style="bold", box=SIMPLE_HEAD, show_edge=False, pad_edge=False)  # fits 80 columns
    table.add_column("", no_wrap=True)
    for name in [*arms, *(["difference"] if compared else [])]:
        table.add_column(name, justify="right", no_wrap=True)
    for label, _, path, last in rows(suite):
        cells = [format_estimate(dig(suite["arms"][arm]["measures"], path)) for arm in arms]
        if compared:
            cells.append(format_estimate(dig(suite["difference"], path), signed=True))
        table.add_row(Text(label), *(Text(cell.replace(", ", ",")) for cell in cells), end_section=last)
    return table


def rows(suite: Mapping[str, Any]) -> Iterator[tuple[str, int, tuple[str, ...], bool]]:
    """``(label, prompts, path into measures, last of its block)`` of every line of a suite's table."""
    primary, tags = suite["primary"], list(suite["tags"])
    if len(tags) > 1:
        for tag in tags:
            yield tag, suite["tags"][tag]["prompts"], (primary, "tags", tag), tag == tags[-1]
    yield "partial overall" if suite["partial"] else "overall", suite["prompts"], (primary, "overall"), False
    arms = list(suite["arms"].values())
    if any("any_of_n" in arm["measures"][primary] for arm in arms):
        yield "images", suite["prompts"], (primary, "images"), False
        if suite["images_per_prompt"] > 1:
            yield f"any of {suite['images_per_prompt']}", suite["prompts"], (primary, "any_of_n"), False
    for measure in arms[0]["measures"]:
        if measure != primary:
            yield measure, suite["prompts"], (measure, "images"), False


def notes(suite: Mapping[str, Any]) -> list[str]:
    """What a reader must know beside the numbers."""
    out = []
    if suite["missing_tags"]:
        out.append(f"No overall: no prompts of {', '.join(suite['missing_tags'])}; raise the limit.")
    elif suite["partial"]:
        out.append(f"Partial: {suite['prompts']} of {suite['prompts_available']} prompts.")
    unscored = {name: arm["unscored"] for name, arm in suite["arms"].items() if arm["unscored"]}
    out += [f"{count} images of {name} could not be scored and are left out." for name, count in unscored.items()]
    return out


def dig(values: Mapping[str, Any], path: tuple[str, ...]) -> Mapping[str, Any] | None:
    """``values[a][b]...``, or None where the path ends early."""
    found: Any = values
    for key in path:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def format_estimate(estimate: Mapping[str, Any] | None, signed: bool = False) -> str:
    """``0.412 [.380, .444]``; a dash where there is no value."""
    if estimate is None or estimate["value"] is None:
        return "-"
    sign = "+" if signed else ""
    if estimate["low"] is None:
        return f"{estimate['value']:{sign}.3f}"
    low, high = (re.sub(r"\b0\.", ".", f"{estimate[end]:{sign}.3f}") for end in ("low", "high"))
    return f"{estimate['value']:{sign}.3f} [{low}, {high}]"
