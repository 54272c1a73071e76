"""LoRA targets of networks that do not use diffusers' names for attention: the one place where networks are named."""

from __future__ import annotations

from collections.abc import Mapping

from flowrl.models.lora import ATTENTION_TARGETS

LORA_TARGETS: Mapping[str, tuple[str, ...]] = {
    "Kandinsky5Transformer3DModel": (
        "to_query",
        "to_key",
        "to_value",
        "self_attention.out_layer",
        "cross_attention.out_layer",
    ),
    "PRXTransformer2DModel": ("img_qkv_proj", "txt_kv_proj", "to_out.0"),
    # SD3.5 medium has a second, image-only attention `attn2` in 13 of its 24 blocks, which the released code of
    # Flow-GRPO, DiffusionNFT and AWM does not adapt: 191 layers instead of 243
    "SD3Transformer2DModel": tuple(f"attn.{name}" for name in ATTENTION_TARGETS),
}
"""Attention projections of networks that do not use diffusers' names for them, or of which not all are meant."""
