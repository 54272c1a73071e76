"""Judges an expression against its task by parsing it; nothing is ever evaluated as code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flowrl.worlds.countdown.expressions import ExpressionError, parse


@dataclass(frozen=True)
class Verdict:
    """`formed`: an expression of exactly the given numbers, each once. `strict`: it also equals the target."""

    strict: bool
    formed: bool


def judge(completion: str, numbers: Sequence[int], target: int) -> Verdict:
    """A division by zero is well-formed and wrong; blanks and line ends around the expression are ignored."""
    try:
        expression = parse(completion.strip(" \n"))
    except ExpressionError:
        return Verdict(False, False)
    formed = sorted(expression.numbers) == sorted(numbers)
    return Verdict(formed and expression.value == target, formed)
