"""4x4 Sudoku: ``correct`` is a grid that keeps the clues and the rules, ``score`` the share of right empty cells.

Tags are numbers of empty cells; prompts are the world's test puzzles, whose solutions no training puzzle has.
"""

from __future__ import annotations

from flowrl.evaluation.scored import ScoredSuite, of_world
from flowrl.evaluation.target import Target

MEDIA = ("completions",)


def build(target: Target) -> ScoredSuite:
    """The world's test prompts and strict verifier."""
    return of_world("sudoku", continuous="continuous")
