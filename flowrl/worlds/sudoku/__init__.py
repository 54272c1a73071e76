"""4x4 Sudoku as text: puzzles with one solution, a verifier, and tiny masked and causal language models."""

from pathlib import Path

from flowrl.worlds.sudoku.prompts import LENGTH, prompts
from flowrl.worlds.text import base_models

BASES = base_models(Path(__file__).parent)

__all__ = ["BASES", "LENGTH", "prompts"]
