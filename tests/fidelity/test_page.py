"""The page says what the tests say."""

from __future__ import annotations

from pathlib import Path

from flowrl import algorithms
from tests import fidelity

ROOT = Path(__file__).parents[2]


def test_the_page_is_up_to_date() -> None:
    assert (ROOT / fidelity.PAGE).read_text() == fidelity.render(), "run: python -m tests.fidelity"


def test_every_statement_is_about_a_preset_and_names_its_release() -> None:
    fidelity.collect()
    assert {c.preset for c in fidelity.CELLS} == set(fidelity.RELEASES) <= set(algorithms.names())
