"""More tiny random pipelines: few-step models, newer architectures, a picture as part of the call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import torch

from tests.components import (
    clip_text,
    clip_tokenizer,
    flow_vae,
    image_vae,
    qwen_text,
    t5_text,
    wan_vae,
    word_tokenizer,
)
from tests.pipelines_embedded import embedding, flow
from tests.pipelines_further import CHAT

SMALL = {"height": 16, "width": 16}


def unet(width: int = 32, **options: Any) -> Any:
    """A UNet of Stable Diffusion's kind."""
    return diffusers.UNet2DConditionModel(
        block_out_channels=(8, 16), layers_per_block=1, sample_size=8, norm_num_groups=4,
        cross_attention_dim=width, attention_head_dim=4, **{
            "in_channels": 4, "out_channels": 4, "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), **options,
        },
    )  # fmt: skip


def latent_consistency() -> Any:
    return diffusers.LatentConsistencyModelPipeline(
        vae=image_vae(), text_encoder=clip_text(), tokenizer=clip_tokenizer(), unet=unet(time_cond_proj_dim=8),
        scheduler=diffusers.LCMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False
        ),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def kolors() -> Any:
    network = diffusers.UNet2DConditionModel(
        block_out_channels=(8, 16), layers_per_block=1, sample_size=8, in_channels=4, out_channels=4, norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32, attention_head_dim=(2, 4), use_linear_projection=True, addition_embed_type="text_time",
        addition_time_embed_dim=8, transformer_layers_per_block=(1, 1), projection_class_embeddings_input_dim=56,
    )  # fmt: skip
    return diffusers.KolorsPipeline(
        vae=image_vae(), text_encoder=None, tokenizer=None, unet=network,
        scheduler=diffusers.EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.014, beta_schedule="scaled_linear", num_train_timesteps=1100,
            timestep_spacing="leading", steps_offset=1,
        ),
    )  # fmt: skip


def sana_vae() -> Any:
    return diffusers.AutoencoderDC(
        latent_channels=4, attention_head_dim=2, encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"), encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8), encoder_layers_per_block=(1, 1), decoder_layers_per_block=[1, 1],
        encoder_qkv_multiscales=((), (5,)), decoder_qkv_multiscales=((), (5,)),
        downsample_block_type="conv", upsample_block_type="interpolate", decoder_norm_types="rms_norm",
        decoder_act_fns="silu", scaling_factor=0.41407,
    )  # fmt: skip


def hunyuan_image(guider: Any = None) -> Any:
    guider = guider or diffusers.ClassifierFreeGuidance(3.5)
    transformer = diffusers.HunyuanImageTransformer2DModel(
        in_channels=4, out_channels=4, num_attention_heads=4, attention_head_dim=8, num_layers=1, num_single_layers=1,
        num_refiner_layers=1, patch_size=(1, 1), text_embed_dim=32, text_embed_2_dim=32, rope_axes_dim=(4, 4),
    )  # fmt: skip
    vae = diffusers.AutoencoderKLHunyuanImage(
        in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(32, 64, 64, 64), layers_per_block=1,
        scaling_factor=0.476986, spatial_compression_ratio=8, sample_size=128,
    )  # fmt: skip
    return diffusers.HunyuanImagePipeline(
        scheduler=flow(shift=7.0), vae=vae, text_encoder=None, tokenizer=None, text_encoder_2=None, tokenizer_2=None,
        transformer=transformer, guider=guider, ocr_guider=guider,
    )  # fmt: skip


def animate_diff() -> Any:
    adapter = diffusers.MotionAdapter(
        block_out_channels=(8, 16), motion_layers_per_block=1, motion_norm_num_groups=4, motion_num_attention_heads=4
    )
    return diffusers.AnimateDiffPipeline(
        vae=image_vae(), text_encoder=clip_text(), tokenizer=clip_tokenizer(), unet=unet(
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D")
        ), motion_adapter=adapter,
        scheduler=diffusers.DDIMScheduler(beta_schedule="linear", clip_sample=False, timestep_spacing="linspace"),
    )  # fmt: skip


def easy_animate() -> Any:
    transformer = diffusers.EasyAnimateTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, time_embed_dim=2,
        text_embed_dim=32, num_layers=1, sample_width=16, sample_height=16, patch_size=2,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLMagvit(
        in_channels=3, out_channels=3, block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1,
        norm_num_groups=2,
        down_block_types=("SpatialDownBlock3D",) + ("SpatialTemporalDownBlock3D",) * 3,
        up_block_types=("SpatialUpBlock3D",) + ("SpatialTemporalUpBlock3D",) * 3, spatial_group_norm=False,
    )  # fmt: skip
    return diffusers.EasyAnimatePipeline(
        tokenizer=word_tokenizer(chat=CHAT),
        text_encoder=qwen_text(),
        vae=vae,
        transformer=transformer,
        scheduler=flow(),
    )


