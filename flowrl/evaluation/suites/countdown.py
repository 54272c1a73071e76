"""Countdown: ``correct`` is an expression of exactly the given numbers that reaches the target; ``score`` gives one of
another value a tenth.

Tags are how many numbers there are; prompts are the world's test tasks.
"""

from __future__ import annotations

from flowrl.evaluation.scored import ScoredSuite, of_world
from flowrl.evaluation.target import Target

MEDIA = ("completions",)


def build(target: Target) -> ScoredSuite:
    """The world's test prompts and strict verifier."""
    return of_world("countdown", continuous="mixed")
