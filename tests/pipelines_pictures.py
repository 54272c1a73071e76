"""Tiny random pipelines that are told a picture or a video besides the prompt: the same one for all prompts."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import diffusers
import torch
import transformers

from tests import pipelines as base
from tests import pipelines_embedded as embedded
from tests import pipelines_further as further
from tests import pipelines_newer as newer
from tests.components import t5_text, wan_vae, word_tokenizer
from tests.pipelines_embedded import embedding, flow
from tests.pipelines_newer import picture

SMALL = {"height": 16, "width": 16}
LENGTH = {"max_sequence_length": 16}
CROSS_FIRST = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")
}  # fmt: skip
VIDEO = [picture() for _ in range(5)]


def variant(kind: str, of: Any, **parts: Any) -> Any:
    """The pipeline class ``kind`` of the parts of pipeline ``of``, some of them other ones."""
    made = getattr(diffusers, kind)
    known = inspect.signature(made.__init__).parameters
    return made(**{key: part for key, part in {**of.components, **parts}.items() if key in known})


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
    return variant("StableDiffusionAdapterPipeline", base.sd15(), adapter=net, unet=newer.unet(**CROSS_FIRST))


def adapter_xl() -> Any:
    net = diffusers.T2IAdapter(in_channels=3, channels=[8, 16], num_res_blocks=1, downscale_factor=2)
    of = base.sdxl()
    unet = diffusers.UNet2DConditionModel.from_config({**of.unet.config, **CROSS_FIRST})
    return variant("StableDiffusionXLAdapterPipeline", of, adapter=net, unet=unet)


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


def hunyuan_video15() -> Any:
    transformer = diffusers.HunyuanVideo15Transformer3DModel(
        in_channels=9, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=1, num_refiner_layers=1,
        mlp_ratio=2.0, text_embed_dim=16, text_embed_2_dim=8, image_embed_dim=12, rope_axes_dim=(2, 2, 4),
        target_size=16, task_type="t2v",
    )  # fmt: skip
    vae = diffusers.AutoencoderKLHunyuanVideo15(
        latent_channels=4, block_out_channels=(16,) * 5, layers_per_block=1,
    )  # fmt: skip
    return diffusers.HunyuanVideo15Pipeline(
        text_encoder=None, tokenizer=None, transformer=transformer, vae=vae, scheduler=flow(shift=7.0),
        text_encoder_2=None, tokenizer_2=None, guider=diffusers.ClassifierFreeGuidance(6.0),
    )  # fmt: skip


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


def clip_vision() -> Any:
    return transformers.CLIPVisionModel(transformers.CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8
    ))  # fmt: skip


def sky_reels_v2_picture() -> Any:
    of = further.skyreels2()
    transformer = diffusers.SkyReelsV2Transformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=12, out_channels=4, text_dim=32,
        freq_dim=16, ffn_dim=32, num_layers=2, rope_max_seq_len=32, image_dim=16, added_kv_proj_dim=24,
    )  # fmt: skip
    vision = transformers.CLIPVisionModelWithProjection(clip_vision().config)
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=16)
    return variant(
        "SkyReelsV2ImageToVideoPipeline", of, transformer=transformer, image_encoder=vision, image_processor=processor
    )


def chrono_edit() -> Any:
    transformer = diffusers.ChronoEditTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=12, out_channels=4, text_dim=32,
        freq_dim=16, ffn_dim=32, num_layers=2, rope_max_seq_len=32, image_dim=16, added_kv_proj_dim=24,
    )  # fmt: skip
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=16)
    return variant(
        "ChronoEditPipeline", base.wan(), transformer=transformer, image_encoder=clip_vision(),
        image_processor=processor, scheduler=flow(shift=5.0),
    )  # fmt: skip


def deepfloyd() -> Any:
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(8, 16), layers_per_block=1, sample_size=16, in_channels=3, out_channels=6,
        norm_num_groups=4, down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"), cross_attention_dim=32,
        encoder_hid_dim=32, attention_head_dim=4, addition_embed_type="text", addition_embed_type_num_heads=2,
        cross_attention_norm="group_norm", resnet_time_scale_shift="scale_shift", act_fn="gelu",
    )  # fmt: skip
    return diffusers.IFPipeline(
        tokenizer=word_tokenizer(), text_encoder=t5_text(), unet=unet,
        scheduler=diffusers.DDPMScheduler(
            beta_schedule="squaredcos_cap_v2", prediction_type="epsilon", thresholding=True,
            dynamic_thresholding_ratio=0.95, sample_max_value=1.5, variance_type="learned_range",
        ),
        safety_checker=None, feature_extractor=None, watermarker=None, requires_safety_checker=False,
    )  # fmt: skip


def semantic() -> Any:
    return variant("SemanticStableDiffusionPipeline", base.sd15(), requires_safety_checker=False)


def prx_pixel() -> Any:
    transformer = diffusers.PRXTransformer2DModel(
        in_channels=3, patch_size=2, context_in_dim=32, hidden_size=8, mlp_ratio=2.0, num_heads=2, depth=1,
        axes_dim=[2, 2],
    )  # fmt: skip
    return variant("PRXPixelPipeline", further.prx(), transformer=transformer, noise_scale=1.0)


PIPELINES: dict[str, Callable[[], Any]] = {
    "flux_fill": flux_fill, "inpaint": inpaint, "inpaint_xl": inpaint_xl, "adapter_xl": adapter_xl,
    "cogvideox_picture": cogvideox_picture, "wan_picture": wan_picture, "lucy": lucy,
    "animate_diff_xl": animate_diff_xl, "skyreels_picture": skyreels_picture,
    "sky_reels_v2_picture": sky_reels_v2_picture, "chrono_edit": chrono_edit, "deepfloyd": deepfloyd,
    "semantic": semantic,
}  # fmt: skip
ONES = torch.ones(1, 6, dtype=torch.long)
HOLE = {"image": picture(), "mask_image": picture()}
CALLS: dict[str, dict[str, Any]] = {
    "flux_fill": {"guidance_scale": 30.0, **HOLE, **LENGTH, **SMALL},
    "inpaint": {"guidance_scale": 5.0, "strength": 1.0, **HOLE, **SMALL},
    "inpaint_xl": {"guidance_scale": 5.0, "strength": 1.0, **HOLE, **SMALL},
    "adapter_xl": {"guidance_scale": 5.0, "image": [picture()], **SMALL},
    "cogvideox_picture": {"guidance_scale": 6.0, "num_frames": 9, "image": [picture()], **LENGTH, **SMALL},
    "wan_picture": {"guidance_scale": 5.0, "num_frames": 5, "image": picture(), **LENGTH, **SMALL},
    "lucy": {"guidance_scale": 5.0, "num_frames": 5, "video": [VIDEO], **LENGTH, **SMALL},
    "animate_diff_xl": {"guidance_scale": 5.0, "num_frames": 4, **SMALL},
    "skyreels_picture": {
        "true_cfg_scale": 6.0, "guidance_scale": 1.0, "num_frames": 5, "image": [picture()],
        "prompt_embeds": embedding(6, 16), "pooled_prompt_embeds": embedding(8), "prompt_attention_mask": ONES,
        "negative_prompt_embeds": embedding(6, 16, seed=1), "negative_pooled_prompt_embeds": embedding(8, seed=1),
        "negative_prompt_attention_mask": ONES, **SMALL,
    },
    "sky_reels_v2_picture": {"guidance_scale": 5.0, "num_frames": 5, "image": picture(), **LENGTH, **SMALL},
    "chrono_edit": {"guidance_scale": 5.0, "num_frames": 5, "image": picture(), **LENGTH, **SMALL},
    "deepfloyd": {"guidance_scale": 7.0, "clean_caption": False, **SMALL},
    "semantic": {"guidance_scale": 7.0, **SMALL},
}  # fmt: skip
HUNYUAN_VIDEO15: dict[str, Any] = {
    "num_frames": 5, "prompt_embeds": embedding(6, 16), "prompt_embeds_mask": ONES, "prompt_embeds_2": embedding(4, 8),
    "prompt_embeds_mask_2": ONES[:, :4], "negative_prompt_embeds": embedding(6, 16, seed=1),
    "negative_prompt_embeds_mask": ONES, "negative_prompt_embeds_2": embedding(4, 8, seed=1),
    "negative_prompt_embeds_mask_2": ONES[:, :4], "height": 32, "width": 32,
}  # fmt: skip
REFUSED: dict[str, tuple[Callable[[], Any], dict[str, Any], str]] = {
    "adapter": (adapter, {"guidance_scale": 5.0, "image": [picture()], **SMALL}, "return its images as tensors"),
    "hunyuan_video15": (hunyuan_video15, HUNYUAN_VIDEO15, "itself fails on 2 prompts"),
    "wan_vace": (wan_vace, {"num_frames": 5, "video": VIDEO, **LENGTH, **SMALL}, "a list of prompts is not yet"),
    "cogview4_control": (cogview4_control, {"control_image": picture(), **LENGTH, **SMALL}, "deviates"),
    "prx_pixel": (prx_pixel, {"guidance_scale": 1.0, "use_resolution_binning": False, **SMALL}, "mixes the 1"),
}  # fmt: skip
