"""d1's rewards of Countdown, Sudoku and MATH, as released (dllm-reasoning/d1, 4 May 2025; arXiv:2504.12216)."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from flowrl.errors import UserError
from rewards._hendrycks import equivalent, unboxed

RANGE = {"d1_countdown": "[0, 1]", "d1_sudoku": "[0, 1]", "d1_math": "[0, 2]", "d1_boxed": "[0.25, 1]"}
NEEDS = {
    "d1_countdown": ("numbers (or nums)", "target"),
    "d1_sudoku": ("puzzle", "solution"),
    "d1_math": ("answer (or solution)",),
}

FORMED = 0.1
"""What an answer in tags is worth that is no right expression (Countdown)."""
CELLS = 16
LONGEST, LARGEST = 1000, 10**18
"""Characters of an expression, and size of its values: `eval` in the released code has no bounds."""
OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Pow: operator.pow,
}


def d1_countdown(completions: Sequence[str], prompts: Sequence[str], target: Sequence[Any], **columns: Any) -> Tensor:
    """[N]: 1 where the last ``<answer>...</answer>`` holds an expression of exactly the column ``numbers`` (``nums``)
    that is within 1e-5 of ``target``, 0.1 where it holds anything else, 0 without the tags.

    The expression is parsed, not evaluated as code; values beyond 1e18 and texts beyond 1000 characters, which the
    released ``eval`` tries, are wrong here (0.1).
    """
    numbers = _column("d1_countdown", columns, "numbers", "nums")
    rows = zip(completions, map(_whole, numbers), map(_goal, target), strict=True)
    return _scores(_countdown(text, given, goal) for text, given, goal in rows)


def d1_sudoku(
    completions: Sequence[str], prompts: Sequence[str], puzzle: Sequence[str], solution: Sequence[str], **columns: Any
) -> Tensor:
    """[N]: the share of the empty cells (``0``) of ``puzzle`` that are as in ``solution``: the first 16 digits of the
    last ``<answer>...</answer>``, row by row; missing ones are wrong. 0 for a puzzle without empty cells."""
    cells = [[_cells(name, row) for row in rows] for name, rows in (("puzzle", puzzle), ("solution", solution))]
    return _scores(map(_sudoku, completions, *cells))


def d1_math(completions: Sequence[str], prompts: Sequence[str], **columns: Any) -> Tensor:
    r"""[N]: 2 where the last ``\boxed{}`` of the completion (without one: all of it) equals that of the column
    ``answer`` (else ``solution``) under the MATH benchmark's normalisation of strings, else 0."""
    golds = _column("d1_math", columns, "answer", "solution")
    pairs = zip(completions, golds, strict=True)
    return _scores(2.0 * equivalent(_else(unboxed(text), text), unboxed(str(gold))) for text, gold in pairs)


def d1_boxed(completions: Sequence[str], prompts: Sequence[str], **columns: Any) -> Tensor:
    r"""[N]: 0.75 with ``<answer>``, 0.25 without.

    A box inside the answer was meant to give 1 and 0.5. As released, ``"\boxed"`` is written without a second
    backslash, so it looks for a backspace before ``oxed`` and never finds one.
    """
    return _scores(map(_boxed, completions))


def _column(reward: str, columns: Mapping[str, Any], *names: str) -> Sequence[Any]:
    for name in names:
        if name in columns:
            return columns[name]
    raise UserError(
        f"{reward} needs the column {' or '.join(names)}, found {', '.join(sorted(columns)) or 'none'}; name it by "
        "data.columns"
    )


def _whole(numbers: Any) -> list[int]:
    try:
        return [int(number) for number in numbers]
    except (TypeError, ValueError):
        raise UserError(f"d1_countdown: numbers should hold a list of whole numbers, found {numbers!r}") from None


def _goal(target: Any) -> float:
    try:
        return float(target)
    except (TypeError, ValueError):
        raise UserError(f"d1_countdown: target should hold a number, found {target!r}") from None


def _cells(name: str, row: Any) -> str:
    if not isinstance(row, str) or len(row) != CELLS or not row.isdigit():
        raise UserError(f"d1_sudoku: {name} should hold {CELLS} digits (0 = empty), found {row!r}")
    return row


def _boxed(text: str) -> float:
    inside = text.split("<answer>")[1].split("</answer>")[0] if "<answer>" in text else None
    return 0.5 * ((inside is not None) + (1.0 if "\boxed" in _else(inside, text) else 0.5))


def _countdown(text: str, numbers: list[int], target: float) -> float:
    answer = _last_answer(text)
    if answer is None:
        return 0.0
    if sorted(int(n) for n in re.findall(r"\d+", answer)) != sorted(numbers):
        return FORMED
    value = _value(answer)
    return 1.0 if value is not None and abs(value - target) < 1e-5 else FORMED


def _last_answer(text: str) -> str | None:
    found = re.findall(r"<answer>(.*?)</answer>", text, re.DOTALL)
    return found[-1].strip() if found else None


def _value(text: str) -> Any:
    """The value of an arithmetic expression, by Python's grammar and arithmetic; None for anything else."""
    if len(text) > LONGEST or not re.fullmatch(r"[\d+\-*/().\s]+", text, re.ASCII):
        return None
    try:
        return _reckon(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, ArithmeticError, RecursionError, MemoryError):
        return None


def _reckon(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=int() | float() as value):
            found: Any = value
        case ast.UnaryOp(op=ast.UAdd() | ast.USub() as sign):
            inner = _reckon(node.operand)
            found = -inner if isinstance(sign, ast.USub) else inner
        case ast.BinOp() if type(node.op) in OPERATORS:
            left, right = _reckon(node.left), _reckon(node.right)
            if isinstance(node.op, ast.Pow) and (abs(right) > 64 or abs(left) > LARGEST):
                raise ValueError("a power without bounds")
            found = OPERATORS[type(node.op)](left, right)
        case _:
            raise ValueError("not arithmetic")
    if abs(found) > LARGEST:
        raise ValueError("beyond bounds")
    return found


def _sudoku(text: str, puzzle: str, solution: str) -> float:
    answer = _last_answer(text)
    digits = "".join(filter(str.isdigit, answer or ""))[:CELLS].ljust(CELLS, "0")
    empty = [i for i in range(CELLS) if puzzle[i] == "0"]
    if not empty or not (answer and any(map(str.isdigit, answer))):
        return 0.0
    return sum(digits[i] == solution[i] for i in empty) / len(empty)


def _else(found: str | None, other: str) -> str:
    return other if found is None else found


def _scores(values: Any) -> Tensor:
    return torch.tensor(list(values), dtype=torch.float64)
