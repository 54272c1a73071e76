"""Committed standards: what a dozen presets report of five small iterations, number by number.

``python -m tests.standards`` compares and explains, ``--renew`` writes them anew. A file of ``kept/`` holds a preset's
metrics and the kind of machine that they are from. On a machine of that kind every number is the same, bit for bit.
Elsewhere rounding differs, and numbers are held to tolerances that stand well above what rounding was seen to do.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from flowrl.records.machine import processor, versions
from tests.training import Work, config_of, train

KEPT = Path(__file__).parent / "kept"
CASES = {
    **dict.fromkeys(("ddpo", "flow_grpo", "grpo_guard", "awm", "diffusion_nft"), "shapes"),
    **dict.fromkeys(("grpo", "dapo", "ppo", "gspo", "reinforce_pp"), "countdown"),
    **dict.fromkeys(("diffu_grpo", "coupled_grpo", "spg", "trajectory_pg"), "sudoku"),
}
"""The embedded world that a preset trains on."""
ITERATIONS = 5
FIRST, LATER = 1e-3, 5e-3
"""Of the first iteration and of later ones: the largest difference elsewhere, relative to the metric's largest value in
the five iterations (`SMALL` at least). Other micro-batches, two threads, and a processor without AVX512 or without any
vector instructions (ATEN_CPU_CAPABILITY, MKL_CBWR, ONEDNN_MAX_CPU_ISA) moved first iterations by up to 8e-5 and later
ones by up to 2e-4 (torch 2.14). A count of less than 200 is therefore exact."""
SMALL = 1e-4
ROUNDING = ("ratio/first_", "sampler/", "check/start_distance", "advantage/mean")
"""Metrics that are rounding itself, 0 but for it: elsewhere below `NOISE`."""
NOISE = 1e-3
FLIPPED, CHANGED = 1, 1.0
"""From the second iteration on rounding may make a token or a pixel fall out otherwise, which no run above has shown:
so many cases may leave `LATER`, though not by more than this."""
Metrics = list[dict[str, float | None]]


def values_of(preset: str, folder: str, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The config of a case: as small as has groups, updates and batches of unequal size."""
    small = {"data__prompts": 3, "data__group": 3 if CASES[preset] == "shapes" else 4, "monitor__samples": 6}
    return {**config_of(preset, CASES[preset], **small, **(changes or {})), "out": folder}


def run(preset: str, changes: Mapping[str, Any] | None = None) -> Metrics:
    """What the iterations of a case report, but for seconds."""
    with tempfile.TemporaryDirectory() as folder:
        found = train(values_of(preset, folder, changes), Work(ITERATIONS)).metrics
    return [{name: _plain(line[name]) for name in sorted(line) if not _is_time(name)} for line in found]


def _is_time(name: str) -> bool:
    return name.startswith("time/") or name.endswith("/seconds")


def _plain(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def kind() -> dict[str, Any]:
    """What a number depends on to the last bit, besides our code: the processor and the libraries that compute."""
    computing = ("torch", "diffusers", "transformers", "peft", "numpy")
    libraries = {name: found for name, found in versions().items() if name in computing}
    return {"processor": processor(), "vectors": torch.backends.cpu.get_cpu_capability(), **libraries}


@dataclass(frozen=True)
class Standard:
    """A case as committed."""

    kind: Mapping[str, Any]
    metrics: Metrics


def read(preset: str) -> Standard:
    """The committed standard of a case."""
    return Standard(**json.loads((KEPT / f"{preset}.json").read_text()))


def write(preset: str, metrics: Metrics) -> None:
    """Commit what a case reports here, a metric a line so that a diff shows which changed."""
    iterations = [",\n".join(f"   {json.dumps(k)}: {json.dumps(v)}" for k, v in line.items()) for line in metrics]
    inner = ",\n".join(f"  {{\n{text}\n  }}" for text in iterations)
    text = f'{{\n "kind": {json.dumps(kind())},\n "metrics": [\n{inner}\n ]\n}}\n'
    (KEPT / f"{preset}.json").write_text(text)


@dataclass(frozen=True)
class Difference:
    """A number that is not what was committed."""

    metric: str
    step: int
    old: float | None
    new: float | None
    scale: float
    """The metric's largest value in all iterations."""

    @property
    def relative(self) -> float:
        """The difference over the scale; infinite where one of the two is missing or not finite."""
        if self.old is None or self.new is None:
            return math.inf
        least = 1.0 if self.metric.endswith("/z") else SMALL  # these are in standard deviations already
        return abs(self.new - self.old) / max(self.scale, least)

    @property
    def tolerated(self) -> bool:
        """Whether rounding may do this on another kind of machine, without anything falling out otherwise."""
        if self.metric.startswith(ROUNDING):
            return all(value is not None and abs(value) < NOISE for value in (self.old, self.new))
        return self.relative <= (FIRST if self.step == 1 else LATER)


def differences(old: Metrics, new: Metrics) -> list[Difference]:
    """Every number that differs, the first iteration first."""
    found = []
    for step, (before, now) in enumerate(zip(old, new, strict=True), start=1):
        for name in sorted(before.keys() | now.keys()):
            if name not in before or name not in now or before[name] != now[name]:
                scale = max(abs(line.get(name) or 0.0) for line in old)
                found.append(Difference(name, step, before.get(name), now.get(name), scale))
    return found


def wrong(found: Mapping[str, Sequence[Difference]], exact: Iterable[str]) -> dict[str, list[Difference]]:
    """What must not be, of the ``found`` differences by case; ``exact`` are the cases of this kind of machine.

    Of the other cases, `FLIPPED` may be beyond `LATER` from their second iteration on.
    """
    exact = set(exact)
    bad = {case: [d for d in every if case in exact or not d.tolerated] for case, every in found.items()}
    bad = {case: every for case, every in bad.items() if every}
    flipped = [
        case
        for case, every in bad.items()
        if case not in exact and all(d.step > 1 and d.relative <= CHANGED for d in every)
    ]
    return bad if len(flipped) > FLIPPED else {case: every for case, every in bad.items() if case not in flipped}


def explain(case: str, every: Sequence[Difference], most: int = 12) -> str:
    """Where a case first differs and by how much: metric, step, old, new, relative; the largest of a step first."""
    first = every[0].step
    shown = sorted(every, key=lambda d: (d.step, -d.relative))[:most]
    rows = [f"  {d.step:4}  {d.metric:<34} {_number(d.old):>14} {_number(d.new):>14}  {d.relative:.1e}" for d in shown]
    rest = [f"  ... and {len(every) - most} more"] if len(every) > most else []
    hint = "sampling, reward or the first update" if first == 1 else "what carries over from earlier iterations"
    title = f"{case}: {len(every)} numbers differ, first in iteration {first} ({hint})"
    heads = f"  step  {'metric':<34} {'old':>14} {'new':>14}  relative"
    return "\n".join([title, heads, *rows, *rest])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.7g}"
