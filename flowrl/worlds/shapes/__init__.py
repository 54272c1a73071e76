"""Coloured shapes on 32x32 images: GenEval prompts, a pixel verifier, and a tiny real SD3 base model."""

from pathlib import Path
from typing import Any

from flowrl.worlds.shapes.prompts import prompts

BASE = Path(__file__).parent / "base"
"""A `StableDiffusion3Pipeline` folder."""

BASES = {"diffusion": BASE}
"""Base models by family."""

CALL: dict[str, Any] = {"max_sequence_length": 1, "guidance_scale": 1.0}
"""Arguments of the pipeline's call: one token of the mute third encoder (default 256), and no guidance (default 7)."""

__all__ = ["BASE", "BASES", "CALL", "prompts"]
