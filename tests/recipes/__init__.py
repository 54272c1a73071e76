"""The shipped recipes, the tiny models they are trained on in tests, and the page that lists what is known of them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from flowrl.config import Config
from flowrl.recipes import curve
from flowrl.recipes.level import LEVELS, expected_memory, level_of

CONFIGS = Path(__file__).parents[2] / "configs"
PAGE = "docs/recipes.md"
EVERY_CONFIG = [p for p in sorted(CONFIGS.rglob("*.yaml")) if p.parent.name != "accelerate"]
EVERY_RECIPE = [path for path in EVERY_CONFIG if "quickstart" not in path.stem]
"""Those of real models."""
BY_MEMORY = ("24gb", "16gb")
"""Folders of recipes for a size of card, of several models each."""
PIPELINES = {"sd15": "sd15", "sdxl": "sdxl", "sd35": "sd3", "flux": "flux", "qwenimage": "qwen_image"}
LANGUAGE_MODELS = {"llada": "llada", "dream": "dream", "qwen": "qwen3", "qwen3": "qwen3"}
"""The tiny model that a recipe of a kind is trained on (`tests.pipelines`, `tests.components_text`)."""


def kind(path: Path) -> str:
    """The model of a recipe: its folder, or what its name begins with."""
    named = path.parent != CONFIGS and path.parent.name not in BY_MEMORY
    return path.parent.name if named else path.stem.split("_")[0]


def title(path: Path) -> str:
    """A recipe's name below ``configs``."""
    return str(path.relative_to(CONFIGS).with_suffix(""))


def needing_bits(path: Path) -> Any:
    """A recipe, left out where the package that holds its weights in few bits is missing."""
    text = path.read_text()
    few = "quantize:" in text or "quantize_encoders:" in text or "8bit" in text
    missing = few and importlib.util.find_spec("bitsandbytes") is None
    slow = [pytest.mark.slow] if path.parent.name == "llada" else []
    return pytest.param(path, marks=[*slow, pytest.mark.skipif(missing, reason="needs bitsandbytes")], id=title(path))


ON_A_PIPELINE, ON_A_LANGUAGE_MODEL = (
    [path for path in EVERY_RECIPE if kind(path) in models] for models in (PIPELINES, LANGUAGE_MODELS)
)
"""The recipes that `tests/smoke` trains, but for their size as they are."""


def proven_level(path: Path) -> str:
    """The level that tests and committed files bear out. That all are accepted is `test_a_recipe_is_accepted`."""
    if curve.file_of(path).is_file():
        world = Config.load(path).data.train.partition(":")[0]
        return "learns" if Config.load(path).model.path == world else "measured"
    return "runs" if path in (*ON_A_PIPELINE, *ON_A_LANGUAGE_MODEL) else "accepted"


def render() -> str:
    """The page."""
    counts = {level: sum(level_of(path) == level for path in EVERY_CONFIG) for level in LEVELS}
    levels = "\n".join(f"- *{level}* ({counts[level]}): {meaning}." for level, meaning in LEVELS.items())
    rows = "\n".join(_row(path) for path in sorted(EVERY_CONFIG, key=_rank))
    return f"""# Recipes and what they show

Written by `python -m tests.recipes` from the headers of `configs/` and the curves in `configs/curves/`.

Levels:
{levels}

`flowrl reproduce CONFIG` runs a recipe that has a curve and says whether its own lies inside the band (exit code 0), or
where and by how much it does not (1). Two metrics are compared: what the table shows, and the reward in training (mean
since the point before), for samples of stale weights may teach as well and show there alone. Half a band is
{curve.DEVIATIONS:g} standard deviations of a further seed's distance from the mean, at least {curve.FLOOR:.0%} of the
curve's range. `--smoke` stops at the first iteration at which learning shows: it notices what breaks or slows the
beginning, and says nothing of the end. `--record SEEDS` writes the curve anew.

Minutes are those of the recording's quickest run, beside twenty other processes on two cores (the curve's file names
the machine, the header says what an idle core takes). Memory is the most that a run held (resident), or the header's
estimate, which nobody has measured. What the bands notice: [benchmarks/README.md](../benchmarks/README.md).

| config | level | curve | expected | band at the end | minutes | memory |
|---|---|---|---|---|---|---|
{rows}
"""


def _rank(path: Path) -> tuple[int, str]:
    return -list(LEVELS).index(level_of(path)), title(path)


def _row(path: Path) -> str:
    link = f"[`{title(path)}`](../configs/{path.relative_to(CONFIGS)})"
    known = curve.read(path) if curve.file_of(path).is_file() else None
    if known is None:
        memory = expected_memory(path)
        cells = ["", "", "", "", f"{memory} (estimate)" if memory else ""]
    else:
        first, last = known.expected[0], known.expected[-1]
        cells = [
            f"`{known.metric}`, {len(known.seeds)} seeds",
            f"{first.mean:.3f} -> {last.mean:.3f}",
            f"{last.low:.3f} to {last.high:.3f}",
            f"{min(known.seconds) / 60:.1f}",
            ", ".join(f"{held / 2**30:.1f} GiB ({place})" for place, held in known.memory.items()),
        ]
    return f"| {' | '.join([link, level_of(path), *cells])} |"
