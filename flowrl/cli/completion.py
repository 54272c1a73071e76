"""What the shell offers for a half-typed word: configs, runs, checkpoints, presets. Names of files alone, read in
milliseconds; where nothing fits, shells fall back to their own completion of paths."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

CONFIGS = ("*.y*ml", "configs/*.y*ml", "configs/*/*.y*ml")
RUNS = ("runs/*", "runs/*/*", "runs/*/*/*")
"""A run, one of several seeds (``flowrl compare``), or one of several configs."""


def config_files(incomplete: str) -> list[str]:
    """Configs here, below ``configs``, and in the folder that was typed."""
    typed = glob.escape(incomplete)
    found = _found([*CONFIGS, f"{typed}*.y*ml", f"{typed}*/*.y*ml"], incomplete)
    return [name for name in found if "accelerate" not in name.split("/")]  # configs of that tool


def run_folders(incomplete: str) -> list[str]:
    """Directories of runs: those below ``runs``, and in the folder that was typed."""
    typed = glob.escape(incomplete)
    return [name for name in _found([*RUNS, f"{typed}*", f"{typed}*/*"], incomplete) if _is_run(name)]


def preset_names(incomplete: str) -> list[str]:
    """The algorithms that ship: one module each."""
    folder = Path(__file__).parents[1] / "algorithms"
    return _starting((path.stem for path in folder.glob("[!_]*.py")), incomplete)


def checkpoint_names(incomplete: str) -> list[str]:
    """``best``, ``latest``, and the checkpoints of the run that was typed before: it is looked for among the words
    that the shell hands over, because an option without its value ends what is parsed of them."""
    words = (os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS") or "").split()
    folders = (glob.glob(f"{glob.escape(word)}/checkpoints/step_*") for word in words if _is_run(word))
    return _starting(["best", "latest", *(path for each in folders for path in each)], incomplete)


def resumable(incomplete: str) -> list[str]:
    """``auto``, or a run."""
    return [*_starting(["auto"], incomplete), *run_folders(incomplete)]


def weight_sets(incomplete: str) -> list[str]:
    """The weight sets that runs keep."""
    return _starting(["ema", "live"], incomplete)


def _found(patterns: Iterable[str], incomplete: str) -> list[str]:
    with suppress(OSError):
        return _starting((path for pattern in patterns for path in glob.glob(pattern)), incomplete)
    return []


def _starting(names: Iterable[str], incomplete: str) -> list[str]:
    return sorted({name for name in names if name.startswith(incomplete)})


def _is_run(name: str) -> bool:
    return os.path.isfile(os.path.join(name, "config.yaml"))
