"""The beginning of a recipe is inside its committed band, and outside with a mistake in the package."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.recipes import CONFIGS
from tests.recipes.planted import FAULTS, faulty


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_still_fits_the_module(name: str) -> None:
    compile(faulty(FAULTS[name]), name, "exec")


@pytest.mark.slow
@pytest.mark.parametrize("fault", [None, *FAULTS])
def test_a_smoke_run_is_inside_and_notices_planted_faults(fault: str | None, tmp_path: Path) -> None:
    """Some 14 s of an idle core each."""
    program = ["flowrl"] if fault is None else ["tests.recipes.planted", fault]
    words = ["reproduce", str(CONFIGS / "quickstart_causal_lm.yaml"), "--smoke", "--out", str(tmp_path / "run")]
    done = subprocess.run(
        [sys.executable, "-m", *program, *words],
        cwd=CONFIGS.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == (0 if fault is None else 1), done.stdout + done.stderr
    assert ("inside: " if fault is None else "outside at ") in done.stdout
