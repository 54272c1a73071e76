"""The networks of a diffusers pipeline, each loaded by its own class so that weights its files lack are noticed.

`DiffusionPipeline.from_pretrained` fills such weights with random numbers (diffusers' networks and transformers' text
and image encoders alike) and says so in a log at most.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from flowrl.errors import UserError
from flowrl.models.files import variant_of
from flowrl.models.quantization import FULL_PRECISION, Quantized

UNCHECKED = ("safety_checker",)
"""Components that no policy keeps."""


def load_networks(
    folder: Path,
    index: Mapping[str, Any],
    dtype: torch.dtype,
    given: Collection[str] = (),
    quantized: Quantized = FULL_PRECISION,
) -> dict[str, Any]:
    """The networks that ``model_index.json`` (its content: ``index``) names and ``folder`` holds, by name, those in
    ``given`` excepted. What is neither a diffusers nor a transformers model is left to the pipeline.
    ``quantized``: which of them are held in a few bits.

    Raises:
        UserError: for a network whose files lack weights. Whatever else the libraries raise is passed on.
    """
    made: dict[str, Any] = {}
    for name, entry in index.items():
        kind = kind_of(entry)
        if kind is not None and name not in (*given, *UNCHECKED) and (folder / name).is_dir():
            made[name] = _load_whole(kind, folder / name, name, dtype, quantized)
    return made


def kind_of(entry: Any) -> Any:
    """The class of a network by its entry ``[library, class]``; None for tokenizers, schedulers and unknown ones."""
    import diffusers
    import transformers

    if not (isinstance(entry, list) and len(entry) == 2 and all(isinstance(word, str) for word in entry)):
        return None
    library, name = entry
    if library in ("diffusers", "transformers"):
        module: Any = importlib.import_module(library)
    else:  # classes that one pipeline brings along
        module = getattr(diffusers.pipelines, library, None)
    kind = getattr(module, name, None)
    known = isinstance(kind, type) and issubclass(kind, (diffusers.ModelMixin, transformers.PreTrainedModel))
    return kind if known else None


def _load_whole(kind: Any, folder: Path, name: str, dtype: torch.dtype, quantized: Quantized) -> Any:
    from transformers import PreTrainedModel

    transformer = issubclass(kind, PreTrainedModel)
    variant = variant_of(folder)
    chosen: dict[str, Any] = {} if variant is None else {"variant": variant}
    chosen |= {"dtype" if transformer else "torch_dtype": dtype}
    chosen |= quantized.options(name, dtype, transformer)
    model, report = kind.from_pretrained(str(folder), use_safetensors=True, output_loading_info=True, **chosen)
    missing = sorted(set(report["missing_keys"]) & _needed(model))
    if missing:
        raise UserError(
            f"model {str(folder.parent)!r} is not whole: {name} lacks {len(missing)} of the weights of {kind.__name__} "
            f"({missing[0]}, ...), which would be random; download it again"
        )
    quantized.finish(name, model)
    return model


def _needed(model: nn.Module) -> set[str]:
    """Names of tensors that only a file can fill: parameters and the running statistics of batch norms. Other buffers
    are constants, and a language model's vocabulary layer is not read where it encodes text."""
    needed = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    for prefix, module in model.named_modules():
        if isinstance(module, _NormBase):
            needed |= {f"{prefix}.{name}" for name, _ in module.named_buffers(recurse=False) if "running" in name}
    head = getattr(model, "get_output_embeddings", lambda: None)()
    unread = {name for name, module in model.named_modules() if head is not None and module is head}
    return {name for name in needed if name.rpartition(".")[0] not in unread}
