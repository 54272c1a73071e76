"""A pretended accelerator: device type ``fakegpu``, for tests of device handling on machines without a GPU.

    from tests import fakegpu           # builds the extension on the first import (g++, about a minute)
    with fakegpu.watch() as events:     # every copy, wait and float64 kernel, with the Python line that caused it
        model.to("fakegpu")(x.to("fakegpu"))
    print(events.table())

Kernels are the CPU's, on the same memory, so results are those of the CPU bit for bit; mixing devices raises as CUDA
does. The import changes torch for the whole process (a device of that name, parameters that keep their identity in
``module.to``), so tests import it in a process of their own (``tests.device``).
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch.utils.cpp_extension import load

NAME = "fakegpu"
_HERE = Path(__file__).parent
_SOURCE = _HERE / "fakegpu.cpp"


def _build() -> Path:
    """A folder of this source and this torch, so that the extension is built once for both."""
    key = hashlib.sha256(_SOURCE.read_bytes() + f"{torch.__version__} {sys.version}".encode()).hexdigest()[:16]
    cache = os.environ.get("FAKEGPU_CACHE") or os.environ.get("XDG_CACHE_HOME") or tempfile.gettempdir()
    folder = Path(cache) / f"fakegpu-{key}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


_C = load(f"{NAME}_native", [str(_SOURCE)], extra_cflags=["-O1"], build_directory=str(_build()))
if os.environ.get("FAKEGPU_FLOAT64") == "0":  # as Apple's devices
    _C.allow_float64(False)


class _NoGrad(torch.no_grad):
    """`torch.inference_mode` without inference tensors."""

    def __init__(self, mode: bool = True) -> None:
        super().__init__()


def _device_module() -> ModuleType:
    module = ModuleType(f"torch.{NAME}")
    module.is_available = lambda: True
    module.is_initialized = lambda: True
    module.is_bf16_supported = lambda *_: True
    module._is_in_bad_fork = lambda: False
    module._lazy_init = lambda: None
    module.device_count = _C.device_count
    module.current_device = _C.current_device
    module.set_device = lambda which: _C.set_device(which if isinstance(which, int) else torch.device(which).index or 0)
    module.synchronize = lambda *_: _C.synchronize()
    module.empty_cache = lambda: None
    module.get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]
    module.default_generators = tuple(_C.default_generator(i) for i in range(_C.device_count()))

    def index(device: Any) -> int:
        if isinstance(device, int):
            return device
        found = torch.device(device).index if device is not None else None
        return _C.current_device() if found is None else found

    module.memory_allocated = lambda device=None: _C.memory_allocated(index(device))
    module.max_memory_allocated = lambda device=None: _C.max_memory_allocated(index(device))
    module.reset_peak_memory_stats = lambda device=None: _C.reset_peak_memory_stats(index(device))
    module.get_rng_state = lambda device=None: module.default_generators[index(device)].get_state()
    module.set_rng_state = lambda state, device=None: module.default_generators[index(device)].set_state(state)
    module.manual_seed = lambda seed: module.default_generators[index(None)].manual_seed(seed)
    module.manual_seed_all = lambda seed: [g.manual_seed(seed) for g in module.default_generators]
    module.initial_seed = lambda: module.default_generators[index(None)].initial_seed()

    class device:  # noqa: N801, as torch.cuda.device
        def __init__(self, which: Any) -> None:
            self._to = index(which)

        def __enter__(self) -> None:
            self._from = _C.current_device()
            _C.set_device(self._to)

        def __exit__(self, *_: Any) -> None:
            _C.set_device(self._from)

    module.device = device
    return module


torch.utils.rename_privateuse1_backend(NAME)
torch._register_device_module(NAME, _device_module())
_QUANTIZED = [torch.quint8, torch.quint4x2, torch.quint2x4, torch.qint32, torch.qint8]
torch.utils.generate_methods_for_privateuse1_backend(unsupported_dtype=_QUANTIZED)

# `module.to("cuda")` keeps the parameters' identity; for a PrivateUse1 device torch does so only if asked. Without it,
# whoever holds parameters from before `.to` trains tensors that the network no longer uses (FAKEGPU_SWAP=0 shows it).
# Tensors of the fallback's kernels have a version counter, which inference tensors must not get.
torch.inference_mode = _NoGrad  # type: ignore[misc]
torch.__future__.set_swap_module_params_on_conversion(os.environ.get("FAKEGPU_SWAP", "1") == "1")


WAITS = ("item", "nonzero", "d2h")


class Events:
    """What happened while watched: ``rows[phase, kind, place, what] = [times, bytes]``; who watches sets ``phase``."""

    def __init__(self, inside: str | None) -> None:
        self.inside = inside
        self.phase = ""
        self.rows: dict[tuple[str, str, str, str], list[int]] = {}
        self.totals: Counter[str] = Counter()
        self.phases: dict[str, Counter[str]] = {}

    def __call__(self, kind: str, what: str, count: int) -> None:
        self.totals[kind] += 1
        self.phases.setdefault(self.phase, Counter())[kind] += 1
        detail = what if kind in ("float64", "nonzero", "host_index") else ""
        row = self.rows.setdefault((self.phase, kind, self._place(), detail), [0, 0])
        row[0] += 1
        row[1] += count

    def _place(self) -> str:
        """The innermost frame below ``inside``, and the innermost of all where that is another one."""
        frame, outer, first = sys._getframe(1).f_back, None, None
        while frame is not None:
            name = frame.f_code.co_filename
            if first is None and "/torch/" not in name:
                first = f"{name}:{frame.f_lineno}"
            if self.inside and self.inside in name:
                outer = f"{name[name.index(self.inside) + len(self.inside) :]}:{frame.f_lineno} {frame.f_code.co_name}"
                break
            frame = frame.f_back
        if outer is None:
            return (first or "autograd").split("site-packages/")[-1]
        inner = (first or "").split("site-packages/")[-1]
        return outer if self.inside and self.inside in (first or "") else f"{outer} <- {inner}"

    def waits(self, phase: str | None = None) -> int:
        """How often the host waited for the device: for a number, for a shape that depends on data, for a copy."""
        return self._count(WAITS, phase)

    def blocking_copies(self, phase: str | None = None) -> int:
        """How many copies to the device were of the kind for which CUDA waits as well."""
        return self._count(("h2d", "h2d_pageable"), phase)

    def _count(self, kinds: tuple[str, ...], phase: str | None) -> int:
        found = self.totals if phase is None else self.phases.get(phase, Counter())
        return sum(found[kind] for kind in kinds)

    def table(self, most: int = 60) -> str:
        """The most frequent events, one line each: times, bytes, phase, kind, place, kernel."""
        rows = sorted(self.rows.items(), key=lambda kv: -kv[1][0])
        return "\n".join(f"{v[0]:6d} {v[1]:12d} B  {k[0]:10s} {k[1]:12s} {k[2]}  {k[3]}" for k, v in rows[:most])


@contextmanager
def watch(inside: str | None = None) -> Iterator[Events]:
    """Collect events; ``inside`` is a part of the paths of the files whose lines are named."""
    events = Events(inside)
    _C.listen(events)
    try:
        yield events
    finally:
        _C.listen(None)
