"""No damaged input ends in a traceback or a hang. The counts are printed (``pytest -rP``)."""

from __future__ import annotations

import os

import pytest

from tests.fuzz.engine import HEAD, Count, explore
from tests.fuzz.models import MODELS, prepare
from tests.fuzz.targets import QUICK, warm_up

SECONDS = float(os.environ.get("FLOWRL_FUZZ_SECONDS", "60"))
"""Computing time of the long test; a busy machine takes longer over it."""


def conclude(counts: dict[str, Count]) -> None:
    print(HEAD)
    for name, count in counts.items():
        print(f"| {name} | {count.row()} |")
    findings = [finding for count in counts.values() for finding in count.findings]
    assert not findings, f"{len(findings)} findings:\n\n" + "\n".join(findings[:10])


def _need_both(counts: dict[str, Count]) -> None:
    """A target that accepts nothing, or refuses nothing, tests nothing."""
    idle = [name for name, count in counts.items() if not (count.outcomes["accepted"] and count.outcomes["clean"])]
    assert not idle, f"nothing was accepted, or nothing was refused: {idle}"


def test_a_few_seconds_of_damaged_input() -> None:
    warm_up()
    conclude(explore(QUICK, 6.0))


@pytest.mark.slow
def test_a_minute_of_damaged_input() -> None:
    warm_up()
    prepare()
    counts = explore(QUICK, SECONDS / 2, first=1000) | explore(MODELS, SECONDS / 2)
    conclude(counts)
    _need_both(counts)
