"""docs/architecture.md says what is: its map is whole, its links lead somewhere, its glossary names what exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/architecture.md").read_text()
PLACES = re.findall(r"\]\(\.\./(flowrl/[\w/.]+\.py)\)((?:, `\w+`)*)", PAGE)


def section(title: str) -> str:
    return PAGE.split(f"## {title}\n")[1].split("\n## ")[0]


def rows(title: str) -> list[list[str]]:
    lines = [line for line in section(title).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_map_holds_every_folder_and_module() -> None:
    named = " ".join(row[0] for row in rows("The map"))
    for path in sorted((ROOT / "flowrl").iterdir()):
        if path.is_dir() and (path / "__init__.py").exists():
            assert f"`{path.name}/`" in named, f"the map lacks {path.name}/"
        elif path.suffix == ".py" and not path.stem.startswith("__") and path.stem != "version":
            assert f"`{path.stem}`" in named, f"the map lacks {path.stem}"
    for name in re.findall(r"`(\w+)/?`", named):
        assert any((ROOT / base / name).exists() or (ROOT / base / f"{name}.py").exists() for base in ("flowrl", "."))


@pytest.mark.parametrize(("file", "names"), PLACES, ids=[file for file, _ in PLACES])
def test_an_answer_leads_to_what_it_names(file: str, names: str) -> None:
    text = (ROOT / file).read_text()
    for name in re.findall(r"`(\w+)`", names):
        assert re.search(rf"^\s*(class|def) {name}\b", text, re.MULTILINE), f"{file} does not define {name}"


def test_ten_questions_are_answered_in_one_place() -> None:
    assert len(rows("Where is ...?")) >= 10 and "docs/architecture.md" in (ROOT / "README.md").read_text()


def test_the_glossary_is_short_and_names_what_exists() -> None:
    lines = section("Glossary").splitlines()
    assert len(lines) <= 60
    for word, _, place, _ in rows("Glossary"):
        found = re.findall(r"`([\w./]+)`", place)
        assert found, word
        for name in found:
            assert exists(name), f"{word}: there is no {name}"


def exists(name: str) -> bool:
    """A folder, a module, a class or function in one, a field of a class, or a key of the config."""
    path = ROOT / "flowrl" / name.rstrip("/").replace(".", "/")
    if path.is_dir() or path.with_suffix(".py").exists() or (ROOT / name).is_dir():
        return True
    owner, _, last = name.rpartition(".")
    where = ROOT / "flowrl" / owner.replace(".", "/")
    defined, field = rf"^(class|def) {last}\b", rf"^class {owner}\b(?:.|\n)*?^    (?:def )?{last}\b"
    places = {
        defined: [where.with_suffix(".py"), *where.glob("*.py")],
        field: (ROOT / "flowrl").rglob("*.py") if owner[:1].isupper() else [],
        rf"^    {last}: ": [ROOT / "flowrl/config/schema.py"],
    }
    return any(f.exists() and re.search(p, f.read_text(), re.MULTILINE) for p, files in places.items() for f in files)
