"""What cannot be read off a watched run: the one place where pipelines and networks are named."""

from __future__ import annotations

from collections.abc import Mapping

TARGETS: Mapping[str, tuple[str, ...]] = {
    "Kandinsky5Transformer3DModel": (
        "to_query",
        "to_key",
        "to_value",
        "self_attention.out_layer",
        "cross_attention.out_layer",
    ),
    "PRXTransformer2DModel": ("img_qkv_proj", "txt_kv_proj", "to_out.0"),
}
"""Attention projections of networks that do not use diffusers' names for them."""

REFUSED: Mapping[str, str] = {}
"""Pipeline classes that look replayable and are not, and why."""
