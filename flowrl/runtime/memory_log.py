"""Measured peaks of memory, phase by phase."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
