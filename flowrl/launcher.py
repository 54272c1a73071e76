"""What ``torchrun`` and ``accelerate launch`` tell the processes that they start, in environment variables."""

from __future__ import annotations

import os
import platform
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

from flowrl.errors import UserError
from flowrl.processes import LAUNCHER_VARIABLES


@dataclass(frozen=True)
class Launch:
    """This process among those that were started together."""

    rank: int
    size: int
    local_rank: int
    """Its number on this machine, which is that of its accelerator."""
    local_size: int
    """Processes on this machine."""
    address: str
    port: int
    """Where the processes meet."""
    served: bool
    """Whether the launcher itself keeps the meeting place; otherwise rank 0 does."""
    attempt: str
    """Launchers may start all processes once more; each attempt meets anew."""


def launch() -> Launch | None:
    """How this process was launched; None where it is the only one. Raises `UserError` for variables that contradict
    each other."""
    size = _number("WORLD_SIZE", 1)
    if size == 1:
        return None
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if missing:
        raise UserError(
            f"the environment says WORLD_SIZE={size} but not {', '.join(missing)}; start with `torchrun -m flowrl "
            "...` or `accelerate launch -m flowrl ...`, or unset WORLD_SIZE to run in one process"
        )
    rank, local = _number("RANK"), _number("LOCAL_RANK", 0)
    if not 0 <= rank < size:
        raise UserError(f"the environment says RANK={rank} of WORLD_SIZE={size}; ranks count from 0, so mend one")
    return Launch(
        rank,
        size,
        local,
        _number("LOCAL_WORLD_SIZE", 1),
        os.environ["MASTER_ADDR"],
        _number("MASTER_PORT"),
        os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"),
    )


def is_first() -> bool:
    """Whether this process is rank 0, which alone writes files and talks to the terminal. Raises as `launch`."""
    found = launch()
    return found is None or found.rank == 0


def watch_the_start() -> None:
    """Until the ranks have met (`flowrl.runtime.launch`), say which one died where the launcher ends this process
    because of it."""
    if launch() is not None:
        signal.signal(signal.SIGTERM, ended_early)


def ended_early(number: int, frame: FrameType | None) -> NoReturn:
    """The handler of SIGTERM while programs are imported: the first process of the machine that is left says it."""
    found, left = launch(), _local_ranks_left()
    if found is not None and left and min(left) == found.local_rank:
        for local in sorted(set(range(found.local_size)) - left):
            print(
                f"error: rank {found.rank - found.local_rank + local} on {platform.node()} ended before the ranks had "
                "met; nothing was changed, so start again",
                file=sys.stderr,
                flush=True,
            )
    os._exit(128 + number)


def _local_ranks_left() -> set[int]:
    """Of the launcher's processes on this machine; empty where the system does not tell."""
    found = set()
    for file in Path("/proc").glob(f"{os.getppid()}/task/*/children"):
        for child in file.read_text().split():
            with suppress(OSError, ValueError):  # it has ended
                said = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
                found |= {int(entry.partition(b"=")[2]) for entry in said if entry.startswith(b"LOCAL_RANK=")}
    return found


def forget() -> None:
    """Be the only process from here on."""
    for name in LAUNCHER_VARIABLES:
        os.environ.pop(name, None)


CHILDREN = "FLOWRL_LOCAL_RANK"
"""The variable that tells child processes, which get no `LAUNCHER_VARIABLES`, which accelerator is theirs."""


def own_accelerator(kind: str, count: int) -> str:
    """The device of a ``kind`` that is this process' alone: ``cuda``, or ``cuda:1`` for the second of a machine's
    processes. ``count``: how many this machine has. Raises `UserError` where there are fewer than processes."""
    found = launch()
    if found is None and not os.environ.get(CHILDREN):
        return kind
    number = _number(CHILDREN) if found is None else found.local_rank
    if number >= count:
        raise UserError(
            f"process {number} of this machine has no {kind} device of its own, as torch sees {count}; start at most "
            f"{count} processes on it (--nproc-per-node {count}), or set model.device=cpu"
        )
    return f"{kind}:{number}"


def _number(name: str, default: int | None = None) -> int:
    text = os.environ.get(name) or ("" if default is None else str(default))
    try:
        return int(text)
    except ValueError:
        raise UserError(f"the environment says {name}={text!r}, which is no number; launchers set it") from None
