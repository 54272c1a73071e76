"""How the command line prints pairs, tables and findings."""

from __future__ import annotations

import sys
from typing import Any

from flowrl.errors import printable


def say(text: object = "") -> None:
    """Print what may hold users' words: escape codes among them become visible, and do nothing."""
    print(printable(str(text)))


def print_pairs(rows: list[tuple[str, Any]]) -> None:
    """Two aligned columns."""
    wide = max(len(label) for label, _ in rows)
    for label, value in rows:
        say(f"{label:<{wide}}  {value}")


def print_table(heads: list[str], rows: list[list[str]]) -> None:
    """A table, as wide as the terminal, or as its content when there is none."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for head in heads:
        table.add_column(head, overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def print_findings(rows: list[tuple[str, str, str]]) -> None:
    """``ok    name  detail`` lines, coloured in a terminal."""
    from rich.console import Console
    from rich.text import Text

    console = Console()
    for name, state, detail in rows:
        mark = Text(f"{state:<5}", style={"ok": "green", "bad": "red", "note": "yellow"}[state])
        console.print(mark + Text(printable(f" {name}: {detail}")), soft_wrap=True)
