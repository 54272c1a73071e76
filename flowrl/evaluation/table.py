"""The result of an evaluation as a table for the terminal."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flowrl.errors import counted, printable

SIZES = ("tokens", "characters")
"""Measures that every suite has of completions."""
VARIANTS = ("base", "tuned", "model", "images")
"""Arms of ``results.json``, in the order of their columns."""


def show(results: Mapping[str, Any], console: Console | None = None) -> None:
    """Print one table per suite: base and tuned side by side with their 95 % intervals, and the paired difference.

    A suite at several decodings is one table with a line for each.
    """
    console = Console() if console is None else console
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for suite in results["suites"].values():
        groups.setdefault(suite["title"] if suite.get("independent") else suite["suite"], []).append(suite)
    for name, suites in groups.items():
        first = suites[0]
        count = f"{counted(first['samples_per_prompt'], first['medium'])} each"
        title = f"{first['title']}: {counted(first['prompts'], 'prompts')}, {count}"
        if len(suites) > 1:
            title = f"{name}: {first['primary']} of {counted(first['prompts'], 'prompts')} by decoding"
        console.print(Text(printable(title), style="bold"))
        console.print(suite_table(first) if len(suites) == 1 else grid_table(suites))
        for suite in suites:
            if "agreement" in suite:
                console.print(Text("Agreement with the official tool, in images", style="bold"))
                console.print(agreement_table(suite["agreement"]))
        for note in dict.fromkeys(note for suite in suites for note in notes(suite)):
            console.print(Text(printable(note), style="dim"))


def grid_table(suites: Sequence[Mapping[str, Any]]) -> Table:
    """Rows are decodings, columns the overall of each variant and the difference."""
    table, variants = _table(suites[0])
    for suite in suites:
        path = (suite["primary"], "samples" if suite["missing_tags"] else "overall")
        table.add_row(Text(suite["decoding"].replace(",", " ")), *_cells(suite, variants, path))
    return table


def suite_table(suite: Mapping[str, Any]) -> Table:
    """Rows are tags, overall and further measures; columns are variants and the difference."""
    table, variants = _table(suite)
    for label, _, path, last in rows(suite):
        table.add_row(Text(printable(label)), *_cells(suite, variants, path), end_section=last)
    return table


def agreement_table(found: Mapping[str, Any]) -> Table:
    """Rows are tags and overall; columns how many images both judges, one of them or none calls right."""
    table = Table(header_style="bold", box=SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    table.add_column("", overflow="fold")
    for name in ("both right", "ours alone", "official alone", "neither", "agree", "kappa"):
        table.add_column(name, justify="right", no_wrap=True)
    tags = found["tags"] if len(found["tags"]) > 1 else {}
    for label, row in (*tags.items(), ("overall", found["overall"])):
        counts = [str(row[key]) for key in ("both", "ours", "theirs", "neither")]
        shares = ["-" if row[key] is None else f"{row[key]:.3f}" for key in ("agree", "kappa")]
        table.add_row(Text(printable(label)), *counts, *shares)
    return table


def _table(suite: Mapping[str, Any]) -> tuple[Table, list[str]]:
    """An empty table and its variants. Where it is narrow, labels wrap; numbers are never cut."""
    variants = [name for name in VARIANTS if name in suite["arms"]]
    table = Table(header_style="bold", box=SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    table.add_column("", overflow="fold")
    for name in [*variants, *(["difference"] if suite["difference"] else [])]:
        table.add_column(name, justify="right", no_wrap=True)
    return table, variants


def _cells(suite: Mapping[str, Any], variants: Sequence[str], path: tuple[str, ...]) -> list[Text]:
    places = decimals(path)
    cells = [format_estimate(nested(suite["arms"][name]["measures"], path), places=places) for name in variants]
    if suite["difference"]:
        cells.append(format_estimate(nested(suite["difference"], path), signed=True, places=places))
    return [Text(cell.replace(", ", ",")) for cell in cells]


def rows(suite: Mapping[str, Any]) -> Iterator[tuple[str, int, tuple[str, ...], bool]]:
    """``(label, prompts, path into measures, last of its block)`` of every line of a suite's table."""
    primary, tags = suite["primary"], list(suite["tags"])
    if len(tags) > 1:
        for tag in tags:
            yield tag, suite["tags"][tag]["prompts"], (primary, "tags", tag), tag == tags[-1]
    yield "partial overall" if suite["partial"] else "overall", suite["prompts"], (primary, "overall"), False
    variants, most = list(suite["arms"].values()), suite["samples_per_prompt"]
    headline = variants[0]["measures"][primary]
    if suite["medium"] == "completions":
        for attempts in headline.get("pass_at", {}) if most > 1 and not suite.get("independent") else ():
            yield f"pass@{attempts}", suite["prompts"], (primary, "pass_at", attempts), False
    elif any("any_of_n" in each["measures"][primary] for each in variants):
        yield "images", suite["prompts"], (primary, "samples"), False
        if most > 1:
            yield f"any of {most}", suite["prompts"], (primary, "any_of_n"), False
    for measure in variants[0]["measures"]:
        if measure != primary:
            yield measure.replace("_", " "), suite["prompts"], (measure, "samples"), False  # to wrap between words


