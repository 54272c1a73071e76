"""Where and how a network computes: its device and precision, compiled blocks, recomputed activations."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from flowrl.devices import count, default_kind
from flowrl.errors import UserError
from flowrl.launcher import launch, own_accelerator

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
GRAPHS = 128
"""How many graphs torch may compile of one function before it gives up."""


@dataclass(frozen=True)
class Placement:
    """Where and in which precision the frozen parts compute."""

    device: torch.device
    dtype: torch.dtype

    def precision(self) -> AbstractContextManager[Any]:
        """Context of the network: trained parameters are float32, so half precision needs autocast."""
        half = self.dtype != torch.float32
        return torch.autocast(self.device.type, self.dtype) if half else nullcontext()


def place(dtype: str, device: str) -> Placement:
    """Placement by the names of a config. Raises `UserError` for unknown ones and for what cannot train there."""
    if dtype not in DTYPES:
        raise UserError(f"model.dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    name = default_kind() if device == "auto" else device
    try:
        where = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"model.device {device!r} is not a torch device (auto, cpu, cuda, cuda:1, ...)") from error
    if where.type not in ("cpu", "meta"):
        if not count(where.type):
            raise UserError(
                f"model.device is {device!r} but torch sees no {where.type.upper()} device; use device: cpu"
            )
        if where.index is None:
            where = torch.device(own_accelerator(where.type, count(where.type)))
    found = launch()
    if where.index is not None and device not in ("auto", where.type) and found is not None and found.local_size > 1:
        raise UserError(
            f"model.device={device} is one device, and {found.local_size} processes share this machine; set "
            "model.device=auto, which gives each its own"
        )
    return Placement(where, DTYPES[dtype])


def trained_precision(name: str, frozen: torch.dtype) -> torch.dtype:
    """The precision of trained weights by its name in a config. Raises `UserError` for one that cannot be trained."""
    if name not in ("float32", "bfloat16") or (name == "bfloat16" and frozen != torch.bfloat16):
        raise UserError(
            f"model.trained_dtype must be float32, or bfloat16 with model.dtype=bfloat16, got {name!r} with"
            f" {str(frozen).removeprefix('torch.')}"
        )
    return DTYPES[name]


def compile_blocks(network: nn.Module, backend: Any = "inductor") -> None:
    """Compile the blocks that repeat, with any number of rows: of one kind, named by the network itself, they share
    their graphs. There is one graph without gradients and one with them (one more for a first block, whose input needs
    none); a single row has graphs of its own, as torch always specialises on 1. Raises `UserError` where no block
    repeats."""
    blocks = repeated_blocks(network)
    if not blocks:
        raise UserError(f"{type(network).__name__} has no repeated blocks to compile; set model.compile: false")
    # graphs are counted by function, which all blocks share: blocks of other widths, or a last block that differs, go
    # beyond torch's 8, where it would run them uncompiled from then on
    limits: Any = torch._dynamo.config
    name = "recompile_limit" if hasattr(limits, "recompile_limit") else "cache_size_limit"
    setattr(limits, name, max(getattr(limits, name), GRAPHS))
    for block in blocks:
        block.forward = _any_batch(torch.compile(block.forward, backend=backend), block.forward)


def _any_batch(compiled: Callable[..., Any], forward: Callable[..., Any]) -> Callable[..., Any]:
    """``compiled`` with the first axis of every tensor declared to vary."""

    def call(*args: Any, **kwargs: Any) -> Any:
        for value in (*args, *kwargs.values()):
            if isinstance(value, Tensor) and value.dim() and len(value) > 1:
                torch._dynamo.maybe_mark_dynamic(value, 0)
        return compiled(*args, **kwargs)

    return functools.update_wrapper(call, forward)


def repeated_blocks(network: nn.Module) -> list[nn.Module]:
    """The blocks that the network itself names as repeated, in its order, of kinds that it has several of."""
    declared: Any = network
    names = set(getattr(declared, "_repeated_blocks", None) or getattr(declared, "_no_split_modules", None) or ())
    found = [module for module in network.modules() if type(module).__name__ in names]
    kinds = Counter(type(module) for module in found)
    return [module for module in found if kinds[type(module)] > 1]


def checkpoint_blocks(network: nn.Module) -> None:
    """Recompute the activations of blocks that repeat: the members of the outermost lists of modules. Raises
    `UserError` where there are none.

    Transformers' own switch recomputes in training mode alone, in which OPT and others drop activations and whole
    layers at random by functions that no module stands for.
    """
    blocks = listed_blocks(network)
    for block in blocks:
        block.forward = _recomputing(block)
    if not blocks:
        raise UserError(f"{type(network).__name__} has no repeated blocks; set model.gradient_checkpointing: false")


def listed_blocks(network: nn.Module) -> list[nn.Module]:
    """The members of the outermost lists of modules that have several, else of those that have one."""
    lists = {f"{name}.": module for name, module in network.named_modules() if isinstance(module, nn.ModuleList)}
    outermost = [stack for name, stack in lists.items() if not any(name != o and name.startswith(o) for o in lists)]
    blocks = [block for stack in outermost if len(stack) > 1 for block in stack]
    return blocks or [block for stack in outermost for block in stack]  # ALBERT runs one block many times


def _recomputing(block: nn.Module) -> Callable[..., Any]:
    """A forward bound to its block, so that a copy of it, such as a critic has, recomputes with its own weights."""
    once = type(block).forward

    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        forward = functools.partial(once, self)
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return MethodType(functools.update_wrapper(call, once), block)
