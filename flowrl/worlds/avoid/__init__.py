"""Avoid: cross a board of obstacles by the gaps that are asked for; after D3IL's Avoiding (arXiv:2402.14606)."""

from pathlib import Path

from flowrl.worlds.avoid.board import Board, make
from flowrl.worlds.avoid.picture import draw
from flowrl.worlds.avoid.prompts import prompts

BASES = {"control": Path(__file__).parent / "base"}

__all__ = ["BASES", "Board", "draw", "make", "prompts"]
