"""Which expressions reach a target: random ones for data, all of them for the oracle."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from flowrl.worlds.countdown.expressions import apply

_PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2}
OPERATOR_WEIGHTS = (4, 3, 3, 1)
"""Of + - * / in random expressions."""
_NUMBER = 3  # precedence of a lone number


@dataclass(frozen=True)
class Term:
    """An expression with its value and the precedence of its outermost operator."""

    text: str
    value: Fraction
    precedence: int = _NUMBER


def number(value: int) -> Term:
    """A lone number."""
    return Term(str(value), Fraction(value))


def join(operator: str, left: Term, right: Term) -> Term | None:
    """`left operator right` with no more parentheses than it needs; `None` for a division by zero."""
    value = apply(operator, left.value, right.value)
    if value is None:
        return None
    own = _PRECEDENCE[operator]
    before = f"({left.text})" if left.precedence < own else left.text
    tight = right.precedence < own or (right.precedence == own and operator in "-/")
    after = f"({right.text})" if tight else right.text
    return Term(f"{before}{operator}{after}", value, own)


def solve(numbers: Sequence[int], target: int) -> list[str]:
    """Every expression (up to equal text) that uses each number once and equals `target`, sorted; maybe none.

    Exhaustive: about 0.1 s for four numbers.
    """
    return sorted({term.text for term in _all([number(n) for n in numbers]) if term.value == target})


def random_term(numbers: Sequence[int], rng: random.Random) -> Term:
    """A random expression over all the numbers: two random terms are joined until one is left. Of a sum or product,
    the larger term comes first: fewer spellings of one idea are easier to learn."""
    terms = [number(n) for n in numbers]
    while len(terms) > 1:
        left, right = (terms.pop(rng.randrange(len(terms))) for _ in range(2))
        joined = None
        while joined is None:  # again after a division by zero
            operator = rng.choices("+-*/", OPERATOR_WEIGHTS)[0]
            if operator in "+*" and right.value > left.value:
                left, right = right, left
            joined = join(operator, left, right)
        terms.append(joined)
    return terms[0]


def _all(terms: list[Term]) -> Iterator[Term]:
    if len(terms) == 1:
        yield terms[0]
        return
    for i in range(len(terms)):
        for j in range(len(terms)):
            if i == j:
                continue
            rest = [term for k, term in enumerate(terms) if k not in (i, j)]
            for operator in _PRECEDENCE:
                joined = join(operator, terms[i], terms[j])
                if joined is not None:
                    yield from _all([*rest, joined])
