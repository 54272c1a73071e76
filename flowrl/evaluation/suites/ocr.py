"""Text in images: how much of the text a prompt asks for a reader finds (reward `ocr`, RapidOCR on the CPU).

Without prompts of the user's, a hundred signs of our own. Published numbers are of PaddleOCR and other prompts.
"""

from __future__ import annotations

import random
from pathlib import Path

from flowrl.evaluation.scorer_suite import PROMPTS, ScorerSuite, scorer_suite
from flowrl.evaluation.suite import Options, SuiteEntry
from flowrl.evaluation.target import Target
from flowrl.types import Prompt

SIZE = 100
SOURCE = "generated:signs-1"
FRAMES = (
    'a wooden sign that says "{}"',
    'a shop window with the words "{}"',
    'a book cover with the title "{}"',
    'a neon light that reads "{}"',
    'a birthday cake with "{}" written on it',
    'a T-shirt printed with "{}"',
    'a road sign saying "{}"',
    'a poster with the headline "{}"',
)
FIRST = ("Open", "Fresh", "Slow", "Happy", "Night", "Green", "North", "Winter", "Golden", "Little", "Quiet", "Second")
SECOND = ("Market", "Bread", "Train", "Garden", "School", "Harbour", "Coffee", "Music", "Window", "Street", "Letter")
THIRD = ("Today", "Club", "2024", "Ahead", "Closed", "No 7", "Forever", "Sale")


def build(target: Target, data: Path | None, options: Options) -> ScorerSuite:
    """``data`` is a file of prompts with the wanted text in quotes or a column `text`; ``options`` are those of the
    reward `ocr`. Raises UserError."""
    given = data is not None or bool(options.get(PROMPTS)) or bool(target.entries)
    return scorer_suite("ocr", "ocr", target, data, options, prompts=None if given else (signs(), SOURCE))


SUITES = {"ocr": SuiteEntry(build, ("images",), takes_data=True, takes_options=True)}


def signs() -> tuple[Prompt, ...]:
    """Prompts for one, two and three words, always the same."""
    rng = random.Random(SOURCE)
    prompts: dict[str, None] = {}
    while len(prompts) < SIZE:
        words = [rng.choice(words) for words in (FIRST, SECOND, THIRD)][: 1 + len(prompts) % 3]
        prompts[rng.choice(FRAMES).format(" ".join(words))] = None
    return tuple(Prompt(text, number) for number, text in enumerate(prompts))
