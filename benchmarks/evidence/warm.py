"""Runs one after the other in a process that stays: importing is 8 of the 10 CPU seconds around a short run."""

from __future__ import annotations

import gc
import os
import sys
import traceback
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path


def command(arguments: list[str], folder: Path, log: Path) -> int:
    """``flowrl ARGUMENTS`` on the CPU clock in ``folder``, its output in ``log``: the exit code."""
    with log.open("w") as sink:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(sink.fileno(), stream.fileno())
    os.chdir(folder)
    sys.argv = ["flowrl", *arguments]
    from benchmarks.cpu_clock import use_cpu_clock
    from flowrl.cli import main

    use_cpu_clock()
    try:
        main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except Exception:  # a process of its own would end with it
        traceback.print_exc()
        return 1
    finally:
        gc.collect()
    return 0


@cache
def _processes() -> ProcessPoolExecutor:
    os.environ["OMP_NUM_THREADS"] = "1"  # torch reads it when it is imported
    return ProcessPoolExecutor(mp_context=get_context("spawn"))


def run(arguments: list[str], folder: Path, log: Path) -> int:
    """The exit code of `command` in a process with one thread, the next that is free."""
    return _processes().submit(command, arguments, folder, log).result()
