"""Adapters and merged pipelines on disk, each verified by loading it into a fresh copy of the base model."""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from torch import Tensor

from flowrl.errors import UserError
from flowrl.models import exporting
from flowrl.models.diffusion.capture import Recorder
from flowrl.models.diffusion.recipe import PROBES
from flowrl.models.exporting import PEFT_FILE, adapter_tensors, deviation
from flowrl.models.loading import Placement, Source
from flowrl.models.lora import ADAPTER

if TYPE_CHECKING:
    from flowrl.models.diffusion.policy import DiffusionPolicy

Format = Literal["diffusers", "peft", "merged"]
DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"
METADATA = "lora_adapter_metadata"
"""Key of the safetensors header under which diffusers keeps rank and alpha."""


def export(policy: DiffusionPolicy, directory: Path, to: Format) -> float:
    """Write the live weights to ``directory`` (new or empty), verified before it appears: see
    :func:`flowrl.models.exporting.into_folder`."""

    def write(work: Path) -> float:
        reloaded = _WRITERS[to](policy, _fresh(policy), work)
        if to != "merged":
            exporting.check_adapter(policy.network, getattr(reloaded, policy.recorder.network_name), to)
        return _difference(policy, reloaded)

    return exporting.into_folder(directory, to, get_args(Format), policy.adaptation, policy.dtype, write)


def formats(policy: DiffusionPolicy) -> tuple[Format, ...]:
    """The formats this model can be exported to: some pipelines load no LoRA files, a fully trained one has none."""
    if policy.adaptation.lora is None:
        return ("merged",)
    saver = getattr(policy.pipeline, "save_lora_weights", None)
    takes = set() if saver is None else set(inspect.signature(saver).parameters)
    loads = f"{policy.recorder.network_name}_lora_layers" in takes and hasattr(policy.network, "load_lora_adapter")
    return get_args(Format) if loads else ("peft", "merged")


def load_adapter(policy: DiffusionPolicy, directory: Path) -> None:
    """Copy the weights of a LoRA folder into the live ones: see :func:`flowrl.models.exporting.load_adapter`."""
    exporting.load_adapter(policy.adaptation, directory, _read(directory, policy.recorder.network_name))


def _write_diffusers(policy: DiffusionPolicy, base: Any, work: Path) -> Any:
    name = policy.recorder.network_name
    if "diffusers" not in formats(policy):
        raise UserError(f"{type(base).__name__} cannot load LoRA files in diffusers; export to peft or merged")
    # without the metadata diffusers assumes alpha == rank, and the adapter acts at the wrong strength
    base.save_lora_weights(
        work,
        **{f"{name}_lora_layers": adapter_tensors(policy.adaptation), f"{name}_lora_adapter_metadata": _config(policy)},
    )
    with _quiet():
        base.load_lora_weights(work)
    return base


@contextmanager
def _quiet() -> Iterator[None]:
    """Without diffusers' notes that text encoders have no adapter."""
    from diffusers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def _write_peft(policy: DiffusionPolicy, base: Any, work: Path) -> Any:
    exporting.save_peft(policy.network, policy.adaptation, policy.source, work)
    exporting.load_peft(getattr(base, policy.recorder.network_name), work)
    return base


def _write_merged(policy: DiffusionPolicy, base: Any, work: Path) -> Any:
    from flowrl.models.diffusion.load import open_pipeline

    network = getattr(base, policy.recorder.network_name)
    exporting.merge(network, policy.network, policy.adaptation)
    network.requires_grad_(False)
    base.save_pretrained(work, safe_serialization=True)
    return open_pipeline(Source(str(work)), policy.dtype)


_WRITERS = {"diffusers": _write_diffusers, "peft": _write_peft, "merged": _write_merged}


def _config(policy: DiffusionPolicy) -> dict[str, Any]:
    network: Any = policy.network
    config = network.peft_config[ADAPTER].to_dict()
    config["base_model_name_or_path"] = None if policy.source is None else policy.source.path
    return {k: sorted(v) if isinstance(v, set) else v for k, v in config.items()}


def _fresh(policy: DiffusionPolicy) -> Any:
    """A base pipeline with an untrained denoiser and the original scheduler; the frozen parts are the policy's own, so
    that only the denoiser is read again."""
    from flowrl.models.diffusion.load import open_pipeline

    name = policy.recorder.network_name
    if policy.source is not None:
        shared = {k: v for k, v in policy.pipeline.components.items() if k not in (name, "scheduler")}
        return open_pipeline(policy.source, policy.dtype, shared).to(policy.device)
    base = copy.copy(policy.pipeline)
    network: Any = copy.deepcopy(policy.network)
    if policy.adaptation.lora is not None:
        network.unload_lora()
    setattr(base, name, network)
    return base


def _difference(policy: DiffusionPolicy, reloaded: Any) -> float:
    from flowrl.models.diffusion.load import prepare

    prepare(reloaded, Placement(policy.device, policy.dtype))
    theirs = Recorder(reloaded, policy.recorder.call).record(PROBES, 2)
    ours = policy.recorder.record(PROBES, 2)
    return max(deviation(a.model_output, b.model_output) for a, b in zip(ours.steps, theirs.steps, strict=True))


def _read(directory: Path, network_name: str) -> tuple[dict[str, Tensor], float]:
    """``(tensors by name without prefix, alpha / rank)``."""
    if (directory / PEFT_FILE).is_file():
        return exporting.read_peft(directory)
    if not (directory / DIFFUSERS_FILE).is_file():
        raise UserError(f"{directory} holds no LoRA adapter ({DIFFUSERS_FILE} or {PEFT_FILE})")
    tensors, header = exporting.read_tensors(directory / DIFFUSERS_FILE)
    metadata = json.loads(header.get(METADATA, "{}"))
    alpha, rank = metadata.get(f"{network_name}.lora_alpha"), metadata.get(f"{network_name}.r")
    bare = {key.removeprefix(f"{network_name}."): value for key, value in tensors.items()}
    # files without metadata were made for alpha == rank: what diffusers itself assumes
    return bare, 1.0 if alpha is None or rank is None else alpha / rank
