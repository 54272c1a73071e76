"""The names of kohya's sd-scripts, which A1111, ComfyUI and Forge read too: ``lora_unet_...`` with ``.alpha``.

U-Nets of Stable Diffusion keep diffusers' names, those of SDXL have Stability's (``input_blocks_4_1``); transformers of
SD3 and FLUX have those of their own releases, where queries, keys and values are one layer. Adapters of its parts
become one of a block-diagonal form, with the sum of their ranks: exact, and taken apart again by diffusers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from flowrl.errors import UserError

ROOT, PLAIN = "lora_unet_", "lora_transformer_"
"""Beginnings of kohya's names, and of OneTrainer's, which are diffusers' own with underscores."""
FLUX_WIDTH = 3072
"""Of FLUX.1. Diffusers takes its single blocks apart at this width only, so smaller ones get OneTrainer's names, which
ComfyUI and diffusers read as well."""
Update = tuple[Tensor, Tensor]
"""``(down [rank, in], up [out, rank])``."""

SD3_BLOCK = {
    "x_block.attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "context_block.attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "x_block.attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
    "x_block.attn.proj": ("attn.to_out.0",),
    "context_block.attn.proj": ("attn.to_add_out",),
    "x_block.attn2.proj": ("attn2.to_out.0",),
    "x_block.mlp.fc1": ("ff.net.0.proj",),
    "x_block.mlp.fc2": ("ff.net.2",),
    "context_block.mlp.fc1": ("ff_context.net.0.proj",),
    "context_block.mlp.fc2": ("ff_context.net.2",),
    "x_block.adaLN_modulation.1": ("norm1.linear",),
    "context_block.adaLN_modulation.1": ("norm1_context.linear",),
}
SD3_TOP = {
    "x_embedder.proj": "pos_embed.proj",
    "context_embedder": "context_embedder",
    "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
    "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
    "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
}
FLUX_DOUBLE = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.proj": ("attn.to_add_out",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
    "img_mod.lin": ("norm1.linear",),
    "txt_mod.lin": ("norm1_context.linear",),
}
FLUX_SINGLE = {
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "modulation.lin": ("norm.linear",),
}
FLUX_TOP = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
}
FAMILIES = {
    "StableDiffusion3": ("networks.lora_sd3", (("joint_blocks", "transformer_blocks", SD3_BLOCK),), SD3_TOP),
    "Flux": (
        "networks.lora_flux",
        (
            ("double_blocks", "transformer_blocks", FLUX_DOUBLE),
            ("single_blocks", "single_transformer_blocks", FLUX_SINGLE),
        ),
        FLUX_TOP,
    ),
}  # fmt: skip
"""By the beginning of the pipeline's class: kohya's module, ``(their blocks, diffusers' blocks, parts)``, the rest."""


def module_of(pipeline: str) -> str | None:
    """Kohya's network module for a pipeline class; ``None`` for one whose names it does not have."""
    if pipeline.startswith(("StableDiffusionXL", "StableDiffusionPipeline", "StableDiffusionImg2Img")):
        return "networks.lora"
    return next((entry[0] for start, entry in FAMILIES.items() if pipeline.startswith(start)), None)


def to_kohya(
    pipeline: str, updates: Mapping[str, Update], scales: Mapping[str, float], width: Callable[[str], int], lpb: int = 2
) -> dict[str, Tensor]:
    """Kohya's tensors of an adapter.

    Args:
        pipeline: the pipeline's class.
        updates: down and up matrices by diffusers' layer name. scales: alpha / rank of each.
        width: output features of a layer, adapted or not.
        lpb: ``layers_per_block`` of a U-Net.

    Raises:
        UserError: for a layer that their models do not have.
    """
    start = next((start for start in FAMILIES if pipeline.startswith(start)), None)
    found: dict[str, Tensor] = {}
    single = next((name for name in updates if re.fullmatch(r"single_transformer_blocks\.\d+\.attn\.to_q", name)), None)
    if start == "Flux" and single is not None and width(single) != FLUX_WIDTH:
        for name, update in updates.items():
            _put(found, name, update, scales[name], PLAIN)
        return found
    if start is None:
        rename = (lambda name: sgm_name(name, lpb)) if pipeline.startswith("StableDiffusionXL") else str
        for name, update in updates.items():
            _put(found, rename(name), update, scales[name])
        return found
    for theirs, parts in _fused(FAMILIES[start], updates):
        _put(found, theirs, *_joined(parts, updates, scales, width))
    return found


def _put(found: dict[str, Tensor], name: str, update: Update, scale: float, root: str = ROOT) -> None:
    stem = root + name.replace(".", "_")
    found[f"{stem}.lora_down.weight"], found[f"{stem}.lora_up.weight"] = (part.contiguous() for part in update)
    found[f"{stem}.alpha"] = torch.tensor(scale * len(update[0]))


def _fused(family: tuple, updates: Mapping[str, Update]) -> Iterator[tuple[str, Sequence[str]]]:
    """``(their layer, diffusers' layers in it)`` of every layer that an update is for."""
    _, stacks, top = family
    left = dict.fromkeys(updates)
    for name in list(left):
        if name not in left:
            continue
        for theirs, ours, parts in stacks:
            match = re.fullmatch(rf"{ours}\.(\d+)\.(.+)", name)
            entry = next((p for p in parts.items() if match and match[2] in p[1]), None)
            if match and entry:
                whole = [f"{ours}.{match[1]}.{part}" for part in entry[1]]
                for part in whole:
                    left.pop(part, None)
                yield f"{theirs}.{match[1]}.{entry[0]}", whole
                break
        else:
            found = next((theirs for theirs, ours in top.items() if ours == name), None)
            if found is None:
                raise UserError(
                    f"kohya's names have none for the layer {name}; export to diffusers, or leave it out of"
                    " model.lora.targets"
                )
            left.pop(name)
            yield found, [name]


