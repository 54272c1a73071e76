"""How large a model is and what its backward keeps, from its configuration alone: no weight is read, none has memory.

Networks are built on the meta device, where tensors have shapes and no numbers, and run forward once for one row. What
autograd saves on the way is counted by hooks: bytes of the different storages that are no parameters. So this needs no
formula for an architecture, only inputs of the right shapes. Attention is counted as fused kernels do it, which save
queries, keys, values and the output, never the matrix of scores.
"""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flowrl.errors import is_out_of_memory
from flowrl.models.family import embedded_model
from flowrl.models.hub import downloaded, is_hub_id
from flowrl.models.lora import LoRAOptions, adapt
from flowrl.models.lora_preview import UNTOLD, untrained_denoiser, untrained_language_model
from flowrl.models.placement import listed_blocks

HALF = 1.25
"""Autocast keeps casts of what it reads beside it: measured 11.6 against 9.3 MB held on a tiny network."""


@dataclass(frozen=True)
class Activations:
    """Bytes that a backward needs of one row in float32, the network's trained adapter included."""

    whole: int
    checkpointed: int
    """With recomputed blocks: the inputs of all blocks, and all of the largest block."""
    block: int
    """Of the largest block alone: about what a forward without gradient holds."""


@dataclass(frozen=True)
class Footprint:
    """Sizes of a model; numbers are of parameters unless they say bytes."""

    network: int
    trained: int
    others: Mapping[str, int] = field(default_factory=dict)
    """Text encoders, VAE, ... by name."""
    activations: Activations | None = None
    """Of the policy's forward with gradient; ``None`` where no inputs of it are known."""
    latent: tuple[int, ...] = ()
    """Shape of the latents of one image."""
    image: tuple[int, ...] = ()
    decoder_width: int = 0
    """Channels of the VAE's last, largest layer."""
    cache: int = 0
    """Numbers that the keys and values of one token are."""
    vocabulary: int = 0


def footprint(
    path: str, family: str, lora: LoRAOptions | None, call: Mapping[str, Any], tokens: int
) -> Footprint | None:
    """Of the model in a local folder, embedded world or the hub's local cache; ``None`` where its files are not here or
    do not tell. ``tokens``: prompt and completion of a language model."""
    folder = embedded_model(path, family) or Path(path).expanduser()
    if not folder.is_dir():
        found = downloaded(path) if is_hub_id(path) else None
        if found is None:
            return None
        folder = found
    from accelerate import init_empty_weights

    try:
        with init_empty_weights(include_buffers=True), torch.device("meta"):
            made = untrained_denoiser(folder) if family == "diffusion" else untrained_language_model(folder, family)
            if made is None:
                return None
            network, defaults, excluded = made
            size = _numbers(network)
            adapt(network, lora, defaults, excluded)
            if family == "diffusion":
                return _image_model(folder, network, size, call)
            return _text_model(network, size, tokens)
    except UNTOLD as error:
        if is_out_of_memory(error):
            raise
        return None


