"""What differs between accelerators, and how the host talks to them without waiting more than it must."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor


@cache
def has_float64(kind: str) -> bool:
    """Whether devices of this type (``cuda``, ``mps``, ...) compute in float64; Apple's and some of Intel's do not."""
    try:
        return bool((torch.ones(1, dtype=torch.float64, device=kind) * 2).cpu() == 2)
    except (TypeError, RuntimeError):
        return False


def float64_device(device: torch.device) -> torch.device:
    """The device, or the host where the device has no float64."""
    return device if has_float64(device.type) else torch.device("cpu")


def exact(x: Tensor) -> Tensor:
    """``x`` where float64 is: on its device, or on the host where the device has none. Gradients pass through."""
    return x.to(float64_device(x.device))


def wide(x: Tensor) -> Tensor:
    """``x`` in float64: on its device, or on the host where the device has none. Gradients pass through."""
    return exact(x).double()


def count(kind: str) -> int:
    """How many devices of a type (``cuda``, ``xpu``, ``mps``, ...) this machine has for torch."""
    try:
        module: Any = torch.get_device_module(kind)
        return int(module.device_count()) if module.is_available() else 0
    except (RuntimeError, AttributeError):  # a type this torch was not built with
        return 0


def default_kind() -> str:
    """The type of this machine's accelerator, or ``cpu``."""
    kind = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return "cpu" if kind is None or not count(kind.type) else kind.type


def accelerators() -> list[str]:
    """The names of this machine's accelerators."""
    kind = default_kind()
    if kind == "cpu":
        return []
    module: Any = torch.get_device_module(kind)
    name = getattr(module, "get_device_name", lambda index: f"{kind}:{index}")
    return [str(name(index)) for index in range(count(kind))]


def in_use() -> list[torch.device]:
    """The accelerators on which this process holds memory, or has held it since peaks were counted anew. Asking does
    not open any that it has not used."""
    if not torch.accelerator.is_available():
        return []
    kind = torch.accelerator.current_accelerator()
    assert kind is not None
    module: Any = torch.get_device_module(kind)
    if not getattr(module, "is_initialized", lambda: True)():
        return []
    devices = [torch.device(kind.type, index) for index in range(module.device_count())]
    return [device for device in devices if _peak(device) > 0]


def synchronize() -> None:
    """Wait until all accelerators in use have done what they were told."""
    for device in in_use():
        torch.accelerator.synchronize(device)


def allocated(device: torch.device) -> int:
    """Bytes of tensors on an accelerator now."""
    module: Any = torch.get_device_module(device)
    if device.type == "mps":
        return int(module.current_allocated_memory())
    return int(module.memory_allocated(device))


_highest: dict[torch.device, int] = {}
"""Of the peaks that `next_peak` has begun anew."""


def _peak(device: torch.device) -> int:
    module: Any = torch.get_device_module(device)
    return allocated(device) if device.type == "mps" else int(module.max_memory_allocated(device))


def peak_allocated(device: torch.device) -> int:
    """Most bytes of tensors on an accelerator since `reset_peaks`; on Apple's, which keep none, those of now."""
    return max(_highest.get(device, 0), _peak(device))


def next_peak(device: torch.device) -> int:
    """Most bytes of tensors on an accelerator since the last call of it."""
    found = _peak(device)
    _highest[device] = max(_highest.get(device, 0), found)
    if device.type != "mps":
        module: Any = torch.get_device_module(device)
        module.reset_peak_memory_stats(device)
    return found


def reset_peaks() -> None:
    """Begin to count `peak_allocated` anew, on all accelerators in use."""
    for device in in_use():
        next_peak(device)
    _highest.clear()


PAGES = 2**16
"""Bytes up to which CUDA takes a copy from ordinary memory at once; a larger one waits, unless it is pinned."""


def pinned(device: torch.device) -> bool:
    """Whether host memory for copies to ``device`` should be pinned, so that they need no waiting."""
    return device.type not in ("cpu", "mps", "meta")


def put(x: Tensor, device: torch.device | str | Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """``x`` on a device and in a type, as ``x.to(device, dtype)``, which waits until the device has done all it was
    told before; this does not. A tensor stands for its device and, unless one is given, its type."""
    if isinstance(device, Tensor):
        device, dtype = device.device, dtype or device.dtype
    device = torch.device(device)
    if x.device.type != "cpu" or not pinned(device):
        return x.to(device, dtype)
    if x.nbytes > PAGES:
        x = x.contiguous().pin_memory()
    return x.to(device, dtype, non_blocking=True)


def fetch(x: Tensor, into: Tensor) -> None:
    """Copy a tensor into host memory. If that is pinned, it holds the numbers only after the next wait for the device:
    another copy to the host, or `synchronize`."""
    into.copy_(x, non_blocking=pinned(x.device))


def to_host(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The same tensors without gradient on the host, in one copy from each device, so that the host waits once.
    Numbers of all types arrive as they are, but for integers beyond 2^53."""
    found = [tensor.detach() for tensor in tensors]
    for device in {tensor.device for tensor in found if tensor.device.type != "cpu"}:
        there = [i for i, tensor in enumerate(found) if tensor.device == device]
        types = {found[i].dtype for i in there}
        if len(types) > 1 and not has_float64(device.type):
            found = [tensor.cpu() if tensor.device == device else tensor for tensor in found]
            continue
        common = types.pop() if len(types) == 1 else torch.float64
        flat = torch.cat([found[i].reshape(-1).to(common) for i in there]).cpu()
        for i, part in zip(there, flat.split([found[i].numel() for i in there]), strict=True):
            found[i] = part.view(found[i].shape).to(found[i].dtype)
    return found
