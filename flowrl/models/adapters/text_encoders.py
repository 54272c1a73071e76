"""The parts of adapters that belong to a pipeline's text encoders."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from flowrl.errors import UserError, first_line, is_out_of_memory
from flowrl.models.adapters.adapter import Adapter
from flowrl.models.adapters.diffusion import ENCODERS, without_log

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

OLD = re.compile(r"(.*)\.to_(q|k|v|out)_lora\.(down|up)\.weight")
NEW = re.compile(r"(.*?)(?:\.lora_linear_layer|\.lora)\.(down|up)\.weight")
PEFT = re.compile(r"(.*)\.lora_(A|B)\.weight")
SIDES = {"A": "down", "B": "up"}


def load_text_encoders(pipeline: DiffusionPipeline, adapter: Adapter, name: str) -> None:
    """Put what an adapter holds for text encoders into the pipeline's, by diffusers' own loader; they stay frozen.

    Raises:
        UserError: where the pipeline has no such encoder, its loader fails, or does not take everything.
    """
    from peft import get_peft_model_state_dict

    given = adapter.encoders
    for prefix in ENCODERS:
        mine = {key: value for key, value in given.get("tensors", {}).items() if key.startswith(f"{prefix}.")}
        if not mine:
            continue
        encoder = pipeline.components.get(prefix)
        if encoder is None:
            raise UserError(f"{adapter.origin} adapts {prefix}, which {type(pipeline).__name__} does not have")
        stated = {k: v for k, v in given["metadata"].items() if k.startswith(f"{prefix}.")}
        tensors = mine if stated else fold_alphas(mine, given["alphas"], adapter.origin)
        try:
            with without_log():
                pipeline.load_lora_into_text_encoder(
                    tensors,
                    network_alphas=None,
                    text_encoder=encoder,
                    prefix=prefix,
                    adapter_name=name,
                    metadata=stated or None,
                )
        except (ValueError, LookupError, TypeError, RuntimeError, AttributeError, ImportError) as error:
            if is_out_of_memory(error):
                raise
            raise UserError(f"{adapter.origin}: its part for {prefix} cannot be loaded: {first_line(error)}") from error
        if len(get_peft_model_state_dict(encoder, adapter_name=name)) < len(tensors):
            raise UserError(f"{adapter.origin}: {type(encoder).__name__} takes only a part of what it has for {prefix}")
        encoder.requires_grad_(False).eval()


def fold_alphas(tensors: Mapping[str, Tensor], alphas: Mapping[str, float], where: str) -> dict[str, Tensor]:
    """Tensors in the one form that diffusers recognises without doubt, every layer's alpha / rank folded into its up
    matrix: its loader takes one alpha for all, and of an older form only files that adapt output projections."""
    found, ranks = {}, {}
    for key, value in tensors.items():
        layer, side = _layer(key, where)
        ranks |= {layer: len(value)} if side == "down" else {}
        found[layer, side] = value
    scales = {_layer(key.removesuffix(".alpha"), where)[0]: float(alpha) for key, alpha in alphas.items()
              if key.startswith(tuple(tensor.split(".")[0] + "." for tensor in tensors))}  # fmt: skip
    return {
        f"{layer}.{'lora' if layer.endswith('text_projection') else 'lora_linear_layer'}.{side}.weight": (
            value * (scales.get(layer, ranks[layer]) / ranks[layer]) if side == "up" else value
        )
        for (layer, side), value in found.items()
    }


def _layer(key: str, where: str) -> tuple[str, str]:
    """``(layer, down or up)`` of a tensor's name in any of the forms; alphas may be written after the layer alone."""
    old, new, peft = OLD.fullmatch(key), NEW.fullmatch(key), PEFT.fullmatch(key)
    if old:
        return f"{old[1]}.{old[2]}_proj", old[3]
    if peft:
        return peft[1], SIDES[peft[2]]
    if new:
        return new[1], new[2]
    if key.endswith((".weight", ".bias")) or "lora_magnitude" in key:
        raise UserError(f"{where} holds {key!r}, which flowrl does not know to put into a text encoder")
    return key, ""
