"""Processes forked from one that has imported what runs import, which takes seconds: each is a process of its own, with
its own signals, streams and end, and only its imports were made before it began."""

from __future__ import annotations

import multiprocessing
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.context import ForkServerContext
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp

IMPORTED = (
    "peft",
    "transformers.modeling_utils",
    "diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3",
    "flowrl.train",
    "flowrl.cli.train",
    "tests.training",
)


def forking() -> ForkServerContext:
    """Where such processes come from. The one that has imported starts with the first, and ends with the tests."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(IMPORTED))
    return context


def _flowrl(arguments: Sequence[str], folder: str, environment: Mapping[str, str], out: str, errors: str) -> None:
    """What ``python -m flowrl`` does in that folder."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.path.insert(0, folder)
    sys.argv = ["flowrl", *arguments]
    for number, path in ((1, out), (2, errors)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)

    import torch

    from flowrl import exit_guard
    from flowrl.cli import main

    exit_guard._PROCESS = os.getpid()  # which it took when it was imported
    torch.set_num_threads(1)
    main()


def flowrl(
    folder: Path, *arguments: str, environment: Mapping[str, str] | None = None, size: int = 1, seconds: float = 600
) -> subprocess.CompletedProcess[str]:
    """`flowrl` in ``size`` processes that meet as a launcher's do, to its end: the largest code, and what all said."""
    told = dict(os.environ if environment is None else environment)
    context = forking()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(size)}
    processes, words = [], Path(mkdtemp())
    for rank in range(size):
        mine = {**meeting, "RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(size)}
        given = (arguments, str(folder), told | (mine if size > 1 else {}), str(words / "out"), str(words / "errors"))
        processes.append(context.Process(target=_flowrl, args=given, daemon=True))
        processes[-1].start()
    try:
        for process in processes:
            process.join(seconds)
            assert process.exitcode is not None, f"flowrl {' '.join(arguments)} does not end"
    finally:
        for process in processes:
            process.kill()
    codes = [process.exitcode or 0 for process in processes]
    said = [(words / name).read_text() for name in ("out", "errors")]
    rmtree(words)
    return subprocess.CompletedProcess(arguments, max(codes, key=abs), *said)
