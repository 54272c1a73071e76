"""What mkdocs calls: it adds the pages that are not in ``docs``, and rewrites links to the repository's files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # mkdocs loads this file by its path

from website import generated, marks  # noqa: E402

FIRST = "---\nsearch: {boost: 4}\n---\n"
"""Of pages that a search for a key or a command should name first."""


def on_files(files: Files, config: Any) -> Files:
    """Pages of the repository, pages made from the code, and every file that one of them links to."""
    shown = {path: _read(path) for path in marks.PAGES}
    shown |= {f"docs/{file.src_uri}": file.content_string for file in files.documentation_pages()}
    made = {marks.page_of(path): marks.for_site(text, path) for path, text in shown.items()}
    wanted = {file for path, text in shown.items() for _, file in marks.linked(text, path)}
    for place, text in generated.pages().items():
        made[place] = (FIRST if "/" not in place else "") + marks.with_blank_lines(text)
        links = (file for _, file in marks.linked(text, place) if file.startswith(marks.FILES))
        wanted |= {file.removeprefix(marks.FILES).removesuffix(".md") for file in links}
    for path in sorted(wanted):
        place = marks.page_of(path)
        if place.startswith(marks.FILES) and (ROOT / path).is_file():
            made[place] = marks.as_page(path, _read(path))
    for place, text in made.items():
        if (old := files.get_file_from_path(place)) is not None:
            files.remove(old)
        files.append(File.generated(config, place, content=text))
    return files


def _read(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")
