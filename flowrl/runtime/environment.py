"""What a result depends on besides the config: versions, commit, machine."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import flowrl

PACKAGES = ("torch", "diffusers", "transformers", "peft", "accelerate", "safetensors", "numpy")


def versions() -> dict[str, str | None]:
    """Python's and the packages' versions; None = not installed."""
    ours = {"python": platform.python_version(), "flowrl": flowrl.__version__}
    return {**ours, **{name: installed(name) for name in PACKAGES}}


def installed(package: str) -> str | None:
    """Version of an installed package, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


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


def describe() -> dict[str, Any]:
    """Everything that goes into a run's ``environment.json``."""
    import torch

    return {
        "versions": versions(),
        "commit": commit(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerators": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""
