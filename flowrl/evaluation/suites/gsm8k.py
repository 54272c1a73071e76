"""GSM8K (Cobbe et al. 2021, arXiv:2110.14168): 1319 grade-school problems, answered in words and a final number.

The prompt is the problem, a blank line and ``TEMPLATE``'s request; ``correct`` is mathematical equality with the number
after ``####`` of the reference (reward ``math_answer``). Zero-shot, so compare with zero-shot numbers only.
"""

from __future__ import annotations

from pathlib import Path

from flowrl.evaluation.questions import Source, problems
from flowrl.evaluation.scored import ScoredSuite
from flowrl.evaluation.target import Target

MEDIA = ("completions",)
TEMPLATE = "{question}\n\nReason step by step. Then write the final answer, a number, after ####."
SOURCE = Source("openai/gsm8k", "main", question="question", answer="answer", size=1319)


def build(target: Target, data: Path | None = None) -> ScoredSuite:
    """The test split of the hub, or the problems of ``data``. Raises UserError where they cannot be read."""
    return problems("gsm8k", SOURCE, TEMPLATE, data)