def _numbers(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _trained(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


def _image_model(folder: Path, network: Any, size: int, call: Mapping[str, Any]) -> Footprint:
    others, vae = _other_parts(folder), {}
    if (folder / "vae" / "config.json").is_file():
        vae = json.loads((folder / "vae" / "config.json").read_text())
    widths = vae.get("block_out_channels") or [vae.get("base_dim", 0)]
    scale = 2 ** (len(widths) - 1)
    packed = "img_ids" in inspect.signature(network.forward).parameters
    channels = network.config.in_channels // (4 if packed else 1)
    default = getattr(network.config, "sample_size", None) or 1024 // scale
    rows = int(call.get("height") or default * scale) // scale
    columns = int(call.get("width") or default * scale) // scale
    return Footprint(
        size,
        _trained(network),
        others,
        _measured(network, lambda: _denoiser_inputs(network, rows, columns, packed, call)),
        (channels, rows, columns),
        (3, rows * scale, columns * scale),
        int(widths[0]),
    )


def _other_parts(folder: Path) -> dict[str, int]:
    """Parameters of a pipeline's parts but its denoiser."""
    from flowrl.models.diffusion.components import UNCHECKED, kind_of
    from flowrl.models.diffusion.recorder import NETWORKS

    found = {}
    for name, entry in json.loads((folder / "model_index.json").read_text()).items():
        kind = kind_of(entry)
        if kind is None or name in (*NETWORKS, *UNCHECKED) or not (folder / name).is_dir():
            continue
        if hasattr(kind, "load_config"):
            found[name] = _numbers(kind.from_config(kind.load_config(folder / name)))
        else:
            found[name] = _numbers(kind(kind.config_class.from_pretrained(folder / name)))
    return found


def _text_model(network: Any, size: int, tokens: int) -> Footprint:
    from flowrl.models.text.config import text_config

    config = text_config(network.config)
    heads = getattr(config, "num_attention_heads", 0)
    width = getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else 0)
    stored = getattr(config, "num_key_value_heads", None) or heads
    body, most = network.base_model, getattr(config, "max_position_embeddings", None) or tokens
    return Footprint(
        size,
        _trained(network),
        activations=_measured(body, lambda: {"input_ids": torch.zeros(1, min(tokens, most), dtype=torch.int64)}),
        cache=2 * getattr(config, "num_hidden_layers", 0) * stored * width,
        vocabulary=config.vocab_size,
    )


def _denoiser_inputs(network: Any, rows: int, columns: int, packed: bool, call: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs of one row, by the names that diffusers' denoisers have for them. Raises `KeyError` for other ones."""
    config, takes = network.config, inspect.signature(network.forward).parameters
    texts = int(call.get("max_sequence_length") or (512 if packed else 256))
    width = config.get("joint_attention_dim") or config.get("cross_attention_dim") or config["caption_channels"]
    given: dict[str, Any] = {"timestep": torch.zeros(1)}
    if "sample" in takes:
        given |= {"sample": torch.zeros(1, config.in_channels, rows, columns)}
        given["encoder_hidden_states"] = torch.zeros(1, 77, width)
        if config.get("addition_embed_type") == "text_time":
            pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
            given["added_cond_kwargs"] = {"text_embeds": torch.zeros(1, pooled), "time_ids": torch.zeros(1, 6)}
        return given
    if packed:
        image = rows * columns // 4
        given |= {"hidden_states": torch.zeros(1, image, config.in_channels), "img_ids": torch.zeros(image, 3)}
        given["txt_ids"] = torch.zeros(texts, 3)
        given |= {"guidance": torch.zeros(1)} if config.get("guidance_embeds") else {}
    else:
        given["hidden_states"] = torch.zeros(1, config.in_channels, rows, columns)
        texts += 77 if "pooled_projections" in takes else 0
    given["encoder_hidden_states"] = torch.zeros(1, texts, width)
    if "pooled_projections" in takes:
        given["pooled_projections"] = torch.zeros(1, config["pooled_projection_dim"])
    return given


def _measured(network: nn.Module, inputs: Callable[[], dict[str, Any]]) -> Activations | None:
    try:
        return measured_activations(network, inputs())
    except UNTOLD:
        return None


def measured_activations(network: nn.Module, inputs: Mapping[str, Any]) -> Activations:
    """What autograd saves in a forward of ``network``, on whatever device it is, in bytes of float32."""
    own = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    kept: dict[int, int] = {}
    fed: dict[int, int] = {}
    blocks: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    def enter(_: nn.Module, args: Any, kwargs: Any) -> None:
        for value in (*args, *kwargs.values()):
            if isinstance(value, Tensor) and value.requires_grad:
                fed[value.untyped_storage()._cdata] = value.untyped_storage().nbytes()
        blocks.append(-sum(kept.values()))

    def leave(*_: Any) -> None:
        blocks[-1] += sum(kept.values())

    hooks = []
    for block in listed_blocks(network):
        hooks += [block.register_forward_pre_hook(enter, with_kwargs=True), block.register_forward_hook(leave)]
    try:
        with _fused_attention(), torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            out = network(**inputs)  # held, so that no storage is counted under another's number
    finally:
        for hook in hooks:
            hook.remove()
    whole = sum(kept.values())
    del out
    largest = max(blocks, default=whole)
    return Activations(whole, whole - sum(blocks) + sum(fed.values()) + largest, largest)


class _Attention(torch.autograd.Function):
    """Fused attention, for its shapes and what it saves."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, out)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise RuntimeError("only the shapes are known here")


@contextmanager
def _fused_attention() -> Iterator[None]:
    functional: Any = importlib.import_module("torch.nn.functional")
    real = functional.scaled_dot_product_attention

    def fused(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Any:
        return _Attention.apply(query, key, value)

    functional.scaled_dot_product_attention = fused
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = real
