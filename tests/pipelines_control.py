"""Tiny random pipelines with a ControlNet beside their denoiser."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers

from tests import pipelines as base
from tests.components import clip_text, clip_tokenizer, image_vae
from tests.pipelines_newer import picture, unet
from tests.pipelines_pictures import LENGTH, SMALL, variant


def control_net() -> Any:
    net = diffusers.ControlNetModel(
        block_out_channels=(8, 16), layers_per_block=1, in_channels=4, norm_num_groups=4, cross_attention_dim=32,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), attention_head_dim=4,
        conditioning_embedding_out_channels=(2, 4),
    )  # fmt: skip
    return diffusers.StableDiffusionControlNetPipeline(
        vae=image_vae(), text_encoder=clip_text(), tokenizer=clip_tokenizer(), unet=unet(), controlnet=net,
        scheduler=diffusers.DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def control_net_xl() -> Any:
    of = base.sdxl()
    net = diffusers.ControlNetModel.from_unet(of.unet, conditioning_embedding_out_channels=(2, 4))
    return variant("StableDiffusionXLControlNetPipeline", of, controlnet=net)


def control_net_flux() -> Any:
    of = base.flux()
    shape = {"num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2}
    return variant(
        "FluxControlNetPipeline",
        of,
        controlnet=diffusers.FluxControlNetModel.from_config({**of.transformer.config, **shape}),
    )


def control_net_sd3() -> Any:
    of = base.sd3()
    net = diffusers.SD3ControlNetModel.from_config({**of.transformer.config, "num_layers": 1})
    return variant("StableDiffusion3ControlNetPipeline", of, controlnet=net)


PIPELINES: dict[str, Callable[[], Any]] = {
    "control_net": control_net, "control_net_xl": control_net_xl, "control_net_flux": control_net_flux,
}  # fmt: skip
CALLS: dict[str, dict[str, Any]] = {
    "control_net": {"guidance_scale": 5.0, "image": picture(), **SMALL},
    "control_net_xl": {"guidance_scale": 5.0, "image": picture(), **SMALL},
    "control_net_flux": {"guidance_scale": 3.5, "control_image": picture(), **LENGTH, **SMALL},
}
REFUSED: dict[str, tuple[Callable[[], Any], dict[str, Any], str]] = {
    "control_net_sd3": (control_net_sd3, {"control_image": picture(), **LENGTH, **SMALL}, "deviates"),
}
