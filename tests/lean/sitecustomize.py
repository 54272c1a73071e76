"""Python runs this at its start in the processes that tests start: they do without bitsandbytes, as where the extra
`quantize` is not installed. PEFT imports it wherever it is, for a third of the seconds in which `flowrl train` starts,
and with it torch's compiler; what is quantised is tested in the process of the tests."""

from __future__ import annotations

from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

_found = PathFinder.find_spec


def _find(name: str, *where: Any) -> ModuleSpec | None:
    return None if name == "bitsandbytes" else _found(name, *where)


PathFinder.find_spec = staticmethod(_find)
