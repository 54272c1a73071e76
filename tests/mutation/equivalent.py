"""Mutants that cannot change behaviour: `.ci/mutate_equivalent.toml`, each with its reason."""

from __future__ import annotations

import tomllib
from pathlib import Path

from tests.mutation.mutants import Mutant

FILE = ".ci/mutate_equivalent.toml"


def read(root: Path) -> dict[tuple[str, str, str], str]:
    """Reasons by what a mutant is, wherever it stands."""
    entries = tomllib.loads((root / FILE).read_text()).get("equivalent", [])
    return {(entry["name"], entry["before"], entry["after"]): entry["reason"] for entry in entries}


def unknown(root: Path, mutants: list[Mutant]) -> list[tuple[str, str, str]]:
    """Entries that fit no mutant any more: the code has changed, so the reason has to be looked at again."""
    present = {mutant.content for mutant in mutants}
    return [content for content in read(root) if content not in present]
