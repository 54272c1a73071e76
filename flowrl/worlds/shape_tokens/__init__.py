"""The shapes world as image tokens: the same prompts and verifier, and a tiny causal model that draws 4x4 tokens."""

from pathlib import Path

from flowrl.worlds.shape_tokens.prompts import prompts

BASE = Path(__file__).parent / "base"
"""A folder of transformers with an ``image_tokenizer`` (a `VQModel` of diffusers) in it."""

BASES = {"causal": BASE}
"""Base models by family."""

LENGTH = 16
"""Tokens of a picture."""

__all__ = ["BASE", "BASES", "LENGTH", "prompts"]
