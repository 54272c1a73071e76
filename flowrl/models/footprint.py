"""How large a model is and what it holds while it computes, from its configuration alone: no weight is read, none has
memory.

Networks are built on the meta device, where tensors have shapes and no numbers, and run there with as many rows as the
run gives them (`flowrl.models.held_bytes`). So this needs no formula for an architecture, only inputs of the right
shapes: denoiser and VAE, text encoders, a language model with its cache.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from flowrl.models.family import embedded_model
from flowrl.models.footprint_text import text_computing
from flowrl.models.held_bytes import forward_bytes
from flowrl.models.hub import downloaded, is_hub_id
from flowrl.models.lora import LoRAOptions, adapt
from flowrl.models.lora_preview import told, untrained_denoiser, untrained_language_model
from flowrl.models.placement import listed_blocks
from flowrl.models.portions import PROBES, Computing, Portions, in_training, tried, without_gradient

BRANCHES = 2
"""Of classifier-free guidance."""


@dataclass(frozen=True)
class Footprint:
    """Sizes of a model; numbers are of parameters unless they say bytes."""

    network: int
    trained: int
    others: Mapping[str, int] = field(default_factory=dict)
    """Text encoders, VAE, ... by name."""
    computing: Computing = Computing()
    largest: int = 0
    """The largest layer."""
    gathered: int = 0
    """What FSDP holds whole at once: two blocks, and what is in none."""
    latent: tuple[int, ...] = ()
    """Shape of the latents of one image."""
    image: tuple[int, ...] = ()
    encoded: int = 0
    """Bytes of an encoded prompt."""


def footprint(
    path: str, family: str, lora: LoRAOptions | None, call: Mapping[str, Any], at: Portions
) -> Footprint | None:
    """Of the model in a local folder, embedded world or the hub's local cache; ``None`` where its files are not here or
    do not tell."""
    folder = embedded_model(path, family) or Path(path).expanduser()
    if not folder.is_dir():
        found = downloaded(path) if is_hub_id(path) else None
        if found is None:
            return None
        folder = found
    stamp = max((file.stat().st_mtime_ns for file in folder.rglob("*.json")), default=0)
    key = repr((folder, stamp, family, lora, sorted(call.items()), at))
    if key not in _FOUND:
        _FOUND.clear()  # it is for what is asked twice: by a plan and its run, or run after run
        _FOUND[key] = told(lambda: _footprint(folder, family, lora, call, at))
    return _FOUND[key]


_FOUND: dict[str, Footprint | None] = {}
"""The latest."""


def _footprint(
    folder: Path, family: str, lora: LoRAOptions | None, call: Mapping[str, Any], at: Portions
) -> Footprint | None:
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=True), torch.device("meta"):
        made = untrained_denoiser(folder) if family == "diffusion" else untrained_language_model(folder, family)
        if made is None:
            return None
        network, defaults, excluded = made
        size = _numbers(network)
        nn.Module.to(network, at.frozen if lora is not None else at.trained)  # diffusers' own warns
        adapt(network, lora, defaults, excluded, at.trained)
        sizes = Footprint(size, _trained(network), largest=_largest(network), gathered=_gathered(network, lora))
        if family == "diffusion":
            return _image_model(folder, network, sizes, call, at)
        return replace(sizes, computing=text_computing(network, family, at))


def _numbers(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _trained(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


def _largest(network: nn.Module) -> int:
    return max(sum(p.numel() for p in module.parameters(recurse=False)) for module in network.modules())


def _gathered(network: nn.Module, lora: LoRAOptions | None) -> int:
    """Numbers of two blocks, of which FSDP computes with one and fetches the next, and of what is in no block, which
    stays; of LoRA the frozen ones alone."""

    def count(module: nn.Module) -> int:
        return sum(p.numel() for p in module.parameters() if lora is None or not p.requires_grad)

    blocks = [count(block) for block in listed_blocks(network)]
    return count(network) - sum(blocks) + 2 * max(blocks, default=0)


# ---- image models


def _image_model(folder: Path, network: Any, sizes: Footprint, call: Mapping[str, Any], at: Portions) -> Footprint:
    index = json.loads((folder / "model_index.json").read_text())
    parts = _other_parts(folder, index, at)
    vae = parts.get("vae")
    options: Mapping[str, Any] = {} if vae is None else vae.config
    widths = options.get("block_out_channels") or [options.get("base_dim", 0)]
    scale = 2 ** (len(widths) - 1)
    packed = "img_ids" in inspect.signature(network.forward).parameters
    channels = network.config.in_channels // (4 if packed else 1)
    default = getattr(network.config, "sample_size", None) or 1024 // scale
    rows = int(call.get("height") or default * scale) // scale
    columns = int(call.get("width") or default * scale) // scale
    latent, image = (channels, rows, columns), (3, rows * scale, columns * scale)

    def run(count: int) -> Any:
        return network(**_denoiser_inputs(network, count, rows, columns, packed, call), return_dict=False)

    own = _own_guidance(index, call)
    sampled = at.sampled * _branches(network, own if at.sampled_guidance is None else at.sampled_guidance)
    branches = _branches(network, own if at.updated_guidance is None else at.updated_guidance)
    probed = PROBES * _branches(network, own)
    state = _numbers_of(latent) * 4
    decoding = 0 if vae is None else _decoding(vae, latent, at)
    encoding = max((_encoding(part, call, at) for name, part in parts.items() if name != "vae"), default=0)
    sampling = without_gradient(network, lambda: run(sampled), at)
    probing = max(sampling * probed // sampled, decoding * PROBES // at.decoded)
    if at.checkpointed:
        network.enable_gradient_checkpointing()
    updating = in_training(network, lambda: run(at.updated * (branches if at.both else 1)), at)
    if branches > 1 and not at.both and updating:
        updating = max(updating, without_gradient(network, lambda: run(at.updated), at))
    known = updating + 4 * at.updated * state if updating else 0
    told = tree_leaves(_denoiser_inputs(network, 1, 2, 2, packed, call))
    encoded = sum(tensor.nbytes for tensor in told) * at.frozen.itemsize // 4
    return replace(
        sizes,
        others={name: _numbers(part) for name, part in parts.items()},
        computing=Computing(probing, encoding, sampling + 4 * at.sampled * state, decoding, known),
        latent=latent,
        image=image,
        encoded=encoded * BRANCHES,
    )


def _numbers_of(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()


def _own_guidance(index: Mapping[str, Any], call: Mapping[str, Any]) -> float:
    """The scale of guidance by two branches that a pipeline has by itself: of those that call it ``true_cfg_scale``
    only with a negative prompt."""
    import diffusers

    kind = getattr(diffusers, str(index.get("_class_name")), None)
    takes = {} if kind is None else inspect.signature(kind.__call__).parameters
    if "true_cfg_scale" in takes:
        given = call.get("true_cfg_scale", takes["true_cfg_scale"].default)
        return float(given) if call.get("negative_prompt") is not None else 1.0
    default = takes["guidance_scale"].default if "guidance_scale" in takes else 1.0
    return float(call.get("guidance_scale", default))


def _branches(network: Any, guidance: float) -> int:
    return BRANCHES if guidance != 1 and not network.config.get("guidance_embeds") and guidance > 0 else 1


def _other_parts(folder: Path, index: Mapping[str, Any], at: Portions) -> dict[str, Any]:
    """A pipeline's parts but its denoiser."""
    from flowrl.models.diffusion.components import UNCHECKED, kind_of
    from flowrl.models.diffusion.recorder import NETWORKS
    from flowrl.models.diffusion.stages import SECOND

    found = {}
    for name, entry in index.items():
        kind = kind_of(entry)
        if kind is None or name in (*NETWORKS, SECOND, *UNCHECKED) or not (folder / name).is_dir():
            continue
        if hasattr(kind, "load_config"):
            part = kind.from_config(kind.load_config(folder / name))
        else:
            part = kind(kind.config_class.from_pretrained(folder / name))
        found[name] = nn.Module.to(part, at.frozen).eval()
    return found


