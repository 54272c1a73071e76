"""PEFT's files and wrapped layers: the live adapter written, read again, merged into its base and taken off it."""

from __future__ import annotations

import copy
import inspect
import json
import tempfile
import types
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from flowrl.models.adapters.adapter import MAGNITUDE
from flowrl.models.lora import ADAPTER, Adaptation
from flowrl.models.source import ModelSource

PEFT_FILE = "adapter_model.safetensors"
PEFT_PREFIX = "base_model.model."


def adapter_tensors(adaptation: Adaptation) -> dict[str, Tensor]:
    """Live LoRA tensors by PEFT's file names, on the CPU."""
    suffix = f".{ADAPTER}"
    named = {k.replace(suffix, ""): p.detach().cpu().contiguous() for k, p in adaptation.parameters.items()}
    return {key.replace(f"{MAGNITUDE}.weight", MAGNITUDE): value for key, value in named.items()}


def configuration(network: Any, source: ModelSource | None) -> Any:
    """PEFT's configuration of the live adapter, as it is written: names sorted, so that equal adapters are equal
    files, and the base model by its full path."""
    config = copy.deepcopy(network.peft_config[ADAPTER])
    config.inference_mode = True
    config.base_model_name_or_path = None if source is None else absolute_path(source.path)
    if isinstance(config.target_modules, set | list | tuple):
        config.target_modules = sorted(config.target_modules)
    return config


def absolute_path(path: str) -> str:
    """A folder's absolute path, a hub id as it is."""
    return str(Path(path).absolute()) if Path(path).is_dir() else path


def save_peft(
    network: Any,
    adaptation: Adaptation,
    source: ModelSource | None,
    folder: Path,
    task: Mapping[str, Any] | None = None,
) -> None:
    """Write the live adapter as PEFT does. ``task``: ``task_type`` or ``auto_mapping``, which tell
    ``AutoPeftModel...`` the class of the base model."""
    tensors = {f"{PEFT_PREFIX}{key}": value for key, value in adapter_tensors(adaptation).items()}
    save_file(tensors, folder / PEFT_FILE)
    config = configuration(network, source)
    for key, value in (task or {}).items():
        setattr(config, key, value)
    config.save_pretrained(str(folder))


def sort_header(file: Path) -> None:
    """Give a safetensors file's header a fixed order; the library writes its entries in a random one."""
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    named = sorted(header.pop("__metadata__", {}).items())
    text = json.dumps({"__metadata__": dict(named), **header}, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def shared_base(network: nn.Module) -> Any:
    """A network of modules of its own on the very tensors of ``network``, without its adapter: the base model at no
    cost, to load an export into. Its weights must not be changed in place."""
    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    other = copy.deepcopy(network, shared)
    for module in other.modules():
        forward = module.__dict__.get("forward")
        if forward is not None and hasattr(forward, "__wrapped__"):  # recomputation of activations, or a compiled block
            own = inspect.unwrap(forward)
            module.forward = types.MethodType(getattr(own, "__func__", own), module)
    return without_adapter(other)


def without_adapter(network: Any) -> Any:
    """``network`` itself with the layers that PEFT wrapped put back."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    wrapped = {name: module for name, module in network.named_modules() if isinstance(module, BaseTunerLayer)}
    for name, module in wrapped.items():
        parent, _, attribute = name.rpartition(".")
        if parent in wrapped:  # experts are wrapped once for each of their parameters
            continue
        while isinstance(module, BaseTunerLayer):
            module = module.get_base_layer()
        setattr(network.get_submodule(parent), attribute, module)
    if "peft_config" in vars(network):
        del network.peft_config
    network._hf_peft_config_loaded = False
    return network


def load_peft(network: nn.Module, folder: Path) -> Any:
    """The adapter put into ``network`` itself, as any PEFT user would."""
    from peft import PeftModel

    with warnings.catch_warnings():
        # PEFT asks by a name that transformers 5.23 replaced
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        return PeftModel.from_pretrained(network, str(folder))  # pyright: ignore[reportArgumentType]


def merge(network: nn.Module, adapted: nn.Module, adaptation: Adaptation) -> Any:
    """``network``, a fresh copy of the base, with the trained weights of ``adapted`` in its own."""
    if adaptation.lora is None:
        network.load_state_dict(adapted.state_dict())
        return network
    with tempfile.TemporaryDirectory() as folder:
        save_peft(adapted, adaptation, None, Path(folder))
        return load_peft(network, Path(folder)).merge_and_unload()
