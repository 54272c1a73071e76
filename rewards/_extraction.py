"""Reading the answer out of a completion: where it stands, and its normal form."""

from __future__ import annotations

import re
from fractions import Fraction

NUMBER = re.compile(r"-?\$?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:\s*/\s*\d+)?%?", re.ASCII)
HASHES = re.compile(r"####[ \t]*([^\n]*)")
MAX_BOXES = 8
"""Boxes tried from the end for one that closes: a bound on the work that a thousand open ones make."""
MAX_NUMBER = 400
"""Characters of a number compared as a fraction."""


def boxed(text: str) -> str | None:
    r"""The content of the last ``\boxed{...}`` or ``\fbox{...}`` whose braces close; ``\boxed 5`` is ``5``."""
    for found in reversed(list(re.finditer(r"\\(?:boxed|fbox)(?![A-Za-z])\s*", text))[-MAX_BOXES:]):
        rest = text[found.end() :]
        if not rest.startswith("{"):
            word = re.match(r"[^\s${}\\]+", rest)
            if word:
                return word.group()
            continue
        end = _closing(rest)
        if end is not None:
            return rest[1:end].strip()
    return None


def tagged(text: str) -> str | None:
    """The content of the last ``<answer>...</answer>``."""
    end = text.rfind("</answer>")  # searching backwards is linear in hostile texts, a lazy pattern is not
    start = text.rfind("<answer>", 0, max(end, 0))
    return text[start + len("<answer>") : end].strip() if start >= 0 else None


def marked(text: str) -> str | None:
    r"""What a completion marks as its answer: the last ``<answer>...</answer>``, within it (or without it) the last
    ``\boxed{...}``; None without either."""
    inner = tagged(text)
    return boxed(text if inner is None else inner) or inner


def after_hashes(text: str) -> str | None:
    """The rest of the last line that has ``####`` (GSM8K)."""
    found = HASHES.findall(text)
    return found[-1].strip() or None if found else None


def last_number(text: str) -> str | None:
    """The last number, with its sign when nothing stands before the minus (``3-2`` ends in 2, ``= -2`` in -2)."""
    found = list(NUMBER.finditer(text))
    if not found:
        return None
    last = found[-1]
    number = last.group()
    before = text[: last.start()].rstrip()[-1:]
    if number.startswith("-") and (before.isalnum() or before in (")", "]")):
        number = number[1:]
    return number.rstrip(",")


def plain(text: str) -> str:
    """Normal form for string equality: one kind of space, no thousands commas, no dollar signs, no final stop."""
    text = re.sub(r"\s+", " ", text.replace("\\$", "").replace("$", "")).strip()
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    return text[:-1].rstrip() if text.endswith(".") else text


def latex(text: str) -> str:
    r"""Normal form of a LaTeX answer: spacing, size commands, text wrappers, fraction variants, degrees and a unit
    after the number removed. White space between two digits stays."""
    text = plain(re.sub(r"\\(?:left|right|displaystyle|quad)(?![A-Za-z])|\\[!,;:]", "", text))
    text = re.sub(r"\\[dt]frac", r"\\frac", text)
    text = re.sub(r"\^\{?\\circ\}?", "", text)
    text = re.sub(r"\\frac\s*(\d)\s*(\d)(?!\d)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"(?<=\d)\s*\\(?:text|mbox)\s*\{[^{}]*\}$", "", text)
    text = re.sub(r"\\(?:text|textbf|mathrm|mbox)\s*\{([^{}]*)\}", r"\1", text)
    return re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", text)


def number(text: str) -> Fraction | None:
    """A number's value: integer, decimal, ``a/b``, percent or LaTeX fraction of integers; None for anything else."""
    text = re.sub(r"^(-?)\\frac\{(\d+)\}\{(\d+)\}", r"\1\2/\3", latex(text))
    if len(text) > MAX_NUMBER or not re.fullmatch(r"[+-]?(?:\d+/\d+|\d+\.?\d*|\.\d+)(?:\\?%)?", text, re.ASCII):
        return None
    value = text.rstrip("\\%")
    if re.search(r"/0+$", value):
        return None
    return Fraction(value) / (100 if text.endswith("%") else 1)


def _closing(text: str) -> int | None:
    """Where the brace that opens ``text`` closes; braces behind a backslash are letters."""
    depth = 0
    for brace in re.finditer(r"\\.|[{}]", text, re.DOTALL):
        depth += {"{": 1, "}": -1}.get(brace.group(), 0)
        if depth == 0 and brace.group() == "}":
            return brace.start()
    return None
