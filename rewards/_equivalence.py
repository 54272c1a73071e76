"""Are two mathematical answers equal: math-verify, for use inside worker processes (it can hang)."""

from __future__ import annotations

import logging
from collections.abc import Callable


def build() -> Callable[[list[str]], float | None]:
    """A function of ``[gold, answer]``: 1.0 equal, 0.0 not, None when the gold answer itself cannot be parsed.

    Both are LaTeX or plain expressions; dollar signs are dropped. Its own time limits are off: they need signals, and
    the pool's deadline is the limit. Warmed up, since sympy's first call takes most of a second.
    """
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    logging.disable(logging.WARNING)  # "timeout is disabled", once per call
    kinds = [LatexExtractionConfig(), ExprExtractionConfig()]

    def read(text: str) -> list:
        text = text.replace("\\$", "").replace("$", "")
        # The same extractors for both sides; a plain expression that is no LaTeX is tried as it is.
        return parse(f"${text}$", kinds, parsing_timeout=0) or parse(text, kinds, parsing_timeout=0)

    def equal(pair: list[str]) -> float | None:
        gold, answer = read(pair[0]), read(pair[1])
        if not gold:
            return None
        return float(bool(answer) and verify(gold, answer, timeout_seconds=0))

    equal(["\\frac{1}{2}+x", "x+0.5"])
    return equal
