"""The MATH benchmark's equality of answers (Hendrycks et al., arXiv:2103.03874) as d1 has it: strings made normal."""

from __future__ import annotations

import re

WORDS = ("\n", "\\!")
DROPPED = ("\\left", "\\right", "^{\\circ}", "^\\circ", "\\$")
"""Removed wherever they occur, in this order."""


def unboxed(text: str) -> str | None:
    r"""The inside of the last ``\boxed{}``; behind ``\boxed `` what follows up to a dollar sign. A text without a box
    is its own answer; None where the box does not close."""
    if "\\boxed " in text:
        return text.rpartition("\\boxed ")[2].partition("$")[0]
    start = text.rfind("\\boxed")
    start = start if start >= 0 else text.rfind("\\fbox")
    if start < 0:
        return _peeled(text)
    depth = 0
    for end in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if text[end] == "}" and depth == 0:
            return _peeled(text[start : end + 1])
    return None


def equivalent(left: str | None, right: str | None) -> bool:
    """Whether two answers have one normal form; where one has none, whether they are the same text."""
    if left is None or right is None:
        return left is right
    try:
        return normal(left) == normal(right)
    except ValueError:
        return left == right


def normal(text: str) -> str:
    r"""Units, spaces, degrees, percent and dollar signs removed; ``\frac12``, ``\sqrt2``, ``.5``, ``x=5`` and ``1/2``
    written out. Raises `ValueError` for what has no normal form (``\sqrt`` or ``\frac`` at the end, ``x/2``, two
    units)."""
    for word in WORDS:
        text = text.replace(word, "")
    text = text.replace("\\\\", "\\").replace("tfrac", "frac").replace("dfrac", "frac")
    for word in DROPPED:
        text = text.replace(word, "")
    # twice, as released: removing one may make another
    text = _without_unit(text).replace("\\%", "").replace("\\%", "").replace(" .", " 0.").replace("{.", "{0.")
    if not text:
        return text
    text = "0" + text if text.startswith(".") else text
    name, equals, value = text.partition("=")
    text = value if equals and "=" not in value and len(name) <= 2 else text
    text = _fractions(_roots(text).replace(" ", ""))
    return _slash("\\frac{1}{2}" if text == "0.5" else text)


def _peeled(text: str) -> str:
    inside = re.fullmatch(r"\\boxed\{(.*)\}", text, re.DOTALL)
    return inside.group(1) if inside else text


def _without_unit(text: str) -> str:
    parts = text.split("\\text{ ")
    if len(parts) > 2:
        raise ValueError("two units")
    return parts[0]


def _roots(text: str) -> str:
    r"""Braces around the single character that follows ``\sqrt``."""
    first, *rest = text.split("\\sqrt")
    if not all(rest):
        raise ValueError("a root of nothing")
    return first + "".join("\\sqrt" + (part if part[0] == "{" else f"{{{part[0]}}}{part[1:]}") for part in rest)


def _fractions(text: str) -> str:
    r"""Braces around numerator and denominator of ``\frac`` where they are single characters; the text as it is where a
    numerator has no denominator."""
    first, *rest = text.split("\\frac")
    done = first
    for part in rest:
        if not part:
            raise ValueError("a fraction of nothing")
        if part[0] != "{":
            if len(part) < 2:
                return text
            below = part[1:] if part[1] == "{" else f"{{{part[1]}}}{part[2:]}"
            part = f"{{{part[0]}}}{below}"
        done += "\\frac" + part
    return done


def _slash(text: str) -> str:
    """A quotient of two whole numbers as a fraction."""
    parts = text.split("/")
    if len(parts) != 2:
        return text
    above, below = int(parts[0]), int(parts[1])
    return f"\\frac{{{above}}}{{{below}}}" if text == f"{above}/{below}" else text
