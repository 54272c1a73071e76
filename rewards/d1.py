"""The five rewards that d1 trains GSM8K with, as released (dllm-reasoning/d1, 4 May 2025; arXiv:2504.12216)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from flowrl.errors import UserError

RANGE = {
    "d1_xmlcount": "up to 0.5; below 0 with much text behind the answer",
    "d1_soft_format": "[0, 0.5]",
    "d1_strict_format": "[0, 0.5]",
    "d1_int": "[0, 0.5]",
    "d1_correctness": "[0, 2]",
}
NEEDS = {"d1_correctness": ("answer",)}

SOFT = re.compile(r"<reasoning>.*?</reasoning>\s*<answer>.*?</answer>")
STRICT = re.compile(r"<reasoning>\n.*?\n</reasoning>\n<answer>\n.*?\n</answer>\n$")
CHARACTER = 0.001
"""What a character costs."""


def d1_xmlcount(
    completions: Sequence[str], prompts: Sequence[str], *, variant: Literal["d1", "spg"] = "d1", **columns: Any
) -> Tensor:
    r"""[N] of 1/8 for each of ``<reasoning>\n``, ``\n</reasoning>\n``, ``\n<answer>\n`` and ``\n</answer>`` that occurs
    exactly once, less 0.001 a character twice over.

    With the third tag, the characters counted are those behind the last ``\n</answer>\n`` (all of the text where it
    does not occur); with the fourth, those behind ``\n</answer>`` but one. ``spg`` is the copy of SPG
    (facebookresearch/SPG, 17 October 2025), which counts from ``\n<answer>\n`` on: the answer itself costs there.
    Raises `UserError` for another variant.
    """
    if variant not in ("d1", "spg"):
        raise UserError(f"d1_xmlcount: variant is 'd1' or 'spg', found {variant!r}")
    after = "\n</answer>\n" if variant == "d1" else "\n<answer>\n"
    return _scores(_xmlcount(text, after) for text in completions)


def d1_soft_format(completions: Sequence[str], prompts: Sequence[str], **columns: Any) -> Tensor:
    """[N]: 0.5 where the completion begins with ``<reasoning>...</reasoning> <answer>...</answer>``.

    As released the dot matches no newline, so contents of several lines score 0 (`format_tags` with mode ``soft`` does
    what was meant)."""
    return _scores(0.5 * (SOFT.match(text) is not None) for text in completions)


def d1_strict_format(completions: Sequence[str], prompts: Sequence[str], **columns: Any) -> Tensor:
    """[N]: 0.5 where every tag stands on a line of its own and the completion ends with a newline.

    As released the dot matches no newline, so reasoning of more than one line scores 0 (`format_tags` with mode
    ``strict`` does what was meant)."""
    return _scores(0.5 * (STRICT.match(text) is not None) for text in completions)


def d1_int(completions: Sequence[str], prompts: Sequence[str], **columns: Any) -> Tensor:
    """[N]: 0.5 where the answer consists of digits (`str.isdigit`: no sign, comma or stop)."""
    return _scores(0.5 * d1_answer(text).isdigit() for text in completions)


def d1_correctness(completions: Sequence[str], prompts: Sequence[str], answer: Sequence[Any], **columns: Any) -> Tensor:
    """[N]: 2 where the answer is, as a text, the column ``answer`` or what stands there behind ``####`` (GSM8K).

    ``1,080`` and ``1080`` differ, as they do in the released code (`math_answer` compares by value).
    """
    golds = [str(gold) for gold in answer]
    return _scores(2.0 * (d1_answer(text) == _gold(gold)) for text, gold in zip(completions, golds, strict=True))


def d1_answer(text: str) -> str:
    """What stands behind the last ``<answer>`` and before the next ``</answer>``; the whole text where no tag is."""
    return text.rpartition("<answer>")[2].partition("</answer>")[0].strip()


def _gold(text: str) -> str:
    return text.split("####")[1].strip() if "####" in text else text


def _xmlcount(text: str, after: str) -> float:
    count = 0.125 * ((text.count("<reasoning>\n") == 1) + (text.count("\n</reasoning>\n") == 1))
    if text.count("\n<answer>\n") == 1:
        count += 0.125 - CHARACTER * len(text.split(after)[-1])
    if text.count("\n</answer>") == 1:
        count += 0.125 - CHARACTER * (len(text.rpartition("\n</answer>")[2]) - 1)
    return count


def _scores(values: Any) -> Tensor:
    return torch.tensor(list(values), dtype=torch.float64)
