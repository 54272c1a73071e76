"""What ``torchrun`` and ``accelerate launch`` tell the processes that they start, in environment variables."""

from __future__ import annotations

import os
from dataclasses import dataclass

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
