"""Whether a network with a reloaded adapter is the network that was trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from flowrl.errors import UserError
from flowrl.models.adapters import peft
from flowrl.models.host_layers import computing_device, fetch_layers, has_host_layers


def check_adapter(ours: nn.Module, theirs: nn.Module, to: str) -> None:
    """Every adapted layer of the reloaded network has the live tensors and their strength. Early in training the
    adapter's effect is below rounding, so predictions alone would not tell an ignored file from a good one."""
    live, reloaded = _layers(ours), _layers(theirs)
    if live.keys() != reloaded.keys():
        odd = sorted(live.keys() ^ reloaded.keys())
        raise UserError(f"the {to} export does not reach {len(odd)} layers after reloading ({odd[0]}, ...)")
    for name, (scale, *tensors) in live.items():
        other_scale, *other = reloaded[name]
        same = abs(scale - other_scale) <= 1e-6 * scale and all(
            torch.allclose(a.float(), b.to(a.device).float(), rtol=1e-2, atol=1e-6)
            for a, b in zip(tensors, other, strict=True)
        )
        if not same:
            raise UserError(f"the {to} export reloads {name} with other weights or another strength")


def check_updates(ours: nn.Module, theirs: nn.Module, to: str) -> None:
    """Every layer of the reloaded network has the update ``scale * B @ A`` of the live one, but for the rounding of the
    factors to the precision they are loaded in. For formats that join and split layers, or put the strength into the
    tensors."""
    live, reloaded = _layers(ours), _layers(theirs)
    for name in live.keys() | reloaded.keys():
        given = next(found[name] for found in (live, reloaded) if name in found)
        first, second = (_update(found.get(name), given) for found in (live, reloaded))
        if not float((first - second.to(first.device)).norm()) <= _rounding(given, reloaded.get(name, given)[1].dtype):
            raise UserError(f"the {to} export reloads {name} with another update")


def _update(layer: tuple[Any, ...] | None, like: tuple[Any, ...]) -> Tensor:
    scale, down, up, *_ = layer or (0.0, *like[1:])
    return scale * up.float().flatten(1) @ down.float().flatten(1)


def check_merged(ours: nn.Module, theirs: nn.Module) -> None:
    """Every weight of the reloaded network is the live one, with its adapter, but for rounding to its precision."""
    live = peft.merged_weights(ours)
    for name, tensor in theirs.state_dict().items():
        wanted = live[name]()
        off = (wanted.float() - tensor.to(wanted.device).float()).norm()
        if not float(off) <= _precision(tensor.dtype) * float(wanted.float().norm()):
            raise UserError(f"the merged export reloads {name} with another weight")


def _precision(dtype: torch.dtype) -> float:
    """Largest relative difference of tensors that were rounded to it."""
    return max(torch.finfo(dtype).eps, 1e-5) if dtype.is_floating_point else 0.0


def _rounding(layer: tuple[Any, ...], dtype: torch.dtype) -> float:
    """The length that rounding both factors to ``dtype`` may give to an update. Each rank's part ``b_k a_k^T`` is off
    by ``|db_k| |a_k| + |b_k| |da_k|``, and the parts do not depend on each other. Single elements tell nothing: where
    the parts cancel, the sum is smaller than its error."""
    scale, down, up, *_ = layer
    kind = torch.finfo(dtype)
    relative, least = _precision(dtype), kind.smallest_normal * kind.eps  # of a value, and of one near zero
    a, b = down.float().flatten(1), up.float().flatten(1)
    across, along = a.norm(dim=1), b.norm(dim=0)  # [rank]
    off = (relative * along + least * len(b) ** 0.5) * across + along * (relative * across + least * a.shape[1] ** 0.5)
    return scale * float(off.norm())


def _layers(network: nn.Module) -> dict[str, tuple[Any, ...]]:
    """``(scale, A, B)``, with DoRA also the magnitudes, of every adapted layer; the adapter's name differs between
    loaders."""
    found = {}
    for name, module in network.named_modules():
        scaling: Any = getattr(module, "scaling", None)
        down: Any = getattr(module, "lora_A", None)
        up: Any = getattr(module, "lora_B", None)
        if isinstance(scaling, dict) and down and up:
            key = next(iter(down))
            size: Any = getattr(module, "lora_magnitude_vector", {})
            more = (size[key].weight.detach(),) if key in size else ()
            found[name] = (scaling[key], down[key].weight.detach(), up[key].weight.detach(), *more)
    return found


@contextmanager
def swapped_in(ours: nn.Module, theirs: nn.Module) -> Iterator[None]:
    """``theirs`` on the device of ``ours``, which waits in the host's memory: the device never holds both. Where
    layers of ours wait on the host, those of theirs do, too."""
    device = computing_device(ours)
    if has_host_layers(ours):
        fetch_layers(theirs, device)
        yield
        return
    if next(theirs.parameters()).device == device:
        yield
        return
    ours.to("cpu")
    theirs.to(device)
    try:
        yield
    finally:
        theirs.to("cpu")
        ours.to(device)
