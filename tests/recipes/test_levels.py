"""Every recipe's level is stated and borne out, every committed curve belongs to its recipe, and the page says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from flowrl.recipes import curve
from flowrl.recipes.level import level_of
from tests.recipes import CONFIGS, EVERY_CONFIG, PAGE, proven_level, render, title

CURVES = sorted(CONFIGS.rglob(f"{curve.FOLDER}/*.json"))


@pytest.mark.parametrize("recipe", EVERY_CONFIG, ids=title)
def test_a_recipe_has_the_level_that_it_states(recipe: Path) -> None:
    assert level_of(recipe) == proven_level(recipe)


@pytest.mark.parametrize("file", CURVES, ids=lambda path: path.stem)
def test_a_committed_curve_is_of_its_recipe_and_rises(file: Path) -> None:
    found = curve.read(file.parents[1] / f"{file.stem}.yaml")
    assert len(found.seeds) >= 3 and len(found.seconds) == len(found.seeds)
    for points in found.points.values():
        runs = list(zip(*(point.values for point in points), strict=True))
        assert points == curve.points_of([point.step for point in points], runs)
        assert points[-1].low > points[0].high
    assert found.machine["versions"] and found.memory["host"] > 0


def test_the_page_is_up_to_date() -> None:
    assert (CONFIGS.parent / PAGE).read_text() == render(), "run: python -m tests.recipes"
