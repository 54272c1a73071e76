"""What a result depends on besides the config: versions, commit, machine."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from flowrl.errors import DISTRIBUTION
from flowrl.launcher import launch
from flowrl.version import __version__

PACKAGES = ("torch", "diffusers", "transformers", "peft", "accelerate", "safetensors", "numpy")


def versions() -> dict[str, str | None]:
    """Python's and the packages' versions; None = not installed."""
    ours = {"python": platform.python_version(), "flowrl": __version__}
    return {**ours, **{name: installed(name) for name in PACKAGES}}


def installed(package: str) -> str | None:
    """Version of an installed package, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def tested() -> dict[str, str]:
    """The releases that flowrl was tested with, by package: ``constraints.txt``, which ships with it."""
    lines = (Path(__file__).parents[1] / "constraints.txt").read_text("utf-8").split("\n")
    pins = (line.partition("#")[0].strip().partition("==") for line in lines)
    return {name: release for name, _, release in pins if release}


def untested() -> dict[str, tuple[str, str]]:
    """``(installed, tested)`` release of every package that is installed in another one than tested."""
    pairs = ((name, installed(name), release) for name, release in tested().items())
    # a local label (2.14.1+cpu) says how a release was built, not which it is
    return {name: (mine, theirs) for name, mine, theirs in pairs if mine and mine.partition("+")[0] != theirs}


def refused() -> dict[str, tuple[str, str]]:
    """``(installed release, releases that are supported)`` of every package that flowrl does not work with."""
    try:
        wanted = [Requirement(line) for line in requires(DISTRIBUTION) or ()]
    except PackageNotFoundError:  # run from its folder, never installed
        return {}
    named = (
        (w.name, installed(w.name), w.specifier) for w in wanted if not w.marker or w.marker.evaluate({"extra": ""})
    )
    return {
        name: (mine, str(bounds))
        for name, mine, bounds in named
        if mine and not bounds.contains(mine, prereleases=True)
    }


@cache
def processor() -> str:
    """The processor's model, with family, model and stepping numbers where the system tells them."""
    try:
        lines = [line.partition(":") for line in Path("/proc/cpuinfo").read_text().split("\n\n")[0].split("\n")]
    except OSError:
        return platform.processor() or platform.machine()
    facts = {key.strip(): value.strip() for key, _, value in lines}
    numbers = "/".join(facts.get(key, "?") for key in ("cpu family", "model", "stepping"))
    return f"{facts.get('model name', platform.machine())} ({numbers})"


@cache
def commit() -> str | None:
    """Git commit of flowrl's source tree, with ``+changes`` if it differs; None when it is not in one."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        head = _git(root, "rev-parse", "HEAD")
        return head + ("+changes" if _git(root, "status", "--porcelain") else "") if head else None
    except (OSError, subprocess.TimeoutExpired):
        return None


def describe_machine() -> dict[str, Any]:
    """Everything that goes into a run's ``environment.json``."""
    import torch

    found = launch()
    from flowrl.devices import accelerators

    return {
        "versions": versions(),
        "commit": commit(),
        "platform": platform.platform(),
        "processor": processor(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "ranks": found.size if found else 1,
        "accelerators": accelerators(),
    }


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""
