"""Self-tests of what judges: run once for each judge and device, before it scores anything."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flowrl.detection.self_test import Check
from flowrl.errors import UserError
from flowrl.evaluation.suite import SelfTesting, Suite
from flowrl.paths import cache_folder
from flowrl.records.sample_files import write_text
from flowrl.runtime.display import Display


def check_judges(suites: Sequence[Suite], afresh: bool, display: Display) -> dict[str, dict[str, Any]]:
    """The self-test of each suite that has one, as ``{"afresh", "checks"}`` by its name; ``afresh`` repeats what was
    passed before.

    Raises `UserError` where a check fails, or where ``afresh`` is asked for and no suite has a self-test.
    """
    testing = [suite for suite in suites if isinstance(suite, SelfTesting)]
    if afresh and not testing:
        raise UserError("--self-test: none of the suites has one (geneval with a detector has); leave it out")
    out = {}
    for suite in testing:
        display.stage(f"checking what judges {suite.name}", log=False)
        checks = suite.self_test(afresh)
        failed = [f"{check.name} ({check.found})" for check in checks if check.passed is False]
        if failed:
            raise UserError(
                f"suite {suite.name}: {suite.title} fails its self-test, so nothing is scored: {'; '.join(failed)}; "
                "give other weights or another device as the suite's options"
            )
        out[suite.name] = {"afresh": afresh, "checks": [asdict(check) for check in checks]}
    return out


def remembered(facts: Mapping[str, Any], afresh: bool, run: Callable[[], list[Check]]) -> list[Check]:
    """``run()``, or what it gave when it was passed before with the same ``facts``."""
    file = _file(facts)
    if not afresh and file.is_file():
        try:
            return [Check(**row) for row in json.loads(file.read_text(encoding="utf-8"))]
        except (ValueError, TypeError):
            pass  # damaged: it is run again
    checks = run()
    if all(check.passed is not False for check in checks):
        write_text(file, json.dumps([asdict(check) for check in checks]) + "\n")
    return checks


def _file(facts: Mapping[str, Any]) -> Path:
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]
    return cache_folder("self_tests") / f"{digest}.json"
