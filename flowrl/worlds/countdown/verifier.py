"""Verifies an expression against its task by parsing it; nothing is ever evaluated as code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flowrl.worlds.countdown.expressions import ExpressionError, parse


@dataclass(frozen=True)
class CountdownVerdict:
    """`formed`: an expression of exactly the given numbers, each once. `strict`: it also equals the target."""

    strict: bool
    formed: bool


def verify(completion: str, numbers: Sequence[int], target: int) -> CountdownVerdict:
    """A division by zero is well-formed and wrong; blanks and line ends around the expression are ignored."""
    try:
        expression = parse(completion.strip(" \n"))
    except ExpressionError:
        return CountdownVerdict(False, False)
    formed = sorted(expression.numbers) == sorted(numbers)
    return CountdownVerdict(formed and expression.value == target, formed)
