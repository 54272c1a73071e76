"""MATH-500 (Lightman et al. 2023, arXiv:2305.20050): 500 competition problems of Hendrycks' MATH.

The prompt is the problem, a blank line and ``TEMPLATE``'s request; ``correct`` is mathematical equality of the boxed
answers (reward ``math_answer``). The headline is the mean over problems, so level and subject are no tags.
"""

from __future__ import annotations

from pathlib import Path

from flowrl.evaluation.questions import Source, problems
from flowrl.evaluation.scored import ScoredSuite
from flowrl.evaluation.target import Target

MEDIA = ("completions",)
TEMPLATE = "{question}\n\nReason step by step, and put the final answer within \\boxed{{}}."
SOURCE = Source("HuggingFaceH4/MATH-500", None, question="problem", answer="answer", size=500)


def build(target: Target, data: Path | None = None) -> ScoredSuite:
    """The test split of the hub, or the problems of ``data``. Raises UserError where they cannot be read."""
    return problems("math500", SOURCE, TEMPLATE, data)
