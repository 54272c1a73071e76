"""Does the completion's answer equal the prompt's answer, letter for letter after normalisation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from flowrl.errors import UserError, did_you_mean
from rewards._extraction import after_hashes, boxed, last_number, plain, tagged

RANGE = "[0, credit]"
NEEDS = ("answer",)

Extract = Literal["none", "number", "answer", "hashes", "boxed"]
EXTRACTORS: dict[str, Callable[[str], str | None]] = {
    "none": str,
    "number": last_number,
    "answer": tagged,
    "hashes": after_hashes,
    "boxed": boxed,
}


def exact_match(
    completions: Sequence[str],
    prompts: Sequence[str],
    answer: Sequence[Any],
    *,
    extract: Extract = "none",
    ignore_case: bool = False,
    credit: float = 1.0,
) -> Tensor:
    r"""[N]: ``credit`` where the extracted answer equals the column ``answer``, 0 elsewhere, NaN without an answer.

    ``extract``: the whole completion (``none``), its last ``number``, the last ``<answer>...</answer>``, the rest of
    the line after the last ``####`` (``hashes``), or the last ``\boxed{...}``. Both sides are compared after white
    space, thousands commas, dollar signs and a final stop are normalised; an answer of the form ``... #### 42`` (GSM8K)
    counts as ``42``. Raises `UserError` for an unknown extraction.
    """
    if extract not in EXTRACTORS:
        raise UserError(f"exact_match: extract={extract!r} does not exist{did_you_mean(extract, EXTRACTORS)}")
    return torch.tensor(
        [
            _credit(EXTRACTORS[extract](text), gold, ignore_case, credit)
            for text, gold in zip(completions, answer, strict=True)
        ],
        dtype=torch.float64,
    )


def _credit(found: str | None, gold: Any, ignore_case: bool, credit: float) -> float:
    if gold is None:
        return float("nan")
    if found is None:
        return 0.0
    left, right = plain(found), plain(after_hashes(str(gold)) or str(gold))
    if ignore_case:
        left, right = left.casefold(), right.casefold()
    return credit if left == right else 0.0
