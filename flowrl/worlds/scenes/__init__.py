"""Shapes and words on 64x64 images: counts, bindings, relations and letters, a pixel verifier, and a real SD3 base."""

from pathlib import Path

from flowrl.worlds.images import CALL
from flowrl.worlds.scenes.prompts import prompts

BASE = Path(__file__).parent / "base"
"""A `StableDiffusion3Pipeline` folder."""

BASES = {"diffusion": BASE}
"""Base models by family."""

__all__ = ["BASE", "BASES", "CALL", "prompts"]
