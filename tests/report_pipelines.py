"""Measure every tiny pipeline and write docs/pipelines.md: ``python -m tests.report_pipelines [NAME ...]``."""

from __future__ import annotations

import contextlib
import io
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import diffusers
import torch
import transformers

from flowrl.errors import UserError
from flowrl.models import check_parity, export_formats, export_policy
from flowrl.models.diffusion import DiffusionPolicy, load_policy
from flowrl.models.diffusion.coordinates import TrigFlowCoordinates
from flowrl.models.diffusion.parity import has_euler_step
from tests.parity.conftest import move
from tests.pipelines import CALLS, PIPELINES, save
from tests.pipelines_few_steps import MODELS

PAGE = Path(__file__).parents[1] / "docs" / "pipelines.md"
FORMATS = ("diffusers", "peft", "merged")
COLUMNS = (
    "pipeline", "scheduler (as compared)", "denoiser calls", "guidance", "network time", "text padding", "parity",
    *FORMATS,
)  # fmt: skip
HEADER = f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}\n"


def row(name: str, root: Path) -> str:
    """One line of the table."""
    folder = save(name, root / name)
    index = json.loads((folder / "model_index.json").read_text())
    kind, given = index["_class_name"], index["scheduler"][1]
    kind += " with two denoisers" if index.get("boundary_ratio") else ""
    kind += f" ({MODELS[name]})" if name in MODELS else ""
    try:
        policy = load_policy(folder, call=CALLS[name], parity="skip")
        move(policy, 0.02)
        deviation = f"{check_parity(policy):.1e}"
    except UserError as error:
        return f"| {kind} | {given} | | | | | refused: {error} | | | |\n"
    cells = [
        kind,
        _scheduler(given, policy),
        _calls(policy),
        _mix(policy),
        _time(policy),
        "longest of the batch" if policy.encoder.ragged else "fixed",
        deviation,
        *[_export(policy, root / f"{name}-{to}", to) for to in FORMATS],
    ]
    return f"| {' | '.join(cells)} |\n"


def _scheduler(given: str, policy: DiffusionPolicy) -> str:
    used = type(policy.pipeline.scheduler).__name__
    if used != given:
        return f"{given} → {used.removesuffix('Scheduler')}"
    return given if has_euler_step(policy.pipeline.scheduler) else f"{given} (Euler on its times)"


def _calls(policy: DiffusionPolicy) -> str:
    calls = policy.spec.calls
    if len(calls) == 2:
        return "two"
    return {1: "one", 2: "one, doubled", 3: "one, tripled"}[calls[0].branches]


def _mix(policy: DiffusionPolicy) -> str:
    mixing = policy.spec.guidance
    sign = "−" if mixing.sign < 0 else ""
    if mixing.weights:
        return f"{sign}by {', '.join(f'{weight:g}' for weight in mixing.weights)}"
    if mixing.unconditional is None:
        return f"{sign}cond"
    late = f" and {mixing.late_scale:g}" if mixing.boundary and mixing.late_scale != mixing.scale else ""
    return f"{sign}{mixing.correction.__name__}, {mixing.scale:g}{late}"


def _time(policy: DiffusionPolicy) -> str:
    slot = policy.spec.calls[0].times[0]
    if isinstance(policy.spec.coordinates, TrigFlowCoordinates):
        return "sin τ / (sin τ + cos τ)"
    known = {(1, 0): "τ", (1e-3, 0): "τ/1000", (-1e-3, 1): "1 − τ/1000"}
    return known.get((slot.scale, slot.offset), f"{slot.scale:g} τ + {slot.offset:g}")


def _export(policy: DiffusionPolicy, folder: Path, to: str) -> str:
    return f"{export_policy(policy, folder, to):.0e}" if to in export_formats(policy) else "no loader"


def main(names: Sequence[str]) -> None:
    """Write the table of ``names`` (all if empty) between the page's markers."""
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    lines = []
    for name in names or sorted(PIPELINES):
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as root, contextlib.redirect_stderr(io.StringIO()):
            try:
                lines.append(row(name, Path(root)))
            except (RuntimeError, ValueError, TypeError, AttributeError, KeyError):  # say so in the table and go on
                traceback.print_exc(file=sys.stdout)
                lines.append(f"| {name} | | | | | | crashed | | | |\n")
        print(f"{time.perf_counter() - start:5.1f} s {lines[-1]}", end="", flush=True)
    if not names:
        before, _, rest = PAGE.read_text().partition("<!-- table -->\n")
        _, _, after = rest.partition("<!-- end -->\n")
        PAGE.write_text(f"{before}<!-- table -->\n{HEADER}{''.join(lines)}<!-- end -->\n{after}")


if __name__ == "__main__":
    main(sys.argv[1:])
