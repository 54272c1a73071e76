"""Tiny random pipelines, most of them given ready-made text embeddings: their text encoders are hard to imitate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import torch

from tests.components import clip_text, clip_tokenizer, gemma2, qwen_text, t5_text, wan_vae, word_tokenizer

SMALL = {"height": 16, "width": 16}


def flow(**options: Any) -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(**options)


def embedding(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn((1, *shape), generator=torch.Generator().manual_seed(seed))


def flux2_vae() -> Any:
    return diffusers.AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 8), layers_per_block=1, latent_channels=4, norm_num_groups=1, sample_size=32,
    )  # fmt: skip


def video_vae() -> Any:
    return diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=4, down_block_types=("HunyuanVideoDownBlock3D",) * 4,
        up_block_types=("HunyuanVideoUpBlock3D",) * 4, block_out_channels=(8, 8, 8, 8), layers_per_block=1,
        norm_num_groups=4, mid_block_add_attention=True,
    )  # fmt: skip


def flux2() -> Any:
    transformer = diffusers.Flux2Transformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, timestep_guidance_channels=32, axes_dims_rope=(4, 4, 4, 4),
    )  # fmt: skip
    return diffusers.Flux2Pipeline(
        scheduler=flow(use_dynamic_shifting=True), vae=flux2_vae(), text_encoder=None, tokenizer=None,
        transformer=transformer,
    )  # fmt: skip


def hunyuan_video() -> Any:
    transformer = diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=10, num_layers=1, num_single_layers=1,
        num_refiner_layers=1, patch_size=1, text_embed_dim=16, pooled_projection_dim=8, rope_axes_dim=(2, 4, 4),
    )  # fmt: skip
    return diffusers.HunyuanVideoPipeline(
        text_encoder=None, tokenizer=None, transformer=transformer, vae=video_vae(), scheduler=flow(shift=7.0),
        text_encoder_2=None, tokenizer_2=None,
    )  # fmt: skip


def krea2() -> Any:
    transformer = diffusers.Krea2Transformer2DModel(
        in_channels=16, num_layers=1, attention_head_dim=16, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=32, timestep_embed_dim=8, text_hidden_dim=32, num_text_layers=2, text_num_attention_heads=2,
        text_num_key_value_heads=2, text_intermediate_size=32, num_layerwise_text_blocks=1, num_refiner_text_blocks=1,
        axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    return diffusers.Krea2Pipeline(
        scheduler=flow(use_dynamic_shifting=True), vae=wan_vae("AutoencoderKLQwenImage"), text_encoder=None,
        tokenizer=None, transformer=transformer, text_encoder_select_layers=(0, 1),
    )  # fmt: skip


def ernie() -> Any:
    transformer = diffusers.ErnieImageTransformer2DModel(
        hidden_size=32, num_attention_heads=2, num_layers=1, ffn_hidden_size=32, in_channels=16, out_channels=16,
        text_in_dim=16, rope_axes_dim=(4, 6, 6),
    )  # fmt: skip
    return diffusers.ErnieImagePipeline(
        transformer=transformer, vae=flux2_vae(), text_encoder=None, tokenizer=None, scheduler=flow(shift=3.0)
    )


def sana_video() -> Any:
    transformer = diffusers.SanaVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=12, num_layers=1,
        num_cross_attention_heads=2, cross_attention_head_dim=12, cross_attention_dim=24, caption_channels=32,
        sample_size=8, rope_max_seq_len=32,
    )  # fmt: skip
    return diffusers.SanaVideoPipeline(
        tokenizer=word_tokenizer(), text_encoder=gemma2(), vae=wan_vae("AutoencoderKLWan"), transformer=transformer,
        scheduler=flow(shift=8.0),
    )  # fmt: skip


def kandinsky5_video() -> Any:
    transformer = diffusers.Kandinsky5Transformer3DModel(
        in_visual_dim=4, in_text_dim=32, in_text_dim2=32, time_dim=16, out_visual_dim=4, patch_size=(1, 2, 2),
        model_dim=16, ff_dim=32, num_text_blocks=1, num_visual_blocks=2, axes_dims=(1, 1, 2), visual_cond=True,
    )  # fmt: skip
    return diffusers.Kandinsky5T2VPipeline(
        transformer=transformer, vae=video_vae(), text_encoder=qwen_text(), tokenizer=word_tokenizer(),
        text_encoder_2=clip_text(), tokenizer_2=clip_tokenizer(), scheduler=flow(shift=5.0),
    )  # fmt: skip


def allegro() -> Any:
    transformer = diffusers.AllegroTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, num_layers=1,
        cross_attention_dim=24, sample_width=8, sample_height=8, sample_frames=8, caption_channels=32,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLAllegro(
        down_block_types=("AllegroDownBlock3D",) * 4, up_block_types=("AllegroUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2,
        temporal_compression_ratio=4,
    )  # fmt: skip
    return diffusers.AllegroPipeline(
        tokenizer=word_tokenizer(), text_encoder=t5_text(), vae=vae, transformer=transformer,
        scheduler=diffusers.DDIMScheduler(clip_sample=False),
    )  # fmt: skip


PIPELINES: dict[str, Callable[[], Any]] = {
    "flux2": flux2, "hunyuan_video": hunyuan_video, "krea2": krea2, "ernie": ernie,
    "sana_video": sana_video, "kandinsky5_video": kandinsky5_video,
}  # fmt: skip
CALLS: dict[str, dict[str, Any]] = {
    "flux2": {"guidance_scale": 4.0, "prompt_embeds": embedding(6, 32), **SMALL},
    "hunyuan_video": {
        "guidance_scale": 6.0, "num_frames": 5, "prompt_embeds": embedding(6, 16), "pooled_prompt_embeds": embedding(8),
        "prompt_attention_mask": torch.ones(1, 6, dtype=torch.long), **SMALL,
    },
    "krea2": {
        "guidance_scale": 4.5, "prompt_embeds": embedding(6, 2, 32),
        "negative_prompt_embeds": embedding(6, 2, 32, seed=1),
        "prompt_embeds_mask": torch.ones(1, 6, dtype=torch.bool),
        "negative_prompt_embeds_mask": torch.ones(1, 6, dtype=torch.bool), "height": 32, "width": 32,
    },
    "ernie": {
        "guidance_scale": 4.0, "prompt_embeds": [embedding(6, 16)[0]], "use_pe": False,
        "negative_prompt_embeds": [embedding(6, 16, seed=1)[0]], "height": 32, "width": 32,
    },
    "sana_video": {
        "guidance_scale": 6.0, "frames": 5, "max_sequence_length": 16, "complex_human_instruction": None,
        "use_resolution_binning": False, "height": 32, "width": 32,
    },
    "kandinsky5_video": {
        "guidance_scale": 5.0, "num_frames": 5, "max_sequence_length": 16, **SMALL,
    },
}  # fmt: skip
