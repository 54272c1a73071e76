"""Commands of flowrl in a process with the pretended accelerator.

    python -m tests.device run REPORT < commands.json     a list of command lines; REPORT: what the device saw of each
    python -m tests.device sweep [PRESET ...]              every preset, an iteration each, against the CPU
    python -m tests.device waits                           how often each loop waits for the device

The import of the device changes torch for the whole process, so tests start this in one of its own.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.device import loops, sweep
from tests.device.commands import run

if __name__ == "__main__":
    task, *given = sys.argv[1:] or ["help"]
    if task == "run":
        found = []
        for line in json.load(sys.stdin):
            found.append(run(line))
            if found[-1]["code"] != 0:
                break
        Path(given[0]).write_text(json.dumps(found))
    elif task == "sweep":
        sys.exit(sweep.main(given))
    elif task == "waits":
        print(json.dumps(loops.measure(), indent=1))
    else:
        sys.exit(str(__doc__))
