"""What every family's exports share: a folder that appears whole or not at all, PEFT's files, their verification."""

from __future__ import annotations

import copy
import json
import os
import shutil
import tempfile
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from flowrl.errors import UserError
from flowrl.files import as_created
from flowrl.models.adapters.structure import MAGNITUDE, UP, Adapter
from flowrl.models.loading import Source
from flowrl.models.lora import ADAPTER, Adaptation

ORIGIN_FILE = "flowrl.json"
"""What an export says of the run it came from; other tools pass over it."""
PEFT_FILE = "adapter_model.safetensors"
PEFT_PREFIX = "base_model.model."
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}
"""Largest difference of a reloaded model's predictions, relative to their largest value (merging rounds). Predictions
are those of the network itself: guidance would multiply their rounding by its scale."""


def deviation(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference relative to the largest value; NaN counts as infinite."""
    ours, theirs = ours.detach(), theirs.detach()
    gap = (ours.double() - theirs.double().to(ours.device)).abs().max() / theirs.double().abs().max().clamp(min=1e-12)
    return float(gap) if torch.isfinite(gap) else float("inf")


def into_folder(
    directory: Path, to: str, known: tuple[str, ...], adaptation: Adaptation, dtype: torch.dtype,
    write: Callable[[Path], float], origin: Mapping[str, Any] | None = None,
) -> float:  # fmt: skip
    """Let ``write`` fill a new folder and compare, and move it to ``directory`` (new or empty) if it is good.
    ``origin``, what is known of the run, becomes `ORIGIN_FILE`.

    Returns:
        What ``write`` returned: the largest difference between the policy's predictions and the reloaded model's,
        relative to the largest value.

    Raises:
        UserError: for a format that cannot hold the weights, an occupied folder, or a reloaded model that differs.
    """
    if to not in known:
        raise UserError(f"cannot export to {to!r}; choose one of {', '.join(known)}")
    if adaptation.lora is None and to != "merged":
        raise UserError(f"a fully fine-tuned model has no adapter to export to {to!r}; use merged")
    if directory.exists() and any(directory.iterdir()):
        raise UserError(f"{directory} already exists and is not empty; remove it or export elsewhere")
    directory.parent.mkdir(parents=True, exist_ok=True)
    work = directory.parent / f".{directory.name}.{os.getpid()}"  # tempfile's folders are for their owner alone
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        difference = write(work)
        if not difference <= TOLERANCE[dtype]:
            raise UserError(
                f"the {to} export differs from the trained model by {difference:.2g} once reloaded; nothing was written"
            )
        if origin is not None:
            (work / ORIGIN_FILE).write_text(json.dumps(origin, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        for file in work.rglob("*"):
            if file.is_file():
                as_created(file)
        if directory.exists():
            directory.rmdir()
        work.rename(directory)
        return difference
    finally:
        shutil.rmtree(work, ignore_errors=True)


def adapter_tensors(adaptation: Adaptation) -> dict[str, Tensor]:
    """Live LoRA tensors by PEFT's file names, on the CPU."""
    suffix = f".{ADAPTER}"
    named = {k.replace(suffix, ""): p.detach().cpu().contiguous() for k, p in adaptation.parameters.items()}
    return {key.replace(f"{MAGNITUDE}.weight", MAGNITUDE): value for key, value in named.items()}


def configuration(network: Any, source: Source | None) -> Any:
    """PEFT's configuration of the live adapter, as it is written: names sorted, so that equal adapters are equal
    files, and the base model by its full path."""
    config = copy.deepcopy(network.peft_config[ADAPTER])
    config.inference_mode = True
    config.base_model_name_or_path = None if source is None else lasting(source.path)
    if isinstance(config.target_modules, set | list | tuple):
        config.target_modules = sorted(config.target_modules)
    return config


def lasting(path: str) -> str:
    """A folder's absolute path, a hub id as it is."""
    return str(Path(path).absolute()) if Path(path).is_dir() else path


def save_peft(
    network: Any, adaptation: Adaptation, source: Source | None, folder: Path, task: Mapping[str, Any] | None = None
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


def twin(network: nn.Module) -> Any:
    """A network of modules of its own on the very tensors of ``network``, without its adapter: the base model at no
    cost, to load an export into. Its weights must not be changed in place."""
    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    other = copy.deepcopy(network, shared)
    for module in other.modules():
        wrapped = getattr(module.__dict__.get("forward"), "__wrapped__", None)
        if wrapped is not None:  # recomputation of activations, bound to the original's method
            module.forward = types.MethodType(wrapped.__func__, module)
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


@contextmanager
def exchanged(ours: nn.Module, theirs: nn.Module) -> Iterator[None]:
    """``theirs`` on the device of ``ours``, which waits in the host's memory: the device never holds both."""
    device = next(ours.parameters()).device
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
    """Every layer of the reloaded network has the update ``scale * B @ A`` of the live one. For formats that join and
    split layers, or put the strength into the tensors."""
    live, reloaded = _layers(ours), _layers(theirs)
    for name in live.keys() | reloaded.keys():
        given = next(found[name] for found in (live, reloaded) if name in found)
        first, second = (_update(found.get(name), given) for found in (live, reloaded))
        if not torch.allclose(first, second.to(first.device), rtol=1e-2, atol=1e-5 * float(first.abs().max())):
            raise UserError(f"the {to} export reloads {name} with another update")


def _update(layer: tuple[Any, ...] | None, like: tuple[Any, ...]) -> Tensor:
    scale, down, up, *_ = layer or (0.0, *like[1:])
    return scale * up.float().flatten(1) @ down.float().flatten(1)


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


def load_adapter(network: nn.Module, adaptation: Adaptation, adapter: Adapter) -> None:
    """Copy an adapter's weights into the live ones; where a layer's strength differs, the ratio is folded into B.
    Layers that the adapter does not have keep their start, which changes nothing.

    Raises:
        UserError: for an adapter of another rank, other target modules or another kind.
    """
    options, live = adaptation.lora, adaptation.parameters
    if options is None:
        raise UserError("a fully fine-tuned policy has no adapter to load into; load it with model.lora")
    if adapter.stated is not None and adapter.options(options.dropout) != replace(options, init="default"):
        raise UserError(
            f"the adapter in {adapter.origin} adapts parameters that are no layers, whose strength cannot be changed;"
            " leave model.lora out to take the adapter's own shape"
        )
    renamed = {_live_name(key): value for key, value in adapter.tensors.items()}
    odd = [key for key in sorted(renamed) if key not in live or renamed[key].shape != live[key].shape]
    odd += [key for key in live if MAGNITUDE in key and key not in renamed]
    if odd:
        key = odd[0]
        there = f"{tuple(renamed[key].shape)}" if key in renamed else "absent"
        here = f"{tuple(live[key].shape)}" if key in live else "absent"
        raise UserError(
            f"the adapter in {adapter.origin} does not fit model.lora (rank {options.rank}); first difference: {key} is"
            f" {there} in the file and {here} here; leave model.lora out to take the adapter's own shape"
        )
    with torch.no_grad():
        for key, parameter in live.items():
            if key in renamed:
                parameter.copy_(renamed[key])
        for layer in adapter.alphas:
            module: Any = network.get_submodule(layer)
            factor = adapter.scale(layer) / module.scaling[ADAPTER]
            if abs(factor - 1) > 1e-9:
                live[_live_name(f"{layer}{UP}")].mul_(factor)


def _live_name(key: str) -> str:
    for side in ("lora_A", "lora_B"):
        key = key.replace(f".{side}.", f".{side}.{ADAPTER}.")
    return f"{key}.{ADAPTER}.weight" if key.endswith(MAGNITUDE) else key
