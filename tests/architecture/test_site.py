"""The site: mkdocs.yml knows every page, links of all pages lead somewhere, generated pages are whole."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from flowrl.cli import COMMANDS, app
from flowrl.composition import families, preset_names, shipped_parts
from flowrl.config import Config
from flowrl.startup.preflight import check_run
from website import marks

ROOT = Path(__file__).parents[2]
PAGES = [*marks.PAGES, *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").rglob("*.md")))]


@pytest.mark.parametrize("path", PAGES)
def test_links_lead_somewhere(path: str) -> None:
    wrong = [link for link, file in marks.linked((ROOT / path).read_text(), path) if not (ROOT / file).exists()]
    assert not wrong


def test_the_navigation_holds_every_page_of_docs() -> None:
    named = set(re.findall(r"\S+\.md$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    pages = {marks.page_of(path) for path in PAGES if path.startswith("docs/")}
    missing = {page for page in pages if not page.startswith("algorithms/")} - named
    assert not missing, f"say in mkdocs.yml (nav) where {sorted(missing)} belong"


def test_links_move_with_their_pages() -> None:
    text = "[a](docs/b.md#c) [d](configs/x.yaml)\n```\n[e](docs/b.md)\n```\n[f](https://g) [h](#i)\n"
    assert marks.for_site(text, "README.md") == (
        "[a](b.md#c) [d](files/configs/x.yaml.md)\n```\n[e](docs/b.md)\n```\n[f](https://g) [h](#i)\n"
    )
    assert marks.for_site("[a](../../../docs/b.md)", "flowrl/worlds/shapes/README.md") == "[a](../b.md)"


def test_lists_and_tables_begin_after_a_blank_line() -> None:
    assert marks.with_blank_lines("Two:\n- a\n  b\n- c\n\nd\n| e |") == "Two:\n\n- a\n  b\n- c\n\nd\n\n| e |"
    assert marks.with_blank_lines("```\nTwo:\n- a\n```") == "```\nTwo:\n- a\n```"


def test_words_of_a_description_are_no_markup() -> None:
    assert marks.plain("runs/<name>, `a | <b>` | *c*") == r"runs/&lt;name&gt;, `a | <b>` \| \*c\*"


@pytest.mark.slow
def test_generated_pages_hold_everything() -> None:
    """Options as the command line's own help lists them, keys as the config knows them."""
    from flowrl.score import list_rewards
    from website import generated

    pages = generated.pages()
    for name in COMMANDS:
        shown = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "300", "TERM": "dumb"}).stdout
        section = pages["cli.md"].split(f"\n## {name}\n")[1].split("\n## ")[0]
        flags = set(re.findall(r" (--[a-z][a-z-]+)", shown.split("Options")[1])) - {"--help"}
        assert flags <= set(re.findall(r"--[a-z][a-z-]+", section)) and ("`--" in section) == bool(flags), name
    small = {"name": "x", "model": {"path": "shapes"}, "algorithm": "awm", "rewards": ["ocr"]}
    for section, keys in Config.model_validate({**small, "train": {"iterations": 1}}).model_dump().items():
        for key in [section, *(keys if isinstance(keys, dict) else [])]:
            assert f"`{key}`" in pages["config.md"], key
    for reward in list_rewards():
        assert f"\n## {reward.name}\n" in pages["rewards.md"]
    assert "integer &gt; 0" in pages["config.md"] and "runs/&lt;name&gt;" in pages["config.md"]


@pytest.mark.slow
def test_the_pages_of_algorithms_are_up_to_date() -> None:
    from website import catalogue

    made = catalogue.pages()
    kept = {path.name: path.read_text(encoding="utf-8") for path in catalogue.FOLDER.glob("*.md")}
    stale = sorted(name for name in made.keys() | kept.keys() if made.get(name) != kept.get(name))
    assert not stale, f"run: python -m website.catalogue ({', '.join(stale)})"
    assert set(shipped_parts("estimator")) == set(catalogue.GRADIENT)
    assert set(catalogue.SOURCES) <= set(preset_names())


@pytest.mark.slow
def test_the_commands_of_algorithms_are_accepted(tmp_path: Path) -> None:
    """Every command of the pages passes the checks before a model is loaded; data of the user's own stand here."""
    from website import catalogue

    texts = {"prompt": "1..2...3.....4.1=", "label": True, "observed": [[0.0] * 8] * 4, "action": [[0.0] * 2] * 4}
    columns = ("completion", "chosen", "rejected", "image", "preferred", "image_0", "image_1")
    (tmp_path / "pictures").mkdir()
    for number in range(18):
        Image.new("RGB", (16, 16)).save(tmp_path / f"pictures/{number}.png")
        (tmp_path / f"pictures/{number}.txt").write_text("a red circle")
    for name in preset_names():
        for place, family in enumerate(families(name)):
            spec = catalogue.spec(name, family, chosen=bool(place))
            held = str(tmp_path / "pictures/0.png") if family == "diffusion" else "1432412331244231"
            line = json.dumps(texts | dict.fromkeys(columns, held))
            (tmp_path / catalogue.FILE).write_text(f"{line}\n" * 18)
            needs = [
                need.replace(own, str(tmp_path / own))
                for need in catalogue.further(name, family)
                for own in [catalogue.FOLDER_OF_PICTURES if "pictures" in need else catalogue.FILE]
            ]
            overrides = [f"algorithm={spec}", f"out={tmp_path / 'run'}", *needs]
            check_run(Config.load(ROOT / catalogue.QUICKSTARTS[family], overrides))


def build(config: Path, out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(config), "-d", str(out)]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    pytest.importorskip("material")
    done = build(ROOT / "mkdocs.yml", tmp_path / "site")
    assert done.returncode == 0, done.stdout + done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    loads = re.compile(r"<(?:script|img|iframe|link)\b[^>]*\b(?:src|href)=[\"']?(?:https?:)?//")
    assert len(pages) > 60 and not [page for page in pages if loads.search(page.read_text())]


@pytest.mark.slow
def test_a_link_to_nowhere_fails_the_build(tmp_path: Path) -> None:
    pytest.importorskip("material")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/site.css").touch()
    for path in (ROOT / "docs").iterdir():
        if path.is_file():
            (tmp_path / "docs" / path.name).write_bytes(path.read_bytes())
    page = tmp_path / "docs/live_page.md"
    page.write_text(page.read_text() + "\n[a](nowhere.md) [b](recipes.md#nowhere) [c](../configs/nowhere.yaml)\n")
    config = {"INHERIT": str(ROOT / "mkdocs.yml"), "docs_dir": "docs", "hooks": [str(ROOT / "website/hook.py")]}
    (tmp_path / "mkdocs.yml").write_text(yaml.safe_dump({**config, "watch": []}))
    done = build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert done.returncode == 1
    for broken in ("nowhere.md", "recipes.md#nowhere", "configs/nowhere.yaml"):
        assert broken in done.stderr + done.stdout, done.stderr
