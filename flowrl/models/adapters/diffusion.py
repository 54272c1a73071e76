"""Adapters of diffusers, kohya / A1111, ComfyUI and older tools for image models, renamed by diffusers' own converters.

What diffusers would leave out with a note in the log (weight differences, T5 layers, DoRA scales) is refused: an
adapter acts whole or not at all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from flowrl.errors import UserError, first_line, is_out_of_memory
from flowrl.models.adapters import kohya
from flowrl.models.adapters.adapter import DOWN, Adapter, validated
from flowrl.models.adapters.peft_config import check_fields, layer_alphas
from flowrl.models.diffusion.recorder import NETWORKS
from flowrl.models.family import embedded_model
from flowrl.models.hub import read_json

METADATA = "lora_adapter_metadata"
"""Key of the safetensors header under which diffusers keeps PEFT's configurations."""
ENCODERS = ("text_encoder", "text_encoder_2")
DOWNS = ("lora_A", "lora_down", "lora.down", "lora_linear_layer.down", "_lora.down")
"""In names of matrices that lower the rank, over all tools."""
TOOLS = {
    "lora_unet_": "kohya's names of another model",
    "lora_te": "kohya's names of a text encoder",
    "lora_transformer_": "OneTrainer's names",
    "lycoris_": "LyCORIS' names",
    "diffusion_model.": "ComfyUI's names of another model",
    "base_model.": "PEFT's names, which need adapter_config.json",
    "transformer.": "diffusers' names of a transformer",
    "unet.": "diffusers' names of a U-Net",
    "text_encoder": "diffusers' names of a text encoder",
}
"""Beginnings of names, and whose they are."""
EMPTY = (".diff", ".diff_b", "t5xxl", "position_embedding")
"""Parts of names that diffusers drops."""


def is_low_rank(names: Iterable[str]) -> bool:
    """Whether tensors are those of an adapter, by their names."""
    return any(part in name for name in names for part in DOWNS)


def read(
    where: str, tensors: Mapping[str, Tensor], header: Mapping[str, str], model: str | None, network: str | None
) -> Adapter:
    """An adapter from the tensors of a file. Raises `UserError` as `flowrl.models.adapters.read` does."""
    if not is_low_rank(tensors):
        some = ", ".join(list(tensors)[:3]) or "nothing"
        raise UserError(f"{where} is no LoRA in a format that diffusers, kohya, A1111 or PEFT write (it has {some})")
    metadata = _metadata(header, where)
    stated = {key: value for key, value in metadata.items() if key.endswith("base_model_name_or_path")}
    base = model or next((str(value) for value in stated.values() if value), None)
    if base is None:  # nothing to ask yet: what the names themselves say
        network = network or next((n for n in NETWORKS if any(key.startswith(f"{n}.") for key in tensors)), None)
        if network is None:
            raise UserError(f"{where} does not say which model it adapts; name it with --model FOLDER_OR_HUB_ID")
    kind, own, unet = _pipeline(base) if base else (None, str(network), None)
    network = network or own
    renamed, alphas = _renamed(where, tensors, kind, unet, network)
    _check_complete(where, tensors, renamed)
    return _adapter(where, base, network, renamed, alphas, metadata)


