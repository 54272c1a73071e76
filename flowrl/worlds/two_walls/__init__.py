"""Two walls: a grid between two goals, where both are equally good; after the grid world of FPO (arXiv:2507.21053)."""

from pathlib import Path

from flowrl.worlds.two_walls.grid import LIMIT, Grid, make
from flowrl.worlds.two_walls.picture import draw
from flowrl.worlds.two_walls.prompts import prompts

BASES = {"control": Path(__file__).parent / "base"}

LENGTH = LIMIT
"""Decisions of an episode, at most."""

__all__ = ["BASES", "LENGTH", "Grid", "draw", "make", "prompts"]
