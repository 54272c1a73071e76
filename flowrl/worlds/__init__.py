"""Small self-contained worlds: data, verifier and a base model that need no download."""

from __future__ import annotations

import pkgutil


def world_names() -> list[str]:
    """Names of the embedded worlds."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))
