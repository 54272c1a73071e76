"""Markdown as GitHub reads it, made ready for Python-Markdown, and links into the repository made links of the site."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterable
from pathlib import Path

FENCE = re.compile(r"^ {0,3}(```|~~~)")
LINK = re.compile(r"(\]\()([^)\s]+)(\))")
BLOCK = re.compile(r"^(?:[-*] |\d+\. |\|)")
"""How a list or a table begins."""
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmarks.md",
    "examples/README.md": "examples.md",
    "flowrl/worlds/shapes/README.md": "worlds/shapes.md",
    "flowrl/worlds/scenes/README.md": "worlds/scenes.md",
    "flowrl/worlds/sudoku/README.md": "worlds/sudoku.md",
}
"""Pages that are not in ``docs``, with their places in the site."""
FILES = "files/"
"""Where the site keeps the repository's other files that pages link to."""


def page_of(path: str) -> str:
    """The page of the site that shows a file of the repository."""
    if path in PAGES:
        return PAGES[path]
    return path.removeprefix("docs/") if path.startswith("docs/") else f"{FILES}{path}.md"


def linked(text: str, path: str) -> list[tuple[str, str]]:
    """``(link as written, file of the repository)`` of every relative link of the page ``path``."""
    found = (match.group(2) for part in _prose(text) for match in LINK.finditer(part))
    return [(link, resolved(link, path)) for link in found if _is_local(link)]


def resolved(link: str, path: str) -> str:
    """The file of the repository that ``link`` on the page ``path`` leads to."""
    target = link.partition("#")[0]
    return posixpath.normpath(posixpath.join(posixpath.dirname(path), target)) if target else path


def for_site(text: str, path: str) -> str:
    """The page ``path`` of the repository as the site's."""
    here = posixpath.dirname(page_of(path))

    def moved(match: re.Match[str]) -> str:
        link, anchor = match.group(2), match.group(2).partition("#")[1:]
        if not _is_local(link) or link.startswith("#"):
            return match.group()
        return f"{match[1]}{posixpath.relpath(page_of(resolved(link, path)), here or '.')}{''.join(anchor)}{match[3]}"

    return with_blank_lines(_outside_code(text, lambda line: LINK.sub(moved, line)))


def with_blank_lines(text: str) -> str:
    """Lists and tables that follow a paragraph at once are set off from it: Python-Markdown would join them."""
    lines: list[str] = []
    fenced = inside = False
    for line in text.split("\n"):
        begins = bool(BLOCK.match(line))
        if not fenced and begins and not inside and lines and lines[-1].strip():
            lines.append("")
        fenced ^= bool(FENCE.match(line))
        inside = not fenced and (begins or (inside and bool(line.strip())))
        lines.append(line)
    return "\n".join(lines)


def as_page(path: str, text: str) -> str:
    """A file that is not Markdown, as a page, which the site's search passes over."""
    name = {".py": "python", ".yaml": "yaml", ".toml": "toml"}.get(Path(path).suffix, "text")
    return f"---\nsearch: {{exclude: true}}\n---\n# {path}\n\n````{name}\n{text.rstrip()}\n````\n"


def table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table; cells are Markdown on one line."""
    lines = [list(heads), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(cell.replace(chr(10), ' ') for cell in line)} |" for line in lines) + "\n"


def plain(text: str) -> str:
    """Words that are not meant as Markdown, but for code between backticks."""
    parts = re.split(r"(`+[^`]+`+)", text)
    return "".join(part if i % 2 else _escaped(part) for i, part in enumerate(parts))


def code(text: str) -> str:
    """A literal value inside a table."""
    return f"`{text}`" if text else ""


def _escaped(text: str) -> str:
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([*|\[\]])", r"\\\1", text)


def _is_local(link: str) -> bool:
    return not re.match(r"[a-z]+:", link)


def _prose(text: str) -> list[str]:
    lines: list[str] = []
    _outside_code(text, lambda line: lines.append(line) or line)
    return lines


def _outside_code(text: str, change: Callable[[str], str]) -> str:
    """``change`` every line that is not in a fenced block."""
    lines, fenced = [], False
    for line in text.split("\n"):
        fence = bool(FENCE.match(line))
        lines.append(line if fenced or fence else change(line))
        fenced ^= fence
    return "\n".join(lines)
