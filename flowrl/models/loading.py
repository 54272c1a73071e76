"""What loading a model needs in every family: where it computes, in which precision, and quiet libraries."""

from __future__ import annotations

import functools
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from flowrl.errors import UserError, describe_exception, first_line, is_out_of_memory
from flowrl.models.lora import LoRAOptions

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class ModelSource:
    """Where a model was loaded from."""

    path: str
    """Folder or hub name."""
    trust_remote_code: bool = False


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
    name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    try:
        where = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"model.device {device!r} is not a torch device (auto, cpu, cuda, cuda:1, ...)") from error
    if where.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"model.device is {device!r} but torch sees no CUDA device; use device: cpu")
    return Placement(where, DTYPES[dtype])


def lora_or_full(full: bool, lora: LoRAOptions | None) -> LoRAOptions | None:
    """The adapter to train, ``None`` for all parameters. Raises `UserError` where both were asked for."""
    if full and lora is not None:
        raise UserError("model.full and model.lora exclude each other; remove one")
    return None if full else lora or LoRAOptions()


def check_model_name(source: str) -> None:
    """Raise `UserError` where ``source`` is neither a folder nor could be a name on the hub."""
    if not Path(source).is_dir() and (source.count("/") != 1 or source.startswith((".", "/", "~"))):
        raise UserError(
            f"model {source!r} is neither a folder nor a name on the Hugging Face hub (such as 'owner/model')"
        )


def load_error(source: str, error: Exception) -> UserError:
    """What a library's failure to load ``source`` is called here: its first line. Raises the error again where memory
    ran out."""
    if is_out_of_memory(error):
        raise error
    what = (
        "cannot be loaded from its folder" if Path(source).is_dir() else "is not a folder here and cannot be downloaded"
    )
    return UserError(f"model {source!r} {what}: {first_line(error)}")


@contextmanager
def model_errors(source: object) -> Iterator[None]:
    """What a model's own code or its library raises inside becomes a `UserError` that names the model; an exception of
    our own lines, which would be a bug, stays one, and so does running out of memory."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1].filename
        if is_out_of_memory(error) or Path(last).is_relative_to(Path(__file__).parents[1]):
            raise
        raise UserError(f"model {str(source)!r} fails when it is tried: {describe_exception(error)}") from error


def check_finite(module: nn.Module, source: str, part: str = "") -> None:
    """Raise `UserError` for weights that are NaN or infinite, by name: a sum per tensor, on its own device."""
    for name, parameter in module.named_parameters():
        if parameter.device.type != "meta" and not torch.isfinite(parameter.detach().sum(dtype=torch.float32)):
            broken = int((~torch.isfinite(parameter.detach())).sum())
            if broken:
                full = f"{part}.{name}" if part else name
                raise UserError(
                    f"model {source!r} is damaged: {broken:,} of {parameter.numel():,} numbers of {full} are NaN or "
                    "infinite; download it again, or load it with model.dtype=float32 or bfloat16"
                )


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Two libraries show a bar per component; a checkpoint that verifies its exports would repeat them each time."""
    import diffusers
    import transformers

    libraries = (diffusers.utils.logging, transformers.utils.logging)
    shown = [library.is_progress_bar_enabled() for library in libraries]
    for library in libraries:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, on in zip(libraries, shown, strict=True):
            if on:
                library.enable_progress_bar()


def compile_blocks(network: nn.Module) -> None:
    """Compile the blocks that repeat: of one kind, named by the network itself, they share one compilation."""
    declared: Any = network
    names = set(getattr(declared, "_repeated_blocks", None) or getattr(declared, "_no_split_modules", None) or ())
    found = [module for module in network.modules() if type(module).__name__ in names]
    kinds = Counter(type(module) for module in found)
    blocks = [module for module in found if kinds[type(module)] > 1]
    if not blocks:
        raise UserError(f"{type(network).__name__} has no repeated blocks to compile; set model.compile: false")
    for block in blocks:
        block.compile()


def checkpoint_blocks(network: nn.Module) -> None:
    """Recompute the activations of blocks that repeat: the members of the outermost lists of modules. Raises
    `UserError` where there are none.

    Transformers' own switch recomputes in training mode alone, in which OPT and others drop activations and whole
    layers at random by functions that no module stands for.
    """
    lists = {f"{name}.": module for name, module in network.named_modules() if isinstance(module, nn.ModuleList)}
    outermost = [stack for name, stack in lists.items() if not any(name != o and name.startswith(o) for o in lists)]
    blocks = [block for stack in outermost if len(stack) > 1 for block in stack]
    blocks = blocks or [block for stack in outermost for block in stack]  # ALBERT runs one block many times
    for block in blocks:
        block.forward = _recomputing(block.forward)
    if not blocks:
        raise UserError(f"{type(network).__name__} has no repeated blocks; set model.gradient_checkpointing: false")


def _recomputing(forward: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return functools.update_wrapper(call, forward)
