"""The Countdown world's reward: does the expression use each number once and reach the target."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from flowrl.errors import UserError
from flowrl.worlds.countdown.verifier import verify
from rewards._extraction import marked

RANGE = "[0, 1]"
NEEDS = ("numbers", "target")
FORMED = 0.1
"""What a well-formed expression of exactly the given numbers and another value is worth in mode `mixed`."""


OPERATORS = {"\\times": "*", "\\cdot": "*", "×": "*", "\\div": "/", "÷": "/", "−": "-", "\\left": "", "\\right": ""}
"""LaTeX and typeset operators of marked answers."""
OPERATOR = re.compile("|".join(map(re.escape, OPERATORS)))


def countdown(
    completions: Sequence[str],
    prompts: Sequence[str],
    *,
    mode: Literal["mixed", "strict"] = "mixed",
    **columns: Sequence[Any],
) -> Tensor:
    r"""Score per completion [N] float64: 1 for an expression that equals the target, 0.1 (`mixed`) or 0 (`strict`) for
    one of the right numbers and another value, 0 otherwise.

    The expression is what stands in the last `<answer>...</answer>` or `\boxed{...}` (where `\times`, `\cdot` and
    `\div` are operators), else the whole completion. `columns` holds the prompts' other fields, N values each:
    `numbers` or `nums` (whole numbers) and `target` (a whole number) are needed.
    Raises `UserError` for another mode, a missing or malformed column, or differing lengths.
    """
    if mode not in ("mixed", "strict"):
        raise UserError(f"mode of the countdown reward must be 'mixed' or 'strict', found {mode!r}")
    if "numbers" not in columns and "nums" in columns:  # as in Jiayi-Pan/Countdown-Tasks-3to4
        columns["numbers"] = columns["nums"]
    for name in NEEDS:
        if name not in columns:
            raise UserError(
                f"the countdown reward needs the column {name!r} (see flowrl.worlds.countdown.prompts); "
                f"found the columns {sorted(columns) or 'none'}"
            )
        if not len(columns[name]) == len(completions) == len(prompts):
            counts = f"{len(completions)} completions, {len(prompts)} prompts, {len(columns[name])} {name}"
            raise UserError(f"the countdown reward needs one prompt and one {name} per completion, found {counts}")
    partial = FORMED if mode == "mixed" else 0.0
    scores = []
    for completion, numbers, target in zip(completions, columns["numbers"], columns["target"], strict=True):
        _check(numbers, target)
        verdict = verify(_expression(completion), numbers, target)
        scores.append(1.0 if verdict.strict else partial * verdict.formed)
    return torch.tensor(scores, dtype=torch.float64)


def _expression(completion: str) -> str:
    answer = marked(completion)
    return completion if answer is None else OPERATOR.sub(lambda found: OPERATORS[found.group()], answer)


def _check(numbers: Any, target: Any) -> None:
    whole = isinstance(numbers, Sequence) and not isinstance(numbers, str) and len(numbers) > 0
    if not whole or not all(isinstance(n, int) and n >= 0 for n in numbers):
        raise UserError(f"the countdown column 'numbers' should hold a list of whole numbers, found {numbers!r}")
    if not isinstance(target, int):
        raise UserError(f"the countdown column 'target' should hold a whole number per prompt, found {target!r}")
