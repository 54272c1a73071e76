"""What differs between accelerators, and how the host talks to them without waiting more than it must."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor


@cache
def has_float64(kind: str) -> bool:
    """Whether devices of this type (``cuda``, ``mps``, ...) compute in float64; Apple's and some of Intel's do not."""
    try:
        return bool((torch.ones(1, dtype=torch.float64, device=kind) * 2).cpu() == 2)
    except (TypeError, RuntimeError):
        return False


def wide(x: Tensor) -> Tensor:
    """``x`` in float64: on its device, or on the host where the device has none. Gradients pass through."""
    return x.double() if has_float64(x.device.type) else x.cpu().double()


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
