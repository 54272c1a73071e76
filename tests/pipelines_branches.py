"""Tiny random pipelines that mix three predictions: perturbed attention, and a picture with a scale of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers

from tests import pipelines as base
from tests.pipelines_newer import picture, unet
from tests.pipelines_pictures import LENGTH, SMALL, variant


def pix2pix() -> Any:
    return variant(
        "StableDiffusionInstructPix2PixPipeline",
        base.sd15(),
        unet=unet(in_channels=8),
        scheduler=diffusers.DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False),
    )


PIPELINES: dict[str, Callable[[], Any]] = {
    "pix2pix": pix2pix,
    "sd15_pag": lambda: variant("StableDiffusionPAGPipeline", base.sd15()),
    "sd3_pag": lambda: variant("StableDiffusion3PAGPipeline", base.sd3()),
    "sana_pag": lambda: variant("SanaPAGPipeline", base.sana()),
}
CALLS: dict[str, dict[str, Any]] = {
    "pix2pix": {"guidance_scale": 5.0, "image_guidance_scale": 1.5, "image": picture()},
    "sd15_pag": {"guidance_scale": 5.0, "pag_scale": 2.0, **SMALL},
    "sd3_pag": {"guidance_scale": 4.5, "pag_scale": 2.0, **LENGTH, **SMALL},
    "sana_pag": {
        "guidance_scale": 4.5, "pag_scale": 2.0, "max_sequence_length": 16, "use_resolution_binning": False,
        "complex_human_instruction": None, "height": 32, "width": 32,
    },
}  # fmt: skip
