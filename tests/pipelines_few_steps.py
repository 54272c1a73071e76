"""Tiny pipelines set up as distilled models are: few steps, their schedulers, guidance off or embedded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers

from tests.components import clip_text, clip_tokenizer, flow_vae, gemma2, image_vae, t5_text, word_tokenizer
from tests.pipelines_newer import sana_vae, unet

STABLE_DIFFUSION: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def sd_turbo() -> Any:
    """stabilityai/sd-turbo: the scheduler of its folder."""
    return _sd15(diffusers.EulerDiscreteScheduler(timestep_spacing="trailing", **STABLE_DIFFUSION))


def hyper_sd() -> Any:
    """A Hyper-SD LoRA's base with the scheduler of its model card."""
    return _sd15(diffusers.TCDScheduler(clip_sample=False, **STABLE_DIFFUSION))


def _sd15(scheduler: Any) -> Any:
    return diffusers.StableDiffusionPipeline(
        vae=image_vae(), text_encoder=clip_text(), tokenizer=clip_tokenizer(), unet=unet(), scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def sdxl_turbo() -> Any:
    """stabilityai/sdxl-turbo: ancestral steps from the last timestep."""
    return _sdxl(diffusers.EulerAncestralDiscreteScheduler(timestep_spacing="trailing", **STABLE_DIFFUSION))


def sdxl_dmd2() -> Any:
    """SDXL with the network of tianweiy/DMD2, or with an LCM LoRA: predict and noise again."""
    return _sdxl(diffusers.LCMScheduler(clip_sample=False, original_inference_steps=100, **STABLE_DIFFUSION))


def _sdxl(scheduler: Any) -> Any:
    network = diffusers.UNet2DConditionModel(
        block_out_channels=(8, 16), layers_per_block=1, sample_size=8, in_channels=4, out_channels=4, norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=64, attention_head_dim=(2, 4), use_linear_projection=True, addition_embed_type="text_time",
        addition_time_embed_dim=8, transformer_layers_per_block=(1, 1), projection_class_embeddings_input_dim=80,
    )  # fmt: skip
    return diffusers.StableDiffusionXLPipeline(
        vae=image_vae(), text_encoder=clip_text(), text_encoder_2=clip_text(projection=True),
        tokenizer=clip_tokenizer(), tokenizer_2=clip_tokenizer(), unet=network, scheduler=scheduler,
        add_watermarker=False,
    )  # fmt: skip


def flux_schnell() -> Any:
    """black-forest-labs/FLUX.1-schnell: no embedded guidance, no shift."""
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8), guidance_embeds=False,
    )  # fmt: skip
    return diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0), vae=flow_vae(4), text_encoder=clip_text(),
        tokenizer=clip_tokenizer(), text_encoder_2=t5_text(), tokenizer_2=word_tokenizer(), transformer=transformer,
    )  # fmt: skip


def sd3_turbo() -> Any:
    """stabilityai/stable-diffusion-3.5-large-turbo: the pipeline of SD3 without guidance."""
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=16, patch_size=1, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=4,
        caption_projection_dim=32, joint_attention_dim=32, pooled_projection_dim=64, out_channels=4,
    )  # fmt: skip
    return diffusers.StableDiffusion3Pipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), text_encoder=clip_text(projection=True),
        text_encoder_2=clip_text(projection=True), text_encoder_3=t5_text(), tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(), tokenizer_3=word_tokenizer(), transformer=transformer, vae=flow_vae(4),
    )  # fmt: skip


def pixart_lcm() -> Any:
    """PixArt-alpha/PixArt-LCM-XL-2-1024-MS."""
    transformer = diffusers.PixArtTransformer2DModel(
        sample_size=8, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=3, caption_channels=32,
        in_channels=4, cross_attention_dim=24, out_channels=8, use_additional_conditions=False,
    )  # fmt: skip
    return diffusers.PixArtAlphaPipeline(
        tokenizer=word_tokenizer(), text_encoder=t5_text(), vae=image_vae(), transformer=transformer,
        scheduler=diffusers.LCMScheduler(beta_schedule="linear", beta_start=1e-4, beta_end=0.02, clip_sample=False),
    )  # fmt: skip


def sana_sprint() -> Any:
    """Efficient-Large-Model/Sana_Sprint: a network of a flow, sampled in the coordinates of TrigFlow."""
    transformer = diffusers.SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_layers=1, num_attention_heads=2, attention_head_dim=8,
        num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16, caption_channels=32,
        sample_size=8, qk_norm="rms_norm_across_heads", guidance_embeds=True,
    )  # fmt: skip
    return diffusers.SanaSprintPipeline(
        tokenizer=word_tokenizer(), text_encoder=gemma2(), vae=sana_vae(), transformer=transformer,
        scheduler=diffusers.SCMScheduler(prediction_type="trigflow"),
    )  # fmt: skip


PIPELINES: dict[str, Callable[[], Any]] = {
    "sd_turbo": sd_turbo, "sdxl_turbo": sdxl_turbo, "sdxl_dmd2": sdxl_dmd2, "hyper_sd": hyper_sd,
    "flux_schnell": flux_schnell, "sd3_turbo": sd3_turbo, "pixart_lcm": pixart_lcm, "sana_sprint": sana_sprint,
}  # fmt: skip
SMALL = {"height": 16, "width": 16}
CALLS: dict[str, dict[str, Any]] = {
    "sd_turbo": {"guidance_scale": 0.0, **SMALL},
    "sdxl_turbo": {"guidance_scale": 0.0, **SMALL},
    "sdxl_dmd2": {"guidance_scale": 0.0, **SMALL},
    "hyper_sd": {"guidance_scale": 0.0, **SMALL},
    "flux_schnell": {"guidance_scale": 0.0, "max_sequence_length": 16, **SMALL},
    "sd3_turbo": {"guidance_scale": 0.0, "max_sequence_length": 16, **SMALL},
    "pixart_lcm": {"guidance_scale": 0.0, "max_sequence_length": 16, "use_resolution_binning": False, **SMALL},
    "sana_sprint": {
        "max_sequence_length": 16, "complex_human_instruction": None, "use_resolution_binning": False, "height": 32,
        "width": 32,
    },
}  # fmt: skip
MODELS = {
    "sd_turbo": "SD-Turbo",
    "sdxl_turbo": "SDXL-Turbo",
    "sdxl_dmd2": "DMD2",
    "hyper_sd": "Hyper-SD",
    "flux_schnell": "schnell",
    "sd3_turbo": "SD3.5-Turbo",
    "pixart_lcm": "PixArt-LCM",
}
"""Distilled models whose class is also that of others."""
