"""Which model: the folder or hub id that it was loaded from, and whether what came from there is whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from flowrl.errors import UserError
from flowrl.models.hub import is_hub_id
from flowrl.models.quantization import is_whole


@dataclass(frozen=True)
class ModelSource:
    """Where a model was loaded from."""

    path: str
    """Folder or hub name."""
    trust_remote_code: bool = False


def check_model_name(source: str) -> None:
    """Raise `UserError` where ``source`` is neither a folder nor could be a name on the hub."""
    if not Path(source).is_dir() and not is_hub_id(source):
        raise UserError(
            f"model {source!r} is neither a folder nor a name on the Hugging Face hub (such as 'owner/model')"
        )


def check_finite(module: nn.Module, source: str, part: str = "") -> None:
    """Raise `UserError` for weights that are NaN or infinite, by name: a sum per tensor, on its own device."""
    for name, parameter in module.named_parameters():
        if not is_whole(parameter):
            full = f"{part}.{name}" if part else name
            raise UserError(f"model {source!r} is damaged: numbers of {full} are NaN or infinite; download it again")
        if parameter.device.type != "meta" and not torch.isfinite(parameter.detach().sum(dtype=torch.float32)):
            broken = int((~torch.isfinite(parameter.detach())).sum())
            if broken:
                full = f"{part}.{name}" if part else name
                raise UserError(
                    f"model {source!r} is damaged: {broken:,} of {parameter.numel():,} numbers of {full} are NaN or "
                    "infinite; download it again, or load it with model.dtype=float32 or bfloat16"
                )


@contextmanager
def without_load_reports() -> Iterator[None]:
    """`without_progress_bars`, nor a table of weights that a checkpoint has beyond or short of its class: those that
    matter are an error of ours."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with without_progress_bars():
            yield
    finally:
        logging.set_verbosity(before)


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
