"""Tiny random pipelines whose steps are shared by two denoisers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers

from tests import pipelines as base
from tests.pipelines_newer import picture
from tests.pipelines_pictures import LENGTH, SMALL, variant


def two_stages(kind: str, **changes: Any) -> Any:
    """A Wan 2.2 of two transformers with other random weights, the second below seven eighths of the timesteps."""
    of = base.wan()
    config = {**of.transformer.config, **changes}
    first, second = (diffusers.WanTransformer3DModel.from_config(config) for _ in range(2))
    return variant(kind, of, transformer=first, transformer_2=second, boundary_ratio=0.875)


def wan22() -> Any:
    return two_stages("WanPipeline")


def wan22_picture() -> Any:
    return two_stages("WanImageToVideoPipeline", in_channels=12)


PIPELINES: dict[str, Callable[[], Any]] = {"wan22": wan22, "wan22_picture": wan22_picture}
CALLS: dict[str, dict[str, Any]] = {
    "wan22": {"guidance_scale": 4.0, "guidance_scale_2": 3.0, "num_frames": 5, **LENGTH, **SMALL},
    "wan22_picture": {"guidance_scale": 3.5, "num_frames": 5, "image": picture(), **LENGTH, **SMALL},
}
