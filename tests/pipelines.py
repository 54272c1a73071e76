"""Tiny random diffusers pipelines, built from configurations alone and saved as a user would find them on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch

from tests import pipelines_branches as branches
from tests import pipelines_control as control
from tests import pipelines_embedded as embedded
from tests import pipelines_few_steps as few_steps
from tests import pipelines_further as further
from tests import pipelines_newer as newer
from tests import pipelines_pictures as pictures
from tests import pipelines_stages as stages
from tests.components import (
    clip_text,
    clip_tokenizer,
    flow_vae,
    gemma2,
    image_vae,
    qwen_text,
    t5_text,
    wan_vae,
    word_tokenizer,
)

Builder = Callable[[], Any]


def save(name: str, folder: Path) -> Path:
    """Build the pipeline called ``name`` and save it to ``folder``."""
    torch.manual_seed(0)
    pipeline = PIPELINES[name]() if name in PIPELINES else REFUSED[name][0]()
    for part in ("transformer", "transformer_2", "unet", "controlnet"):
        if pipeline.components.get(part) is not None:
            _fill_zeros(pipeline.components[part])
    pipeline.save_pretrained(folder)
    return folder


def _fill_zeros(network: torch.nn.Module) -> None:
    """Gates that start at zero would hide whole blocks, and the text with them, from every comparison."""
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)


def sd15() -> Any:
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(8, 16), layers_per_block=1, sample_size=8, in_channels=4, out_channels=4, norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32, attention_head_dim=4,
    )  # fmt: skip
    scheduler = diffusers.PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
    )
    return diffusers.StableDiffusionPipeline(
        vae=image_vae(), text_encoder=clip_text(), tokenizer=clip_tokenizer(), unet=unet, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def sdxl() -> Any:
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(8, 16), layers_per_block=1, sample_size=8, in_channels=4, out_channels=4, norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=64, attention_head_dim=(2, 4), use_linear_projection=True, addition_embed_type="text_time",
        addition_time_embed_dim=8, transformer_layers_per_block=(1, 1), projection_class_embeddings_input_dim=80,
    )  # fmt: skip
    scheduler = diffusers.EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="leading", steps_offset=1
    )
    return diffusers.StableDiffusionXLPipeline(
        vae=image_vae(), text_encoder=clip_text(), text_encoder_2=clip_text(projection=True),
        tokenizer=clip_tokenizer(), tokenizer_2=clip_tokenizer(), unet=unet, scheduler=scheduler, add_watermarker=False,
    )  # fmt: skip


def sd3() -> Any:
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=16, patch_size=1, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=4,
        caption_projection_dim=32, joint_attention_dim=32, pooled_projection_dim=64, out_channels=4,
    )  # fmt: skip
    return diffusers.StableDiffusion3Pipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), text_encoder=clip_text(projection=True),
        text_encoder_2=clip_text(projection=True), text_encoder_3=t5_text(), tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(), tokenizer_3=word_tokenizer(), transformer=transformer,
        vae=flow_vae(4),
    )  # fmt: skip


def flux() -> Any:
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8), guidance_embeds=True,
    )  # fmt: skip
    return diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True), vae=flow_vae(4),
        text_encoder=clip_text(), tokenizer=clip_tokenizer(), text_encoder_2=t5_text(), tokenizer_2=word_tokenizer(),
        transformer=transformer,
    )  # fmt: skip


def chroma() -> Any:
    transformer = diffusers.ChromaTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, axes_dims_rope=(4, 4, 8), approximator_hidden_dim=32, approximator_layers=1,
        approximator_num_channels=16,
    )  # fmt: skip
    return diffusers.ChromaPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), vae=flow_vae(4), text_encoder=t5_text(),
        tokenizer=word_tokenizer(), transformer=transformer,
    )  # fmt: skip


def pixart_sigma() -> Any:
    transformer = diffusers.PixArtTransformer2DModel(
        sample_size=8, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=3, caption_channels=32,
        in_channels=4, cross_attention_dim=24, out_channels=8, use_additional_conditions=False,
    )  # fmt: skip
    return diffusers.PixArtSigmaPipeline(
        tokenizer=word_tokenizer(), text_encoder=t5_text(), vae=image_vae(), transformer=transformer,
        scheduler=diffusers.DPMSolverMultistepScheduler(beta_schedule="linear", beta_start=1e-4, beta_end=0.02),
    )  # fmt: skip


def sana() -> Any:
    transformer = diffusers.SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_layers=1, num_attention_heads=2, attention_head_dim=8,
        num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16, caption_channels=32,
        sample_size=8,
    )  # fmt: skip
    vae = diffusers.AutoencoderDC(
        latent_channels=4, attention_head_dim=2, encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"), encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8), encoder_layers_per_block=(1, 1), decoder_layers_per_block=[1, 1],
        encoder_qkv_multiscales=((), (5,)), decoder_qkv_multiscales=((), (5,)),
        downsample_block_type="conv", upsample_block_type="interpolate", decoder_norm_types="rms_norm",
        decoder_act_fns="silu", scaling_factor=0.41407,
    )  # fmt: skip
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, algorithm_type="dpmsolver++"
    )
    return diffusers.SanaPipeline(
        tokenizer=word_tokenizer(), text_encoder=gemma2(), vae=vae, transformer=transformer, scheduler=scheduler
    )


def lumina2() -> Any:
    transformer = diffusers.Lumina2Transformer2DModel(
        sample_size=4, patch_size=2, in_channels=4, hidden_size=24, num_layers=2, num_refiner_layers=1,
        num_attention_heads=3, num_kv_heads=1, multiple_of=2, axes_dim_rope=(4, 2, 2), axes_lens=(64, 64, 64),
        cap_feat_dim=32,
    )  # fmt: skip
    return diffusers.Lumina2Pipeline(
        transformer=transformer, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=6.0), vae=flow_vae(4),
        text_encoder=gemma2(), tokenizer=word_tokenizer(),
    )  # fmt: skip


def qwen_image() -> Any:
    transformer = diffusers.QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    return diffusers.QwenImagePipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.02),
        vae=wan_vae("AutoencoderKLQwenImage"), text_encoder=qwen_text(), tokenizer=word_tokenizer(),
        transformer=transformer,
    )  # fmt: skip


def wan() -> Any:
    transformer = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=32,
        freq_dim=16, ffn_dim=32, num_layers=2, rope_max_seq_len=32,
    )  # fmt: skip
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    return diffusers.WanPipeline(
        tokenizer=word_tokenizer(), text_encoder=t5_text(kind="UMT5"), vae=wan_vae("AutoencoderKLWan"),
        scheduler=scheduler, transformer=transformer,
    )  # fmt: skip


PIPELINES: dict[str, Builder] = {
    "sd15": sd15, "sdxl": sdxl, "sd3": sd3, "flux": flux, "chroma": chroma, "pixart_sigma": pixart_sigma, "sana": sana,
    "lumina2": lumina2, "qwen_image": qwen_image, "wan": wan, **further.PIPELINES,
    **embedded.PIPELINES, **few_steps.PIPELINES, **newer.PIPELINES, **pictures.PIPELINES, **stages.PIPELINES,
    **control.PIPELINES, **branches.PIPELINES,
}  # fmt: skip
SMALL = {"height": 16, "width": 16}
CALLS: dict[str, dict[str, Any]] = {
    "sd15": {"guidance_scale": 5.0, **SMALL},
    "sdxl": {"guidance_scale": 5.0, **SMALL},
    "sd3": {"guidance_scale": 4.5, "max_sequence_length": 16, **SMALL},
    "flux": {"guidance_scale": 3.5, "max_sequence_length": 16, **SMALL},
    "chroma": {"guidance_scale": 4.0, "max_sequence_length": 16, **SMALL},
    "pixart_sigma": {"guidance_scale": 4.5, "max_sequence_length": 16, "use_resolution_binning": False, **SMALL},
    "sana": {
        "guidance_scale": 4.5, "max_sequence_length": 16, "use_resolution_binning": False,
        "complex_human_instruction": None, "height": 32, "width": 32,
    },
    "lumina2": {"guidance_scale": 4.0, "max_sequence_length": 16, **SMALL},
    "qwen_image": {"true_cfg_scale": 4.0, "negative_prompt": "a dog", "height": 32, "width": 32},
    "wan": {"guidance_scale": 5.0, "num_frames": 5, "max_sequence_length": 16, **SMALL},
    **further.CALLS,
    **embedded.CALLS,
    **few_steps.CALLS,
    **newer.CALLS,
    **pictures.CALLS,
    **stages.CALLS,
    **control.CALLS,
    **branches.CALLS,
}  # fmt: skip
"""Arguments a user would load each of them with."""

REFUSED: dict[str, tuple[Builder, dict[str, Any], str]] = {
    "text_to_video": (further.text_to_video, {"num_frames": 2, **SMALL}, "none of the denoiser inputs"),
    "allegro": (embedded.allegro, {"num_frames": 8, "clean_caption": False, **SMALL}, "Decoding without tiling"),
    "prx_guided": (further.prx, {"guidance_scale": 4.0, "use_resolution_binning": False, **SMALL}, "itself fails"),
    **newer.REFUSED,
    **pictures.REFUSED,
    **control.REFUSED,
}
"""Pipelines that cannot be replayed, with what the user is told."""
