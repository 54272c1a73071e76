"""The program that serves a run's page beside the training: ``python -m flowrl.report.follow RUN``. It ends with
whoever started it, by its standard input."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

from flowrl.errors import UserError
from flowrl.report.watching import serve


def main() -> None:
    """Serve until standard input ends."""
    threading.Thread(target=_end_with_input, daemon=True).start()
    try:
        serve([Path(sys.argv[1])], None, lambda text: print(f"live page: {text}", flush=True))
    except UserError as error:
        print(f"no live page: {error}", flush=True)


def _end_with_input() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


if __name__ == "__main__":
    main()