def _joined(
    parts: Sequence[str], updates: Mapping[str, Update], scales: Mapping[str, float], width: Callable[[str], int]
) -> tuple[Update, float]:
    """One update of the stacked outputs of several layers, and its scale."""
    if len(parts) == 1:
        down, up = updates[parts[0]]
        return (down, _swapped(up) if _swaps(parts[0], down, up) else up), scales[parts[0]]
    present = [part for part in parts if part in updates]
    rank, scale = max(len(updates[part][0]) for part in present), scales[present[0]]
    like = updates[present[0]][0]
    downs, ups = [], []
    for part in parts:
        down, up = updates.get(part, (like.new_zeros(0, like.shape[1]), like.new_zeros(width(part), 0)))
        downs.append(torch.cat([down, like.new_zeros(rank - len(down), like.shape[1])]))
        factor = scales[part] / scale if part in scales else 1.0
        ups.append(torch.cat([up * factor, up.new_zeros(len(up), rank - up.shape[1])], 1))
    return (torch.cat(downs), torch.block_diag(*ups)), scale


def is_sd3(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a file has kohya's names of SD3, which diffusers cannot rename."""
    return any(name.startswith(f"{ROOT}joint_blocks_") for name in tensors)


def sd3_to_diffusers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Kohya's SD3 adapter in diffusers' names. Alpha goes into the down matrices, as diffusers does for FLUX, so that
    alpha = rank. Raises `UserError` for a tensor that SD3 has no layer for."""
    left = dict(tensors)
    found = {key: left.pop(key) for key in tensors if key.startswith("text_encoder")}
    for stem in sorted({name.split(".")[0] for name in left}):
        down, up = left.pop(f"{stem}.lora_down.weight", None), left.pop(f"{stem}.lora_up.weight", None)
        alpha = left.pop(f"{stem}.alpha", None)
        parts = _sd3_parts(stem)
        if down is None or up is None or parts is None:
            raise UserError(f"the tensors of {stem} are not those of a layer of Stable Diffusion 3")
        down = down * (1.0 if alpha is None else float(alpha) / len(down))
        if _swaps(parts[0], down, up):
            up = _swapped(up)
        for part, (a, b) in zip(parts, _apart(down, up, len(parts)), strict=True):
            found[f"transformer.{part}.lora_A.weight"], found[f"transformer.{part}.lora_B.weight"] = a, b
    if left:
        raise UserError(f"the tensor {next(iter(left))} is not one of kohya's LoRA of Stable Diffusion 3")
    return found


def _sd3_parts(stem: str) -> Sequence[str] | None:
    flat = stem.removeprefix(ROOT)
    block = re.fullmatch(r"joint_blocks_(\d+)_(.+)", flat)
    if block:
        parts = next((parts for theirs, parts in SD3_BLOCK.items() if theirs.replace(".", "_") == block[2]), None)
        return None if parts is None else [f"transformer_blocks.{block[1]}.{part}" for part in parts]
    found = next((ours for theirs, ours in SD3_TOP.items() if theirs.replace(".", "_") == flat), None)
    return None if found is None else [found]


def _apart(down: Tensor, up: Tensor, count: int) -> list[Update]:
    """Updates of the equal parts of a layer's outputs; of a block-diagonal one, each with its own rank."""
    rows = list(up.chunk(count))
    if len(down) % count == 0:
        blocks = [list(row.chunk(count, 1)) for row in rows]
        if all(not bool(b.any()) for i, row in enumerate(blocks) for j, b in enumerate(row) if i != j):
            return [(a, blocks[i][i].contiguous()) for i, a in enumerate(down.chunk(count))]
    return [(down.clone(), row.contiguous()) for row in rows]


def _swaps(layer: str, down: Tensor, up: Tensor) -> bool:
    """Whether the layer's outputs are scale and shift in diffusers where the release has shift and scale: the last
    normalisations, which have two outputs a channel."""
    final = layer == "norm_out.linear" or layer.endswith("norm1_context.linear")
    return final and len(up) == 2 * down.shape[1]


def _swapped(up: Tensor) -> Tensor:
    return torch.cat(list(reversed(up.chunk(2))))


INNER = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
OUTER = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}


def sgm_name(name: str, lpb: int) -> str:
    """A layer of diffusers' U-Net by Stability's name: blocks are counted through, each with ``lpb`` layers and one
    that changes the size."""
    if name in OUTER:
        return OUTER[name]
    parts = name.split(".")
    if parts[0] == "mid_block":
        place = f"middle_block.{1 if parts[1] == 'attentions' else 2 * int(parts[2])}"
        return ".".join([place, _inner(parts[3:], parts[1])])
    down, block, kind, layer = parts[0] == "down_blocks", int(parts[1]), parts[2], int(parts[3])
    start = block * (lpb + 1) + (1 if down else 0)
    side = "input_blocks" if down else "output_blocks"
    if kind == "downsamplers":
        return f"{side}.{start + lpb}.0.op"
    if kind == "upsamplers":
        return f"{side}.{start + lpb}.2.conv"
    return f"{side}.{start + layer}.{1 if kind == 'attentions' else 0}.{_inner(parts[4:], kind)}"


def _inner(parts: Sequence[str], kind: str) -> str:
    rest = ".".join(parts)
    return INNER.get(rest, rest) if kind == "resnets" else rest
