"""The page says what the tests say."""

from __future__ import annotations

from pathlib import Path

import pytest

from flowrl import composition
from tests import fidelity

ROOT = Path(__file__).parents[2]


def test_the_page_is_up_to_date() -> None:
    assert (ROOT / fidelity.PAGE).read_text() == fidelity.render(), "run: python -m tests.fidelity"


def test_every_statement_is_about_a_preset_and_names_its_release() -> None:
    fidelity.collect()
    assert {c.preset for c in fidelity.CELLS} == set(fidelity.RELEASES) <= set(composition.preset_names())


TEXT = [name for name in composition.preset_names() if composition.build(name).family != "diffusion"]


@pytest.mark.parametrize("name", TEXT)
def test_every_language_preset_is_compared(name: str) -> None:
    fidelity.collect()
    compared = {c.column for c in fidelity.CELLS if c.preset == name}
    assert {"loss", "gradient", "defaults"} <= compared, f"{name}: nothing about {compared}"


IMAGE = [name for name in composition.preset_names() if composition.build(name).family == "diffusion"]


@pytest.mark.parametrize("name", IMAGE)
def test_every_image_preset_is_compared(name: str) -> None:
    fidelity.collect()
    compared = {c.column for c in fidelity.CELLS if c.preset == name}
    assert {"loss", "gradient", "defaults"} <= compared, f"{name}: nothing about {compared}"
