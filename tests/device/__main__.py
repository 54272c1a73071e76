"""Commands of flowrl in a process with the pretended accelerator: ``python -m tests.device REPORT < commands.json``.

Standard input is a JSON list of argument lists. REPORT becomes a JSON list: exit code, events by kind, host waits and
peak bytes of each command. It stops at the first that fails.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path

import torch

from flowrl.cli import main
from tests import fakegpu


def run(arguments: list[str]) -> dict[str, object]:
    """One command, and what the device saw of it."""
    gc.collect()  # what the command before left
    sys.argv = ["flowrl", *arguments]
    torch.fakegpu.reset_peak_memory_stats()  # type: ignore[attr-defined]
    with fakegpu.watch("/flowrl/") as events:
        try:
            main()
            code: object = 0
        except SystemExit as ended:
            code = ended.code or 0
    peak = torch.fakegpu.max_memory_allocated()  # type: ignore[attr-defined]
    return {"code": code, "events": dict(events.totals), "waits": events.waits, "peak": peak, "table": events.table()}


if __name__ == "__main__":
    report, found = Path(sys.argv[1]), []
    for line in json.load(sys.stdin):
        found.append(run(line))
        if found[-1]["code"] != 0:
            break
    report.write_text(json.dumps(found))
