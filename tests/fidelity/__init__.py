"""The presets against the code their authors released, cell by cell. `docs/fidelity.md` is written from here.

A test is a statement of that page. It is registered with the presets and columns it is about, a verdict and one
sentence, and computes the released numbers itself, from the released formula in plain torch or numpy, never with
flowrl's own parts::

    release("flow_grpo", "yifan123/flow_grpo, 4 Nov 2025")

    @cell("flow_grpo", "loss, gradient", "equal", "clipped steps and KL, both guidance branches in the graph")
    def test_flow_grpo_gradient() -> None: ...

    @cell("grpo_guard", "loss", "deviation", "each sample has its own bias", reason="the formula; cosine 1 - 1e-5")
    def test_guard_bias() -> None: ...

Verdicts: ``equal`` - the preset's default is the released behaviour; ``option`` - the release, or what it also offers,
is reached by the option that the sentence names; ``deviation`` - it is not, for the reason given. A test of a deviation
measures the difference, so that it fails when the sentence is no longer true.

``python -m tests.fidelity`` writes the page; `tests/fidelity/test_page.py` fails while it is not up to date. New
statements are new test functions in any ``tests/fidelity/test_*.py``; nothing else has to be edited.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

Verdict = Literal["equal", "option", "deviation"]
COLUMNS = {
    "loss": "loss",
    "gradient": "gradient",
    "defaults": "default hyper-parameters",
    "data": "data",
    "rewards": "rewards",
}
FAMILIES = {
    "diffusion": "Diffusion and flow image models",
    "masked": "Masked-diffusion language models",
    "causal": "Autoregressive language models",
    "control": "Policies for control",
    "reward": "Reward models",
}
Test = TypeVar("Test", bound=Callable[..., None])


@dataclass(frozen=True)
class Cell:
    """One statement about one preset."""

    preset: str
    column: str
    verdict: Verdict
    says: str
    reason: str
    module: str
    test: str


CELLS: list[Cell] = []
RELEASES: dict[str, str] = {}
PAGE = "docs/fidelity.md"
INTRO = """# Fidelity

Every preset against the code that its authors released. This page is written from the tests in `tests/fidelity`
(`python -m tests.fidelity`), each of which computes the released numbers itself. **equal**: the preset's default is the
released behaviour. **option**: the release, or what it also offers, is reached by an option. **deviation**: it is not,
for the reason given below. **-**: not compared, or there is nothing to compare (no data or rewards of its own).
"""


def release(presets: str, source: str) -> None:
    """Note what presets (``"a, b"``) are compared with: repository and commit date, or the paper alone."""
    for preset in presets.split(", "):
        assert preset not in RELEASES, f"{preset} has a release already: {RELEASES[preset]}"
        RELEASES[preset] = source


def cell(presets: str, columns: str, verdict: Verdict, says: str, *, reason: str = "") -> Callable[[Test], Test]:
    """Register a test as a statement about presets and columns (``"a, b"``); ``reason`` belongs to a deviation."""
    assert bool(reason) == (verdict == "deviation"), f"a deviation, and only that, has a reason: {says}"
    assert set(columns.split(", ")) <= set(COLUMNS), columns

    def note(test: Test) -> Test:
        found = [
            Cell(preset, column, verdict, says, reason, test.__module__, test.__name__)
            for preset in presets.split(", ")
            for column in columns.split(", ")
        ]
        CELLS.extend(found)
        return test

    return note


def collect() -> None:
    """Import all test modules of this package, so that their statements are registered."""
    for module in pkgutil.iter_modules(__path__):
        if module.name.startswith("test_") and module.name != "test_page":
            importlib.import_module(f"{__name__}.{module.name}")


def render() -> str:
    """The page."""
    from flowrl import composition

    collect()
    names = composition.preset_names()
    lines = [INTRO]
    for family, title in FAMILIES.items():
        members = [name for name in names if composition.build(name).family == family]
        lines += [f"## {title}", f"| preset | release | {' | '.join(COLUMNS.values())} |", "|---" * 7 + "|"]
        for name in members:
            told = " | ".join(_summary(name, column) for column in COLUMNS)
            lines.append(f"| `{name}` | {RELEASES.get(name, 'not compared')} | {told} |")
        lines.append("")
        for name in members:
            lines += details(name)
    return "\n".join(lines).rstrip() + "\n"


def _summary(preset: str, column: str) -> str:
    verdicts = [c.verdict for c in CELLS if (c.preset, c.column) == (preset, column)]
    return ", ".join(dict.fromkeys(v for v in ("equal", "option", "deviation") if v in verdicts)) or "-"


def details(preset: str) -> list[str]:
    """One line per statement, whatever number of columns it is about."""
    about: dict[tuple[str, str, str, str], list[str]] = {}
    for c in sorted(CELLS, key=lambda cell: cell.module):  # whatever was imported first
        if c.preset == preset:
            about.setdefault((c.verdict, c.says, c.reason, c.test), []).append(c.column)
    if not about:
        return []
    lines = [f"### `{preset}`"]
    order = ("equal", "option", "deviation")
    for (verdict, says, reason, test), columns in sorted(about.items(), key=lambda item: order.index(item[0][0])):
        because = f" *Reason:* {reason}." if reason else ""
        lines.append(f"- {verdict} ({', '.join(columns)}): {says}.{because} `{test}`")
    return [*lines, ""]