def _metadata(header: Mapping[str, str], where: str) -> dict[str, Any]:
    try:
        value = json.loads(header.get(METADATA, "{}"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: its header's {METADATA} is not JSON; save the adapter again") from error
    if not isinstance(value, dict):
        raise UserError(f"{where}: its header's {METADATA} should be an object, found {type(value).__name__}")
    return value


def _pipeline(model: str) -> tuple[Any, str, Any]:
    """``(class that knows the names, or None; where its denoiser is; the U-Net's configuration or None)``."""
    import diffusers

    place = str(embedded_model(model, "diffusion") or model)
    index = read_json(place, "model_index.json") or {}
    kind = getattr(diffusers, str(index.get("_class_name")), None)
    unet = read_json(place, "unet/config.json") if "unet" in index else None
    known = kind if kind is not None and hasattr(kind, "lora_state_dict") else None
    return known, ("unet" if "unet" in index else "transformer"), SimpleNamespace(**unet) if unet else None


def _renamed(
    where: str, tensors: Mapping[str, Tensor], kind: Any, unet: Any, network: str
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Tensors by ``NETWORK.LAYER.lora_A.weight`` or an older form of it, and alphas by such names."""
    state = {name: value.clone() for name, value in tensors.items()}  # converters empty what they are given
    if kind is not None and network == "transformer" and kohya.is_sd3(state):
        return kohya.sd3_to_diffusers(state), {}
    known = (f"{network}.", *(f"{encoder}." for encoder in ENCODERS))
    if all("." in name and not name.startswith((*known, "lora_", "diffusion_model.", "base_model.")) for name in state):
        plain = any(
            part in name for name in state for part in (".processor.", ".lora_A.", ".lora.down.", "_lora.down.")
        )
        if plain:  # a network's own names, as `save_attn_procs` and `save_lora_adapter` write them
            state = {f"{network}.{name}": value for name, value in state.items()}
    if kind is None:
        return state, {}
    try:
        with without_log():
            options = {"unet_config": unet} if unet is not None else {}
            answer = kind.lora_state_dict(state, return_lora_metadata=True, **options, **_alphas_too(kind))
    except (ValueError, AssertionError, LookupError, RuntimeError, AttributeError) as error:
        if is_out_of_memory(error):
            raise
        some = ", ".join(list(tensors)[:2])
        raise UserError(
            f"{where} cannot be renamed for {kind.__name__} by diffusers (tensors such as {some}): {first_line(error)}"
        ) from error
    renamed, found = answer[0], answer[1] if len(answer) == 3 else {}
    return renamed, {name: float(value) for name, value in (found or {}).items()}


def _alphas_too(kind: Any) -> dict[str, Any]:
    """Some pipelines return alphas only when asked."""
    import inspect

    source = inspect.signature(kind._prepare_outputs).parameters if hasattr(kind, "_prepare_outputs") else {}
    return {"return_alphas": True} if "return_alphas" in source else {}


def _check_complete(where: str, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> None:
    """Raise `UserError` where a converter left out something that acts."""
    lost = [name for name in before if any(part in name for part in EMPTY) and bool((before[name] != 0).any())]
    if lost:
        raise UserError(f"{where} holds {lost[0]}, which diffusers leaves out; fuse it with the tool that made it, and "
                        "give the result as model.path")  # fmt: skip
    count = sum(any(part in name for part in DOWNS) for name in before)
    if sum(any(part in name for part in DOWNS) for name in after) < count:
        raise UserError(f"{where}: diffusers' converter keeps only a part of its {count} layers; fuse it with the tool "
                        "that made it, and give the result as model.path")  # fmt: skip


@contextmanager
def without_log() -> Any:
    """Without diffusers' notes on what a file has and has not."""
    from diffusers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def _adapter(
    where: str,
    base: str | None,
    network: str,
    renamed: Mapping[str, Tensor],
    alphas: Mapping[str, float],
    metadata: Mapping[str, Any],
) -> Adapter:
    mine = {key.removeprefix(f"{network}."): value for key, value in renamed.items() if key.startswith(f"{network}.")}
    others = {key: value for key, value in renamed.items() if not key.startswith(f"{network}.")}
    strange = next((key for key in others if not key.startswith(tuple(f"{e}." for e in ENCODERS))), None)
    if strange is not None or not mine:
        if mine:
            raise UserError(f"{where} holds {strange!r}, which is neither the {network}'s nor a CLIP text encoder's")
        first = min(renamed)
        tool = next((tool for start, tool in TOOLS.items() if first.startswith(start)), "unknown names")
        raise UserError(f"{where} holds no LoRA of the {network} of {base}: {first!r} is one of {tool}")
    mine, loose_alphas = _to_peft(mine)
    config = {k.removeprefix(f"{network}."): v for k, v in metadata.items() if k.startswith(f"{network}.")}
    check_fields(config, where)
    ranks = {key.removesuffix(DOWN): len(value) for key, value in mine.items() if key.endswith(DOWN)}
    own_alphas = {
        _bare(key, network): value for key, value in alphas.items() if key.startswith(f"{network}.")
    } | loose_alphas
    lost = next((layer for layer in own_alphas if layer not in ranks), None)
    if lost is not None:
        raise UserError(f"{where} has an alpha for {lost}, but no tensors of that layer")
    # files that state no alpha were made for alpha == rank: what diffusers itself assumes
    default = layer_alphas(config, ranks, where) if config else {layer: float(rank) for layer, rank in ranks.items()}
    encoders = {"tensors": others, "alphas": alphas, "metadata": metadata} if others else {}
    return validated(
        Adapter(
            where,
            base,
            mine,
            {**default, **own_alphas},
            rslora=bool(config.get("use_rslora")),
            dora=bool(config.get("use_dora")) or any("lora_magnitude_vector" in key for key in mine),
            encoders=encoders,
        )
    )


def _to_peft(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Older names of one network as PEFT's, and alphas that lie among them."""
    from diffusers.utils import convert_unet_state_dict_to_peft

    loose_alphas = {re.sub(r"(\.processor)?(\.to_\w+_lora|\.lora)?\.alpha$", "", key): float(value)
             for key, value in tensors.items() if key.endswith(".alpha")}  # fmt: skip
    kept = {key: value for key, value in tensors.items() if not key.endswith(".alpha")}
    if not any(".lora_A" in key for key in kept):
        kept = convert_unet_state_dict_to_peft(kept)
    kept = {re.sub(r"\.lora_magnitude_vector(\.weight)?$", ".lora_magnitude_vector", key): value
            for key, value in kept.items()}  # fmt: skip
    return {
        key: value.to(torch.float32) if value.dtype == torch.float64 else value for key, value in kept.items()
    }, loose_alphas


def _bare(name: str, network: str) -> str:
    """The layer of an alpha's name, which diffusers writes after the name that the down matrix had before."""
    from diffusers.utils import convert_unet_state_dict_to_peft

    stem = name.removeprefix(f"{network}.").removesuffix(".alpha").removesuffix(DOWN)
    if not stem.endswith(".down.weight"):
        return stem
    return next(iter(convert_unet_state_dict_to_peft({stem: torch.empty(0)}))).removesuffix(DOWN)
