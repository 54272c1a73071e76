"""4x4 Sudoku as text: puzzles with one solution, a verifier, and tiny masked and causal language models."""

from pathlib import Path

from flowrl.worlds.sudoku.prompts import LENGTH, prompts

BASES = {folder.name: folder for folder in sorted((Path(__file__).parent / "base").glob("*")) if folder.is_dir()}
"""Hugging Face folders of the shipped base models by family: `masked`, `causal`."""

__all__ = ["BASES", "LENGTH", "prompts"]
