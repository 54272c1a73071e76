"""Penalties for completions that are too long or repeat themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from flowrl.errors import UserError
from flowrl.scorers.loading import from_hub

RANGE = {"length_penalty": "[-1, 0]", "repetition_penalty": "[-weight, 0]"}
NEEDS = ()


def length_penalty(
    completions: Sequence[str],
    prompts: Sequence[str],
    *,
    limit: int,
    buffer: int,
    unit: Literal["words", "characters", "tokens"] = "words",
    tokenizer: str | None = None,
) -> Tensor:
    """DAPO's soft overlong punishment [N] in [-1, 0] (arXiv:2503.14476, eq. 13).

    0 up to length ``limit - buffer``, then ``((limit - buffer) - length) / buffer`` down to -1 at ``limit``, and -1
    beyond. Lengths count words, characters, or tokens of the ``tokenizer`` (folder or hub name), special ones left out.
    Raises `UserError` for a buffer outside 1..limit or ``unit="tokens"`` without a tokenizer.
    """
    if not 0 < buffer <= limit:
        raise UserError(f"length_penalty: buffer must lie between 1 and limit={limit}, found {buffer}")
    count = _counter(unit, tokenizer)
    lengths = torch.tensor([count(text) for text in completions], dtype=torch.float64)
    return ((limit - buffer - lengths) / buffer).clamp(-1.0, 0.0)


def repetition_penalty(
    completions: Sequence[str],
    prompts: Sequence[str],
    *,
    n: int = 3,
    weight: float = 1.0,
    unit: Literal["words", "characters", "tokens"] = "words",
    tokenizer: str | None = None,
) -> Tensor:
    """``-weight * (1 - different n-grams / n-grams)`` [N]; 0 for a completion shorter than ``n`` units.

    The share of repeated n-grams as in Yeo et al. 2025 (arXiv:2502.03373). Raises `UserError` for ``n < 1``.
    """
    if n < 1:
        raise UserError(f"repetition_penalty: n must be at least 1, found {n}")
    split = _splitter(unit, tokenizer)
    return torch.tensor([-weight * _repeated(split(text), n) for text in completions], dtype=torch.float64)


def _repeated(units: Sequence[object], n: int) -> float:
    grams = list(zip(*(units[start:] for start in range(n)), strict=False))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _counter(unit: str, tokenizer: str | None) -> Callable[[str], int]:
    split = _splitter(unit, tokenizer)
    return lambda text: len(split(text))


def _splitter(unit: str, tokenizer: str | None) -> Callable[[str], Sequence[object]]:
    if unit == "words":
        return str.split
    if unit == "characters":
        return lambda text: text
    if unit != "tokens":
        raise UserError(f"length_penalty: unit is 'words', 'characters' or 'tokens', found {unit!r}")
    if tokenizer is None:
        raise UserError("length_penalty: unit 'tokens' needs the option 'tokenizer', a folder or hub name")
    return _tokenizer(tokenizer)


@lru_cache(maxsize=4)
def _tokenizer(path: str) -> Callable[[str], Sequence[object]]:
    from transformers import AutoTokenizer

    loaded = from_hub(lambda: AutoTokenizer.from_pretrained(path), f"tokenizer {path!r}", "length_penalty")
    return lambda text: loaded(text, add_special_tokens=False)["input_ids"]
