"""Avoid: cross a board of obstacles by the gaps that are asked for; after D3IL's Avoiding (arXiv:2402.14606)."""

from pathlib import Path

from flowrl.worlds.avoid.board import Board, make
from flowrl.worlds.avoid.picture import draw
from flowrl.worlds.avoid.prompts import prompts

BASES = {"control": Path(__file__).parent / "base"}

LENGTH = 40
"""Decisions of an episode, at most."""

__all__ = ["BASES", "LENGTH", "Board", "draw", "make", "prompts"]
