"""Countdown as text: reach a target with three or four numbers; a verifier, and a tiny causal language model."""

from pathlib import Path

from flowrl.worlds.countdown.prompts import LENGTH, prompts

BASES = {folder.name: folder for folder in sorted((Path(__file__).parent / "base").glob("*")) if folder.is_dir()}
"""Hugging Face folders of the shipped base models by family: `causal`."""

__all__ = ["BASES", "LENGTH", "prompts"]
