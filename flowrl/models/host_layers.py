"""Frozen layers of a network that wait on the host and are fetched for their calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from flowrl.devices import pinned
from flowrl.errors import UserError


def computing_device(network: nn.Module) -> torch.device:
    """Where a network computes: some of its layers may wait on the host."""
    places = [tensor.device for tensor in (*network.parameters(), *network.buffers())]
    return next((place for place in places if place.type != "cpu"), places[0])


def has_host_layers(network: nn.Module) -> bool:
    """Whether some of its layers wait on the host."""
    return len({parameter.device for parameter in network.parameters()}) > 1


def fetch_layers(network: nn.Module, device: torch.device) -> None:
    """Keep the frozen weights of every layer on the host, and fetch them when it is called; all else is on the device.

    Diffusers' own ``enable_sequential_cpu_offload`` puts other tensors in the place of parameters, trained ones too,
    and its group offloading moves those of a whole block, so here the frozen tensors of a layer are exchanged for its
    call alone. A graph keeps what it was called with: the update needs ``model.gradient_checkpointing`` to gain, and is
    right without. Raises `UserError` for layers with weights that are no plain tensors, such as quantised ones.
    """
    first = next(network.parameters(), None)  # pipelines ask it where the network is, so its layer stays there
    layers = [m for m in network.modules() if not any(True for _ in m.children())]
    waiting = [
        layer
        for layer in layers
        if any(not p.requires_grad for p in layer.parameters()) and all(p is not first for p in layer.parameters())
    ]
    kept: set[int] = set()
    for layer in waiting:
        for parameter in layer.parameters():
            if type(parameter) is not nn.Parameter:
                raise UserError(
                    f"model.offload=sequential cannot move the quantised weights of {type(network).__name__}; set "
                    "model.offload=encoders, or leave the quantisation out"
                )
            kept |= set() if parameter.requires_grad else {id(parameter)}
    for module in network.modules():
        module._apply(lambda tensor: tensor if id(tensor) in kept else tensor.to(device), recurse=False)
    for layer in waiting:
        frozen = {name: p for name, p in layer.named_parameters(recurse=False) if not p.requires_grad}
        for parameter in frozen.values() if pinned(device) else ():
            parameter.data = parameter.data.pin_memory()
        layer.register_forward_pre_hook(_fetch(frozen, device))
        layer.register_forward_hook(_put_back(frozen), always_call=True)


def _fetch(frozen: dict[str, nn.Parameter], device: torch.device) -> Callable[[nn.Module, Any], None]:
    def fetch(layer: nn.Module, _: Any) -> None:
        for name, parameter in frozen.items():
            there = parameter.data.to(device, non_blocking=True)
            layer._parameters[name] = nn.Parameter(there, requires_grad=False)

    return fetch


def _put_back(frozen: dict[str, nn.Parameter]) -> Callable[[nn.Module, Any, Any], None]:
    def put_back(layer: nn.Module, _: Any, __: Any) -> None:
        layer._parameters.update(frozen)

    return put_back
