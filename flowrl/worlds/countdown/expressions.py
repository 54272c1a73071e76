"""Arithmetic over small whole numbers: a bounded recursive-descent parser, exact values, and rendering.

    sum     = product (("+" | "-") product)*
    product = atom (("*" | "/") atom)*
    atom    = digits | "(" sum ")"

There is no unary sign, and nothing but ASCII digits, the four operators, parentheses and blanks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

LONGEST = 64
"""Characters of an expression, blanks included."""
DEEPEST = 16
"""Nested parentheses."""
_DIGITS = frozenset("0123456789")


class ExpressionError(ValueError):
    """A text that is no expression of the grammar, or one too long or too deeply nested."""


@dataclass(frozen=True)
class Expression:
    """A parsed expression."""

    numbers: tuple[int, ...]
    """The numbers as written, from left to right."""
    value: Fraction | None
    """`None` where it divides by zero."""


def parse(text: str) -> Expression:
    """Numbers and exact value of `text`. Raises `ExpressionError` with the place of the first mistake."""
    if len(text) > LONGEST:
        raise ExpressionError(f"longer than {LONGEST} characters")
    reader = _Reader(text)
    value = reader.sum(0)
    if reader.peek():
        raise ExpressionError(f"unexpected {reader.peek()!r} at character {reader.place + 1}")
    return Expression(tuple(reader.numbers), value)


class _Reader:
    """The parser's place in the text; its methods are the grammar's rules and return exact values."""

    def __init__(self, text: str) -> None:
        self.text, self.place = text, 0
        self.numbers: list[int] = []

    def peek(self) -> str:
        """The next character that is no blank; empty at the end."""
        while self.text[self.place : self.place + 1] == " ":
            self.place += 1
        return self.text[self.place : self.place + 1]

    def sum(self, depth: int) -> Fraction | None:
        return self._chain("+-", lambda: self.product(depth))

    def product(self, depth: int) -> Fraction | None:
        return self._chain("*/", lambda: self.atom(depth))

    def atom(self, depth: int) -> Fraction | None:
        if self.peek() == "(":
            if depth == DEEPEST:
                raise ExpressionError(f"more than {DEEPEST} nested parentheses")
            self.place += 1
            value = self.sum(depth + 1)
            if self.peek() != ")":
                raise ExpressionError(f"expected ')' at character {self.place + 1}")
            self.place += 1
            return value
        if self.peek() not in _DIGITS:
            raise ExpressionError(f"expected a number or '(' at character {self.place + 1}")
        start = self.place
        while self.text[self.place : self.place + 1] in _DIGITS:
            self.place += 1
        self.numbers.append(int(self.text[start : self.place]))
        return Fraction(self.numbers[-1])

    def _chain(self, operators: str, operand: Callable[[], Fraction | None]) -> Fraction | None:
        """Operands joined by operators of one precedence, evaluated from the left."""
        value = operand()
        while (operator := self.peek()) and operator in operators:
            self.place += 1
            value = apply(operator, value, operand())
        return value


def apply(operator: str, left: Fraction | None, right: Fraction | None) -> Fraction | None:
    """`left operator right`, exactly; `None` where an operand is, or for a division by zero."""
    if left is None or right is None:
        return None
    if operator == "+":
        return left + right
    if operator == "-":
        return left - right
    if operator == "*":
        return left * right
    return left / right if right else None
