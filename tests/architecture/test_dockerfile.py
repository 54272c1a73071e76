"""The Dockerfile, which cannot be built where tests run: its targets, what it installs and copies, who it runs as."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "Dockerfile").read_text()
LINES = [line for line in re.sub(r"\\\n\s*", "", TEXT).splitlines() if line.strip() and not line.startswith("#")]
"""Instructions, continued lines joined."""


def stages() -> dict[str, list[tuple[str, str]]]:
    """``(instruction, rest)`` of every target, its base's before its own."""
    found: dict[str, list[tuple[str, str]]] = {}
    name = ""
    for line in LINES:
        word, _, rest = line.partition(" ")
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            found[name] = list(found.get(base, []))
        found[name].append((word, " ".join(rest.split())))
    return found


def test_there_is_a_target_for_cpus_and_one_for_cuda() -> None:
    assert list(stages()) == ["base", "cpu", "cuda"]
    page = (ROOT / "docs/docker.md").read_text()
    assert set(re.findall(r"--target (\w+)", page)) == {"cpu", "cuda"} and "not built" in TEXT + page


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_an_image_installs_what_there_is_and_runs_as_nobody_special(target: str) -> None:
    steps = stages()[target]
    install = next(rest for word, rest in steps if word == "RUN" and rest.startswith("pip install"))
    extras = re.search(r"'\.\[([\w,]+)\]'", install)
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert (
        extras and set(extras[1].split(",")) <= set(known) - {"test", "docs"} and "-c flowrl/constraints.txt" in install
    )
    assert ("whl/cpu" in install) == (target == "cpu")
    order = [word for word, _ in steps]
    assert ("USER", "flowrl") in steps and order.index("USER") > max(i for i, w in enumerate(order) if w == "RUN")
    assert ("CMD", '["flowrl", "doctor"]') in steps and ("VOLUME", "/cache") in steps


def test_what_is_copied_is_here_and_not_ignored() -> None:
    sources = [s for word, rest in stages()["base"] if word == "COPY" for s in rest.split()[:-1]]
    ignored = (ROOT / ".dockerignore").read_text().split("\n")
    assert sources and all((ROOT / source).exists() and f"!{source}" in ignored for source in sources)
    assert not any((ROOT / source).is_symlink() for source in sources), "a link would be copied, not its file"
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {needed["readme"], "LICENSE", "pyproject.toml", "flowrl", "rewards"} <= set(sources)
