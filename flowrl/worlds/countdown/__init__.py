"""Countdown as text: reach a target with three or four numbers; a verifier, and a tiny causal language model."""

from pathlib import Path

from flowrl.worlds.countdown.prompts import LENGTH, prompts
from flowrl.worlds.text import base_models

BASES = base_models(Path(__file__).parent)

__all__ = ["BASES", "LENGTH", "prompts"]
