"""Coloured shapes on 32x32 images: GenEval prompts, a pixel verifier, and a tiny real SD3 base model."""

from pathlib import Path

from flowrl.worlds.images import CALL
from flowrl.worlds.shapes.prompts import prompts

BASE = Path(__file__).parent / "base"
"""A `StableDiffusion3Pipeline` folder."""

BASES = {"diffusion": BASE}
"""Base models by family."""

__all__ = ["BASE", "BASES", "CALL", "prompts"]
