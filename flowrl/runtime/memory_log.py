"""Measured peaks of memory, phase by phase, and how much there is."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from flowrl.devices import in_use, next_peak


class MemoryLog:
    """What was held at most since `collect`, by the label that was begun last: on every accelerator in use, and of the
    host (resident set) when a label ends."""

    def __init__(self, estimated: Mapping[str, tuple[float, float]]) -> None:
        self._estimated = estimated
        """Bytes of a device and of the host, by label."""
        self._label = "load"
        self._devices: dict[str, dict[str, int]] = {}
        self._host: dict[str, int] = {}

    def begin(self, label: str) -> None:
        """What is held from here on is that of ``label``."""
        self._close()
        self._label = label

    def collect(self, step: int) -> list[dict[str, Any]]:
        """A line for every label since the last call: measured bytes and, where there is one, the estimate."""
        self._close()
        lines = []
        for label, host in self._host.items():
            line: dict[str, Any] = {"step": step, "phase": label, "devices": self._devices[label], "host": host}
            if label in self._estimated:
                device, on_host = self._estimated[label]
                line["estimate"] = {"device": round(device), "host": round(on_host)}
            lines.append(line)
        self._devices, self._host = {}, {}
        return lines

    def _close(self) -> None:
        found = self._devices.setdefault(self._label, {})
        for device in in_use():
            found[str(device)] = max(found.get(str(device), 0), next_peak(device))
        self._host[self._label] = max(self._host.get(self._label, 0), resident())


def resident() -> int:
    """Bytes of this process in memory now; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def room(devices: Sequence[torch.device]) -> int | None:
    """Bytes that this process can hold on each of some accelerators, or, of none, of the host: what is free and what it
    holds already. ``None`` where nobody knows."""
    return min((_room_of(device) for device in devices), key=_known) if devices else _room_of_host()


def _room_of(device: torch.device) -> int | None:
    module: Any = torch.get_device_module(device)
    if not hasattr(module, "mem_get_info"):
        return None
    free, total = module.mem_get_info(device)
    return min(int(total), int(free) + int(module.memory_reserved(device)))


def _known(count: int | None) -> int:
    """What is not known comes first."""
    return -1 if count is None else count


def _room_of_host() -> int | None:
    """By what the kernel says is available, and by the limit of a container (cgroup v2)."""
    found = []
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found.append(resident() + 1024 * int(next(li.split()[1] for li in lines if li.startswith("MemAvailable:"))))
    with suppress(OSError, ValueError):  # "max": no limit
        most, now = (int(Path(f"/sys/fs/cgroup/memory.{name}").read_text()) for name in ("max", "current"))
        found.append(resident() + max(most - now, 0))
    return min(found, default=None)