def anyflow() -> Any:
    transformer = diffusers.AnyFlowTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=32,
        freq_dim=16, ffn_dim=32, num_layers=2, rope_max_seq_len=32,
    )  # fmt: skip
    return diffusers.AnyFlowPipeline(
        tokenizer=word_tokenizer(), text_encoder=t5_text(kind="UMT5"), vae=wan_vae("AutoencoderKLWan"),
        transformer=transformer, scheduler=flow(shift=5.0),
    )  # fmt: skip


def forcing() -> Any:
    transformer = diffusers.SkyReelsV2Transformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=32,
        freq_dim=16, ffn_dim=32, num_layers=2, rope_max_seq_len=32,
    )  # fmt: skip
    return diffusers.SkyReelsV2DiffusionForcingPipeline(
        tokenizer=word_tokenizer(), text_encoder=t5_text(kind="UMT5"), vae=wan_vae("AutoencoderKLWan"),
        transformer=transformer,
        scheduler=diffusers.UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=8.0
        ),
    )  # fmt: skip


def flux_kontext() -> Any:
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8), guidance_embeds=True,
    )  # fmt: skip
    return diffusers.FluxKontextPipeline(
        scheduler=flow(shift=3.0, use_dynamic_shifting=True), vae=flow_vae(4), text_encoder=clip_text(),
        tokenizer=clip_tokenizer(), text_encoder_2=t5_text(), tokenizer_2=word_tokenizer(), transformer=transformer,
    )  # fmt: skip


def picture(size: int = 16) -> Any:
    from PIL import Image

    return Image.new("RGB", (size, size), (200, 80, 40))


def flux_control() -> Any:
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=32, out_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8),
        guidance_embeds=True,
    )  # fmt: skip
    return diffusers.FluxControlPipeline(
        scheduler=flow(shift=3.0, use_dynamic_shifting=True), vae=flow_vae(4), text_encoder=clip_text(),
        tokenizer=clip_tokenizer(), text_encoder_2=t5_text(), tokenizer_2=word_tokenizer(), transformer=transformer,
    )  # fmt: skip


def img2img() -> Any:
    return diffusers.StableDiffusionImg2ImgPipeline(
        vae=image_vae(), text_encoder=clip_text(), tokenizer=clip_tokenizer(), unet=unet(),
        scheduler=diffusers.DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def hunyuan_image_mix() -> Any:
    return hunyuan_image(diffusers.AdaptiveProjectedMixGuidance())


PIPELINES: dict[str, Callable[[], Any]] = {
    "latent_consistency": latent_consistency, "kolors": kolors, "hunyuan_image": hunyuan_image,
    "animate_diff": animate_diff, "easy_animate": easy_animate, "flux_kontext": flux_kontext,
    "flux_control": flux_control,
}  # fmt: skip
ONES = torch.ones(1, 6, dtype=torch.long)
CALLS: dict[str, dict[str, Any]] = {
    "latent_consistency": {"guidance_scale": 8.0, **SMALL},
    "kolors": {
        "guidance_scale": 5.0, "prompt_embeds": embedding(6, 32), "pooled_prompt_embeds": embedding(8),
        "negative_prompt_embeds": embedding(6, 32, seed=1), "negative_pooled_prompt_embeds": embedding(8, seed=1),
        **SMALL,
    },
    "hunyuan_image": {
        "prompt_embeds": embedding(6, 32), "prompt_embeds_mask": ONES, "prompt_embeds_2": embedding(6, 32),
        "prompt_embeds_mask_2": ONES, "negative_prompt_embeds": embedding(6, 32, seed=1),
        "negative_prompt_embeds_mask": ONES, "negative_prompt_embeds_2": embedding(6, 32, seed=1),
        "negative_prompt_embeds_mask_2": ONES, "height": 32, "width": 32,
    },
    "animate_diff": {"guidance_scale": 5.0, "num_frames": 4, **SMALL},
    "easy_animate": {"guidance_scale": 5.0, "num_frames": 5, "negative_prompt": "a dog", **SMALL},
    "flux_kontext": {
        "guidance_scale": 3.5, "max_sequence_length": 16, "image": picture(), "max_area": 256, "_auto_resize": False,
        **SMALL,
    },
    "flux_control": {"guidance_scale": 3.5, "max_sequence_length": 16, "control_image": picture(), **SMALL},
}  # fmt: skip
REFUSED: dict[str, tuple[Callable[[], Any], dict[str, Any], str]] = {
    "hunyuan_image_mix": (hunyuan_image_mix, CALLS["hunyuan_image"], "may change during a run"),
    "anyflow": (anyflow, {"num_frames": 5, "max_sequence_length": 16, **SMALL}, "not an affine function"),
    "forcing": (forcing, {"num_frames": 5, "max_sequence_length": 16, **SMALL}, "equally often"),
    "img2img": (img2img, {"guidance_scale": 5.0, "image": picture(), "strength": 0.8}, "starts from noise"),
}
