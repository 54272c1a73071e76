"""The pages of `docs/evidence`: their numbers are those of their data, and the statistics are right."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks.evidence import control, draws, page
from benchmarks.evidence.page import BEGIN, END, curves_of, interval, measured, reach
from benchmarks.evidence.runs import DATA, ROOT, Page, curve, read
from flowrl.config import Config

FOLDER = Path(page.__file__).parent
PAGES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
OWN = {module.NAME: module for module in (control, draws)}
"""Pages with tables of their own."""
MEASURED = sorted(path.stem for path in DATA.glob("*.json"))
TEXTS = sorted(DATA.parent.glob("*.md"))


def test_a_page_for_all_data_and_data_for_all_pages() -> None:
    assert MEASURED
    assert {*PAGES, *OWN} == set(MEASURED) == {path.stem for path in TEXTS} - {"README"}
    index = (DATA.parent / "README.md").read_text()
    assert set(re.findall(r"\]\((\w+)\.md\)", index)) == set(MEASURED)


@pytest.mark.parametrize("name", MEASURED)
def test_a_page_shows_its_data(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (DATA.parent / f"{name}.md").read_text()
    block = text.split(BEGIN)[1].split(END)[0].strip()
    made: list[str] = []
    for module in (page, *OWN.values()):
        monkeypatch.setattr(module, "put", lambda name, title, block: made.append(block))
    monkeypatch.setattr(page, "draw", lambda *_: None)
    OWN[name].write_page() if name in OWN else page.write_page(name)
    assert made == [block], "run python -m benchmarks.evidence write"
    said = text.replace(block, "")
    assert len(said.split()) > 80, "a page says what the claim was, what was found and why"


@pytest.mark.parametrize("name", MEASURED)
def test_the_seeds_of_a_page_behind_every_number(name: str) -> None:
    data = read(name)
    runs = OWN[name].runs_of(data) if name in OWN else [arm["runs"] for arm in data["arms"].values()]
    least = OWN[name].SEEDS if name in OWN else Page.load(name).seeds
    assert least >= 3 and all(len(found) >= least for found in runs)
    if name not in OWN:
        assert set(data["arms"]) == set(Page.load(name).arms)
        assert (DATA / f"{name}.svg").is_file()


@pytest.mark.parametrize("name", PAGES)
def test_the_arms_of_a_page_are_configs(name: str) -> None:
    found = Page.load(name)
    for overrides in found.arms.values():
        Config.load(ROOT / found.config, [*found.shared, *overrides])
    assert {arm for pair in found.pairs for arm in pair} <= set(found.arms)
    assert set(found.borrows) | set(found.borrows.values()) <= set(found.arms)


def test_the_interval_is_students() -> None:
    # mean 2, standard deviation 1, three numbers: 4.303 / sqrt(3)
    assert interval([1.0, 2.0, 3.0]) == "+2.000 [-0.484, +4.484]"


def test_the_first_evaluation_at_the_mark_counts() -> None:
    points = [[0.1, 0, 0, 0.0], [0.7, 10, 20, 3.0], [0.6, 20, 40, 6.0], [0.9, 30, 60, 9.0]]
    assert reach(points, 0.7) == points[1]
    assert reach(points, 0.95) is None


def test_curves_hold_scores_and_what_they_cost(tmp_path: Path) -> None:
    lines = [
        {"step": 0, "samples": 0, "network/forwards": 0, "eval/strict/mean": 0.25, "time/sample": 9.0},
        {"step": 1, "samples": 8, "network/forwards": 30, "time/sample": 1.0, "time/update": 2.0, "time/eval": 50.0},
        {"step": 2, "samples": 16, "network/forwards": 60, "time/sample": 1.5, "eval/strict/mean": 0.5},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert curve(tmp_path, "eval/strict/mean") == [[0.25, 0, 0, 0.0], [0.5, 16, 60, 4.5]]


def test_a_run_that_ended_early_scores_nothing_from_there_on() -> None:
    given = Page("p", "P", "c.yaml", 2, {"a": [], "b": []}, [("a", "b")], 0.5)
    points = [[0.2, 0, 0, 0.0], [0.5, 8, 80, 1.0], [0.6, 16, 160, 2.0]]
    kept: dict[str, Any] = {"commit": "abc", "processor": "cpu", "whole": True, "torch": "2"}
    kept |= {"diffusers": "1", "transformers": "1", "peft": "1"}
    data = {
        "arms": {
            "a": {"overrides": [], "runs": {"0": kept | {"points": points}}},
            "b": {"overrides": [], "runs": {"0": kept | {"points": points[:2], "whole": False}}},
        }
    }
    curves = curves_of(given, data)
    assert curves["b"]["0"] == [*points[:2], [0.0, 8, 80, 1.0]]
    assert "| `a` | `b` | +0.300 | +0.600 | 1.0 [1.0, 1.0], 1 seeds |" in measured(given, data)
