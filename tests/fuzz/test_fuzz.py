"""No damaged input ends in a traceback or a hang. The counts are printed (``pytest -rP``)."""

from __future__ import annotations

import os

import pytest

from tests.fuzz.engine import Count, explore
from tests.fuzz.models import MODELS, prepare
from tests.fuzz.targets import QUICK

SECONDS = float(os.environ.get("FLOWRL_FUZZ_SECONDS", "60"))


def conclude(counts: dict[str, Count]) -> None:
    for name, count in counts.items():
        print(f"{name:<16} {count}")
    findings = [finding for count in counts.values() for finding in count.findings]
    assert not findings, f"{len(findings)} findings:\n\n" + "\n".join(findings[:10])


def test_a_few_seconds_of_damaged_input() -> None:
    conclude(explore(QUICK, 5.0))


@pytest.mark.slow
def test_a_minute_of_damaged_input() -> None:
    prepare()
    conclude(explore(QUICK, SECONDS / 2, first=1000) | explore(MODELS, SECONDS / 2))
