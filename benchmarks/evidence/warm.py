"""Runs as forks of a process that has imported everything: importing is 8 of the 10 CPU seconds around a short run."""

from __future__ import annotations

import os
import sys
from multiprocessing import get_context
from pathlib import Path


def command(arguments: list[str], folder: Path, log: Path) -> None:
    """``flowrl ARGUMENTS`` on the CPU clock, in ``folder``, its output in ``log``. It ends the process."""
    with log.open("w") as sink:
        for stream in (1, 2):
            os.dup2(sink.fileno(), stream)
    os.chdir(folder)
    sys.argv = ["flowrl", *arguments]
    from benchmarks.cpu_clock import use_cpu_clock
    from flowrl.cli import main

    use_cpu_clock()
    main()


def run(arguments: list[str], folder: Path, log: Path) -> int:
    """The exit code of `command` in a process of its own with one thread, forked from the one that has imported."""
    os.environ["OMP_NUM_THREADS"] = "1"  # torch reads it when it is imported
    context = get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.evidence.preloaded"])
    child = context.Process(target=command, args=(arguments, folder, log))
    child.start()
    child.join()
    return -1 if child.exitcode is None else child.exitcode