def notes(suite: Mapping[str, Any]) -> list[str]:
    """What a reader must know beside the numbers."""
    out = []
    if suite["missing_tags"]:
        out.append(f"No overall: no prompts of {', '.join(suite['missing_tags'])}; raise the limit.")
    elif suite["partial"]:
        out.append(f"Partial: {suite['prompts']} of {suite['prompts_available']} prompts.")
    if suite.get("departures"):
        out.append(f"Not as the benchmark's protocol says: {'; '.join(suite['departures'])}.")
    out += _distances(suite["distances"]) if "distances" in suite else []
    out += _self_test(suite.get("self_test"))
    unscored = {name: each["unscored"] for name, each in suite["arms"].items() if each["unscored"]}
    out += [
        f"{count} {suite['medium']} of {name} have no {suite['primary']}, and its mean leaves them out."
        for name, count in unscored.items()
    ]
    if suite.get("independent"):
        shares = {name: each["measures"][suite["primary"]].get("wilson") for name, each in suite["arms"].items()}
        told = [f"{name} {share[0]:.3f} to {share[1]:.3f}" for name, share in shares.items() if share]
        out += [f"Wilson's interval of {suite['primary']}, of independent samples: {', '.join(told)}."] if told else []
    alone = suite["medium"] == "completions" and suite["samples_per_prompt"] == 1
    if alone and suite["sampling"].get("temperature") == 0:
        out.append("Greedy decoding: one completion per prompt, as further ones would be equal.")
    return out


def _distances(found: Mapping[str, Any]) -> list[str]:
    """A line for every two sets of pictures that were compared."""
    out = []
    for row in found["between"]:
        numbers = [
            f"{label} {'-' if row[key] is None else format(row[key], '.4g')}"
            for key, label in (("frechet", "Fréchet"), ("cmmd", "CMMD"), ("cmmd_unbiased", "unbiased"))
        ]
        counts = " and ".join(map(str, row["pictures"]))
        out.append(f"Distance of {row['of']} from {row['from']} ({counts} pictures): {', '.join(numbers)}.")
    return [*out, f"Diversity and distances are of the features of {found['features']}."]


def _self_test(test: Mapping[str, Any] | None) -> list[str]:
    """A line for all checks of what judges; of a test that was asked for, a line for each."""
    if test is None:
        return []
    words = {True: "passed", None: "undecided"}
    if test["afresh"]:
        return [f"Self-test, {check['name']}: {words[check['passed']]}; {check['found']}." for check in test["checks"]]
    open_ones = [check["name"] for check in test["checks"] if check["passed"] is None]
    rest = f"; undecided: {', '.join(open_ones)}" if open_ones else ""
    return [f"What judges has passed its self-test ({counted(len(test['checks']), 'checks')}{rest})."]


def nested(values: Mapping[str, Any], path: tuple[str, ...]) -> Mapping[str, Any] | None:
    """``values[a][b]...``, or None where the path ends early."""
    found: Any = values
    for key in path:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def decimals(path: tuple[str, ...]) -> int:
    """Decimals of a measure: sizes of completions are large numbers of whole things."""
    return 1 if path[0] in SIZES else 3


def format_estimate(estimate: Mapping[str, Any] | None, signed: bool = False, places: int = 3) -> str:
    """``0.412 [.380, .444]``; a dash where there is no value."""
    if estimate is None or estimate["value"] is None:
        return "-"
    sign = "+" if signed else ""
    if estimate["low"] is None:
        return f"{estimate['value']:{sign}.{places}f}"
    low, high = (re.sub(r"\b0\.", ".", f"{estimate[end]:{sign}.{places}f}") for end in ("low", "high"))
    return f"{estimate['value']:{sign}.{places}f} [{low}, {high}]"
