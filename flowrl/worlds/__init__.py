"""Small self-contained worlds: data, verifier and a base model that need no download."""

from __future__ import annotations

from pathlib import Path


def world_names() -> list[str]:
    """Names of the embedded worlds."""
    return sorted(file.parent.name for file in Path(__path__[0]).glob("*/prompts.py"))
