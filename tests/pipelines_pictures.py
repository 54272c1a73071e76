"""Tiny random pipelines that are told a picture or a video besides the prompt: the same one for all prompts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import torch
import transformers

from tests import pipelines as base
from tests import pipelines_embedded as embedded
from tests import pipelines_further as further
from tests import pipelines_newer as newer
from tests.components import flow_vae, t5_text, wan_vae, word_tokenizer
from tests.pipelines_embedded import embedding, flow
from tests.pipelines_newer import picture

SMALL = {"height": 16, "width": 16}
LENGTH = {"max_sequence_length": 16}
VIDEO = [picture() for _ in range(5)]


def variant(kind: str, of: Any, **parts: Any) -> Any:
    """The pipeline class ``kind`` of the parts of pipeline ``of``, some of them other ones."""
    return getattr(diffusers, kind)(**{**of.components, **parts})


def wide_flux(channels: int) -> Any:
    return diffusers.FluxTransformer2DModel(
        in_channels=channels, out_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8),
        guidance_embeds=True,
    )  # fmt: skip


def flux_fill() -> Any:
    return variant("FluxFillPipeline", base.flux(), transformer=wide_flux(48))


def inpaint() -> Any:
    return variant("StableDiffusionInpaintPipeline", base.sd15(), unet=newer.unet(in_channels=9))


def inpaint_xl() -> Any:
    unet = diffusers.UNet2DConditionModel.from_config({**base.sdxl().unet.config, "in_channels": 9})
    return variant("StableDiffusionXLInpaintPipeline", base.sdxl(), unet=unet)


def adapter() -> Any:
    net = diffusers.T2IAdapter(in_channels=3, channels=[8, 16], num_res_blocks=1, downscale_factor=2)
    return variant("StableDiffusionAdapterPipeline", base.sd15(), adapter=net)


def adapter_xl() -> Any:
    net = diffusers.T2IAdapter(in_channels=3, channels=[8, 16], num_res_blocks=1, downscale_factor=2)
    return variant("StableDiffusionXLAdapterPipeline", base.sdxl(), adapter=net)


def cogvideox_picture() -> Any:
    of = further.cogvideox()
    transformer = diffusers.CogVideoXTransformer3DModel.from_config({**of.transformer.config, "in_channels": 8})
    return variant("CogVideoXImageToVideoPipeline", of, transformer=transformer)


def cogview4_control() -> Any:
    of = further.cogview4()
    transformer = diffusers.CogView4Transformer2DModel.from_config({**of.transformer.config, "in_channels": 8})
    return variant("CogView4ControlPipeline", of, transformer=transformer)


def wan_vace() -> Any:
    transformer = diffusers.WanVACETransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=32,
        freq_dim=16, ffn_dim=32, num_layers=2, rope_max_seq_len=32, vace_layers=[0], vace_in_channels=12,
    )  # fmt: skip
    return variant("WanVACEPipeline", base.wan(), transformer=transformer, vae=wan_vae("AutoencoderKLWan"))


def wan_picture() -> Any:
    transformer = diffusers.WanTransformer3DModel.from_config({**base.wan().transformer.config, "in_channels": 12})
    return variant("WanImageToVideoPipeline", base.wan(), transformer=transformer)


def lucy() -> Any:
    transformer = diffusers.WanTransformer3DModel.from_config({**base.wan().transformer.config, "in_channels": 8})
    return variant("LucyEditPipeline", base.wan(), transformer=transformer)


def qwen_edit() -> Any:
    return variant("QwenImageEditPipeline", base.qwen_image(), text_encoder=None, tokenizer=None, processor=None)


def hunyuan_video15() -> Any:
    transformer = diffusers.HunyuanVideo15Transformer3DModel(
        in_channels=9, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=1, num_refiner_layers=1,
        mlp_ratio=2.0, text_embed_dim=16, text_embed_2_dim=8, image_embed_dim=12, rope_axes_dim=(2, 2, 4),
        target_size=16, task_type="t2v",
    )  # fmt: skip
    vae = diffusers.AutoencoderKLHunyuanVideo15(
        latent_channels=4, block_out_channels=(16, 16), layers_per_block=1, spatial_compression_ratio=4,
        temporal_compression_ratio=4,
    )  # fmt: skip
    return diffusers.HunyuanVideo15Pipeline(
        text_encoder=None, tokenizer=None, transformer=transformer, vae=vae, scheduler=flow(shift=7.0),
        text_encoder_2=None, tokenizer_2=None, guider=diffusers.ClassifierFreeGuidance(6.0),
    )  # fmt: skip


def ltx_condition() -> Any:
    return variant("LTXConditionPipeline", further.ltx())


def animate_diff_xl() -> Any:
    motion = diffusers.MotionAdapter(
        block_out_channels=(8, 16), motion_layers_per_block=1, motion_norm_num_groups=4, motion_num_attention_heads=4,
        use_motion_mid_block=False,
    )  # fmt: skip
    return variant("AnimateDiffSDXLPipeline", base.sdxl(), motion_adapter=motion)


def skyreels_picture() -> Any:
    of = embedded.hunyuan_video()
    transformer = diffusers.HunyuanVideoTransformer3DModel.from_config({**of.transformer.config, "in_channels": 8})
    return variant("HunyuanSkyreelsImageToVideoPipeline", of, transformer=transformer)


PIPELINES: dict[str, Callable[[], Any]] = {
    "flux_fill": flux_fill, "inpaint": inpaint, "inpaint_xl": inpaint_xl, "adapter": adapter, "adapter_xl": adapter_xl,
    "cogvideox_picture": cogvideox_picture, "cogview4_control": cogview4_control, "wan_vace": wan_vace,
    "wan_picture": wan_picture, "lucy": lucy, "qwen_edit": qwen_edit, "hunyuan_video15": hunyuan_video15,
    "ltx_condition": ltx_condition, "animate_diff_xl": animate_diff_xl, "skyreels_picture": skyreels_picture,
}  # fmt: skip
CALLS: dict[str, dict[str, Any]] = {
    "flux_fill": {"guidance_scale": 30.0, "image": picture(), "mask_image": picture(), **LENGTH, **SMALL},
    "inpaint": {"guidance_scale": 5.0, "image": picture(), "mask_image": picture(), "strength": 1.0, **SMALL},
    "inpaint_xl": {"guidance_scale": 5.0, "image": picture(), "mask_image": picture(), "strength": 1.0, **SMALL},
    "adapter": {"guidance_scale": 5.0, "image": picture(), **SMALL},
    "adapter_xl": {"guidance_scale": 5.0, "image": picture(), **SMALL},
    "cogvideox_picture": {"guidance_scale": 6.0, "num_frames": 9, "image": picture(), **LENGTH, **SMALL},
    "cogview4_control": {"guidance_scale": 5.0, "control_image": picture(), **LENGTH, **SMALL},
    "wan_vace": {"guidance_scale": 5.0, "num_frames": 5, "video": VIDEO, **LENGTH, **SMALL},
    "wan_picture": {"guidance_scale": 5.0, "num_frames": 5, "image": picture(), **LENGTH, **SMALL},
    "lucy": {"guidance_scale": 5.0, "num_frames": 5, "video": VIDEO, **LENGTH, **SMALL},
    "qwen_edit": {
        "true_cfg_scale": 4.0, "image": picture(32), "prompt_embeds": embedding(6, 32),
        "prompt_embeds_mask": torch.ones(1, 6, dtype=torch.long), "negative_prompt_embeds": embedding(6, 32, seed=1),
        "negative_prompt_embeds_mask": torch.ones(1, 6, dtype=torch.long), "height": 32, "width": 32,
    },
    "hunyuan_video15": {
        "num_frames": 5, "prompt_embeds": embedding(6, 16), "prompt_embeds_mask": torch.ones(1, 6, dtype=torch.long),
        "prompt_embeds_2": embedding(4, 8), "prompt_embeds_mask_2": torch.ones(1, 4, dtype=torch.long),
        "negative_prompt_embeds": embedding(6, 16, seed=1),
        "negative_prompt_embeds_mask": torch.ones(1, 6, dtype=torch.long),
        "negative_prompt_embeds_2": embedding(4, 8, seed=1),
        "negative_prompt_embeds_mask_2": torch.ones(1, 4, dtype=torch.long), **SMALL,
    },
    "ltx_condition": {"guidance_scale": 3.0, "num_frames": 9, **LENGTH, "height": 32, "width": 32},
    "animate_diff_xl": {"guidance_scale": 5.0, "num_frames": 4, **SMALL},
    "skyreels_picture": {
        "true_cfg_scale": 6.0, "guidance_scale": 1.0, "num_frames": 5, "image": picture(),
        "prompt_embeds": embedding(6, 16), "pooled_prompt_embeds": embedding(8),
        "prompt_attention_mask": torch.ones(1, 6, dtype=torch.long), "negative_prompt_embeds": embedding(6, 16, seed=1),
        "negative_pooled_prompt_embeds": embedding(8, seed=1),
        "negative_prompt_attention_mask": torch.ones(1, 6, dtype=torch.long), **SMALL,
    },
}  # fmt: skip
