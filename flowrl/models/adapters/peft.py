"""PEFT's files and wrapped layers: the live adapter written, read again, merged into its base and taken off it."""

from __future__ import annotations

import copy
import functools
import json
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from flowrl.models.adapters.adapter import MAGNITUDE
from flowrl.models.lora import ADAPTER, Adaptation
from flowrl.models.quantization import is_quantized
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
        if hasattr(module.__dict__.get("forward"), "__wrapped__"):  # recomputation of activations, or a compiled block
            del module.forward  # so that it is the class's own again
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
    beside = {name: p for name, p in adaptation.parameters.items() if "lora_" not in name}  # a reward model's head
    alone = {name: p for name, p in adaptation.parameters.items() if name not in beside}
    with tempfile.TemporaryDirectory() as folder:
        save_peft(adapted, replace(adaptation, parameters=alone), None, Path(folder))
        merged = load_peft(network, Path(folder)).merge_and_unload()
    own = dict(merged.named_parameters())
    for name, parameter in beside.items():
        own[name].data.copy_(parameter.data)
    return merged


@contextmanager
def as_merged(network: nn.Module) -> Iterator[None]:
    """Adapted layers compute with the sum of their weight and their adapter's, rounded to the base's precision, as they
    will when merged. Each sum is made for its call alone. For predictions without gradient. Layers in a few bits, which
    nobody merges, compute as ever."""
    outer = {name: layer for name, layer in _adapted(network).items() if not is_quantized(layer.get_base_layer())}
    # what torch compiled knows nothing of the other forwards; importing its compiler takes seconds
    eager = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
    for module in outer.values():
        module.forward = _merged_forward(module)
    try:
        with eager:
            yield
    finally:
        for module in outer.values():
            del module.forward


def merged_weights(network: nn.Module) -> dict[str, Callable[[], Tensor]]:
    """How to make every tensor of the network with its adapter merged, by its name there."""
    found: dict[str, Callable[[], Tensor]] = {}
    outer = _adapted(network)
    for name, tensor in network.state_dict().items():
        found[name.replace("base_layer.", "")] = lambda tensor=tensor: tensor
    for place, module in outer.items():
        for name, make in _sums(module).items():
            found[f"{place}.{name}"] = make
    return found


def _adapted(network: nn.Module) -> dict[str, Any]:
    """The layers that PEFT wrapped; of those that it wrapped several times, the outermost."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    wrapped = {name: module for name, module in network.named_modules() if isinstance(module, BaseTunerLayer)}
    return {name: module for name, module in wrapped.items() if name.rpartition(".")[0] not in wrapped}


def _sums(layer: Any) -> dict[str, Callable[[], nn.Parameter]]:
    """How to make the merged weights of a layer, by name: one, or for experts one of each adapted parameter."""
    base, wrappers = layer.get_base_layer(), [layer]
    while wrappers[-1].base_layer is not base:
        wrappers.append(wrappers[-1].base_layer)
    return {getattr(one, "parameter_name", "weight"): functools.partial(merged_weight, one, base) for one in wrappers}


def _merged_forward(layer: Any) -> Callable[..., Any]:
    """The base layer's own forward, without its hooks: those would fetch the weights that wait on the host."""
    base, sums = layer.get_base_layer(), _sums(layer)

    def forward(*args: Any, **kwargs: Any) -> Any:
        made = {name: make() for name, make in sums.items()}
        device = next(iter(made.values())).device
        own = dict(base._parameters)
        others = {name: nn.Parameter(p.to(device), requires_grad=False) for name, p in own.items() if p is not None}
        base._parameters.update(others | made)
        try:
            return base.forward(*args, **kwargs)
        finally:
            base._parameters.update(own)

    return forward


def merged_weight(layer: Any, base: nn.Module) -> nn.Parameter:
    """``weight + scale * B @ A`` in the weight's precision; with DoRA its columns have the trained lengths."""
    delta = layer.get_delta_weight(ADAPTER)
    weight = getattr(base, getattr(layer, "parameter_name", "weight")).to(delta.device)
    merged = weight + delta
    lengths = getattr(layer, "lora_magnitude_vector", None) or {}
    if ADAPTER in lengths:
        inputs = 0 if getattr(layer, "fan_in_fan_out", False) else tuple(range(1, merged.ndim))
        norm = merged.norm(dim=inputs, keepdim=True)
        merged = lengths[ADAPTER].weight.reshape(norm.shape) / norm * merged
    return nn.Parameter(merged.to(weight.dtype), requires_grad=False)
