"""One table of what a GPU does: quickstarts against the CPU, large random models with each option on and off, TRL.

Usage: python -m benchmarks.gpu [SECTION ...] [--out FOLDER] [--seconds 480] [--device auto] [--size tiny]
Sections: quickstarts, sd35, flux, llada, qwen3, trl; all of them by default, under 8 minutes on one H100 or H200: when
the time is up, the rows that are left say so. Models have random weights and the released sizes (`gpu_models`); nothing
is downloaded. Every arm has a process of its own with a time limit, so that one that fails is a row of the table.
``--size tiny`` runs through all of it with tiny models; ``--device fakegpu`` on the pretended accelerator of the tests.
Writes FOLDER/gpu.md and FOLDER/gpu.json. Needs 30 GB of disk for the largest model, which is removed again.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import shutil
import tempfile
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.gpu_arms import SECTIONS, Arm, arms, run

PRELOADED = ["diffusers", "transformers", "peft", "flowrl.train", "benchmarks.gpu_arms", "tests.pipelines"]
"""Imported once; every arm's process is forked from one that has done nothing else."""
COLUMNS = (
    "samples/s", "sample s", "decode s", "reward s", "update s", "peak GB", "ratio deviation", "outside clip",
    "clip share",
)  # fmt: skip


def main() -> None:
    """Run the arms and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--out", type=Path, default=Path("gpu-benchmark"))
    parser.add_argument("--seconds", type=float, default=480.0, help="of all arms together")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--size", choices=["full", "tiny"], default="full")
    parser.add_argument("--only", nargs="*", help="names of arms")
    given = parser.parse_args()
    unknown = sorted(set(given.sections) - set(SECTIONS))
    if unknown:
        parser.error(f"no section {unknown[0]!r}; there are {', '.join(SECTIONS)}")
    tiny, device = given.size == "tiny", _device(given.device)
    if device == "cpu" and not tiny:
        parser.error("no accelerator here; --size tiny runs on the CPU")
    chosen = [
        arm
        for arm in arms(tuple(given.sections or SECTIONS), tiny)
        if not given.only or arm.name in given.only or arm.kind == "build"
    ]
    given.out.mkdir(parents=True, exist_ok=True)
    rows = measure(chosen, device, given.seconds, tiny)
    facts = {"device": _name(device), "size": given.size, "rows": rows}
    (given.out / "gpu.json").write_text(json.dumps(facts, indent=1, default=str) + "\n")
    (given.out / "gpu.md").write_text(table(facts))
    print(table(facts))


def measure(chosen: list[Arm], device: str, seconds: float, tiny: bool) -> list[dict[str, Any]]:
    """A row for every arm; a model is removed before the next one is made."""
    context, end, rows = _context(device), time.monotonic() + seconds, []
    with tempfile.TemporaryDirectory() as made:
        folder, section = Path(made), ""
        for arm in chosen:
            if arm.section != section:
                shutil.rmtree(folder / section, ignore_errors=True) if section else None
                section = arm.section
            left, start = end - time.monotonic(), time.monotonic()
            if left < 5:
                found: dict[str, Any] = {"failed": f"not run: the {seconds:g} s are over"}
            else:
                found = apart(context, arm, device, folder, tiny, min(arm.limit, left))
            rows.append({"section": arm.section, "arm": arm.name, "wall s": time.monotonic() - start, **found})
            print(f"{arm.section}: {arm.name}: {_note(rows[-1]) or 'done'} ({rows[-1]['wall s']:.1f} s)", flush=True)
    return rows


def apart(context: Any, arm: Arm, device: str, folder: Path, tiny: bool, limit: float) -> dict[str, Any]:
    """What an arm found in a process of its own, or ``{"failed": why}``."""
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(there, arm, device, folder, tiny))
    process.start()
    there.close()
    try:
        if not here.poll(limit):
            return {"failed": f"took more than {limit:.0f} s"}
        return dict(here.recv())
    except EOFError:
        process.join()
        return {"failed": f"the process ended with {process.exitcode}"}
    finally:
        process.kill()
        process.join()
        here.close()


def _serve(line: Connection, arm: Arm, device: str, folder: Path, tiny: bool) -> None:
    try:
        found = run(arm, device, folder, tiny)
    except BaseException as error:
        traceback.print_exc()
        words = " ".join(str(error).split()) or type(error).__name__
        found = {"failed": f"{type(error).__name__}: {words[:300]}"}
    line.send(found)
    line.close()


def _context(device: str) -> Any:
    """How processes start: forked from one with all imports, or anew where a device cannot be used after that."""
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # asking for devices must not open them before a fork
    forked = multiprocessing.get_context("forkserver")
    forked.set_forkserver_preload(PRELOADED)
    here, there = forked.Pipe(duplex=False)
    process = forked.Process(target=_try_device, args=(there, device))
    process.start()
    there.close()
    try:
        works = here.poll(120) and here.recv()
    except EOFError:
        works = False
    process.kill()
    process.join()
    return forked if works else multiprocessing.get_context("spawn")


def _try_device(line: Connection, device: str) -> None:
    import torch

    if device == "fakegpu":
        importlib.import_module("tests.fakegpu")  # which makes the device
    line.send(bool((torch.ones(2, device=device) + 1).cpu().eq(2).all()))


def _device(name: str) -> str:
    """The accelerator's type without opening it."""
    if name != "auto":
        return name
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _name(device: str) -> str:
    """After the arms are done, so that the device may be opened."""
    if not device.startswith("cuda"):
        return device
    import torch

    return torch.cuda.get_device_name(device)


def table(facts: dict[str, Any]) -> str:
    """The rows as markdown."""
    lines = [f"{facts['device']}, size {facts['size']}", ""]
    lines += ["| section | arm | " + " | ".join(COLUMNS) + " | |", "|---" * (len(COLUMNS) + 3) + "|"]
    for row in facts["rows"]:
        cells = [_number(row.get(column)) for column in COLUMNS]
        lines.append(f"| {row['section']} | {row['arm']} | " + " | ".join(cells) + f" | {_note(row)} |")
    return "\n".join(lines) + "\n"


def _number(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) and value == value else ""


def _note(row: dict[str, Any]) -> str:
    """What a row says in words: why there are no numbers, or those that have no column."""
    said = row.get("failed") or row.get("skipped") or row.get("note")
    if said:
        return str(said).replace("|", "/")
    further = [key for key in row if key not in (*COLUMNS, "section", "arm", "wall s")]
    return ", ".join(f"{key} {_number(row[key])}" for key in further)


if __name__ == "__main__":
    main()
