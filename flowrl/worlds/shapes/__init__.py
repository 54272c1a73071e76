"""Coloured shapes on 32x32 images: GenEval prompts, a pixel verifier, and a tiny real SD3 base model."""

from pathlib import Path
from typing import Any

from flowrl.worlds.shapes.prompts import prompts

BASE = Path(__file__).parent / "base"
"""A `StableDiffusion3Pipeline` folder."""

CALL: dict[str, Any] = {"max_sequence_length": 1}
"""Extra arguments of the pipeline's call: without a T5 encoder SD3 appends this many zero tokens (default 256)."""

__all__ = ["BASE", "CALL", "prompts"]
