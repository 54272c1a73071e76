"""An adapter's weights into those of a policy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flowrl.errors import UserError
from flowrl.models.adapters.adapter import MAGNITUDE, UP, Adapter
from flowrl.models.adapters.diffusion import ENCODERS
from flowrl.models.adapters.peft import without_adapter
from flowrl.models.adapters.read import read
from flowrl.models.adapters.text_encoders import load_text_encoders
from flowrl.models.diffusion.policy import DiffusionPolicy
from flowrl.models.diffusion.stages import adapted
from flowrl.models.lora import ADAPTER, Adaptation
from flowrl.models.text.policy import TextPolicy


def load_adapter(policy: DiffusionPolicy | TextPolicy, name: str | Path) -> None:
    """Read a LoRA (of PEFT, diffusers, kohya, ...: a folder, a file, a hub id) into the live weights; what it holds for
    a pipeline's text encoders goes into those, which stay frozen, for every weight set alike.

    Raises:
        UserError: as `flowrl.models.adapters.read`, and for an adapter that does not fit the live one.
    """
    if isinstance(policy, TextPolicy):
        adapter = read(str(name), policy.source.path, family=policy.family)
        copy_weights(policy.network.model, policy.adaptation, adapter)
        return
    adapter = read(str(name), policy.source.path if policy.source else None, policy.recorder.network_name)
    if adapter.encoders:
        for encoder in ENCODERS:
            if getattr(policy.pipeline.components.get(encoder), "peft_config", None):
                without_adapter(policy.pipeline.components[encoder])
        load_text_encoders(policy.pipeline, adapter, ADAPTER)
    copy_weights(*adapted(policy.network, policy.adaptation), adapter)
    policy.encoder = policy.encoder.renewed()


def copy_weights(network: nn.Module, adaptation: Adaptation, adapter: Adapter) -> None:
    """Copy an adapter's weights into the live ones; where a layer's strength differs, the ratio is folded into B.
    Layers that the adapter does not have keep their start, which changes nothing.

    Raises:
        UserError: for an adapter of another rank, other target modules or another kind.
    """
    options, live = adaptation.lora, adaptation.parameters
    if options is None:
        raise UserError("a fully fine-tuned policy has no adapter to load into; load it with model.lora")
    if adapter.lora_options is not None and adapter.options(options.dropout) != replace(options, init="default"):
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