def _decoding(vae: Any, latent: tuple[int, ...], at: Portions) -> int:
    """Of decoding so many images at once: the VAE, or what is done to its images."""
    if at.slicing:
        vae.enable_slicing()
    if at.tiling:
        vae.enable_tiling()

    def run() -> Any:
        made = vae.decode(torch.empty(at.decoded, *latent, dtype=at.frozen), return_dict=False)[0]
        return (made * 0.5 + 0.5).clamp(0, 1).float().clamp(0, 1)

    return tried(lambda: forward_bytes(run))


def _encoding(part: Any, call: Mapping[str, Any], at: Portions) -> int:
    """Of encoding the prompts of an iteration, as many at a time as are given to an encoder."""
    from flowrl.models.diffusion.condition import CHUNK

    longest = getattr(part.config, "max_position_embeddings", None)
    tokens = longest if longest and longest < 512 else int(call.get("max_sequence_length") or 256)
    count = min(at.prompts, CHUNK)
    return tried(lambda: forward_bytes(lambda: part(torch.zeros(count, tokens, dtype=torch.int64))))


def _denoiser_inputs(
    network: Any, count: int, rows: int, columns: int, packed: bool, call: Mapping[str, Any]
) -> dict[str, Any]:
    """Inputs of some rows, by the names that diffusers' denoisers have for them. Raises `KeyError` for other ones."""
    config, takes = network.config, inspect.signature(network.forward).parameters
    texts = int(call.get("max_sequence_length") or (512 if packed else 256))
    width = config.get("joint_attention_dim") or config.get("cross_attention_dim") or config["caption_channels"]
    given: dict[str, Any] = {"timestep": torch.zeros(count)}
    if "sample" in takes:
        given |= {"sample": torch.zeros(count, config.in_channels, rows, columns)}
        given["encoder_hidden_states"] = torch.zeros(count, 77, width)
        if config.get("addition_embed_type") == "text_time":
            pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
            given["added_cond_kwargs"] = {"text_embeds": torch.zeros(count, pooled), "time_ids": torch.zeros(count, 6)}
        return given
    if packed:
        image = rows * columns // 4
        given |= {"hidden_states": torch.zeros(count, image, config.in_channels), "img_ids": torch.zeros(image, 3)}
        given["txt_ids"] = torch.zeros(texts, 3)
        given |= {"guidance": torch.zeros(count)} if config.get("guidance_embeds") else {}
    else:
        given["hidden_states"] = torch.zeros(count, config.in_channels, rows, columns)
        texts += 77 if "pooled_projections" in takes else 0
    given["encoder_hidden_states"] = torch.zeros(count, texts, width)
    if "pooled_projections" in takes:
        given["pooled_projections"] = torch.zeros(count, config["pooled_projection_dim"])
    return given
