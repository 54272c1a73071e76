"""What is measured of every completion: length, repetition, and whether the same text was given elsewhere."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

NGRAM = 4
"""Characters in a row; characters and not words, so that it means the same in every language and notation."""


def measure_texts(completions: Sequence[str], group: Tensor) -> dict[str, Tensor]:
    """Statistics of completions [N], each [N] float32; ``group`` [N] tells which prompt each answers.

    ``length``     characters                      ``distinct`` distinct n-grams over n-grams (arXiv:1510.03055)
    ``duplicates`` 1 where another sample of its group has the same text, 0 where none has
    ``shared``     share of the other groups in which some sample has the same text (small where a few prompts have the
    same right answer, 1 where every prompt gets one answer)
    """
    texts = [text.strip() for text in completions]
    groups = group.tolist()
    others = max(len(set(groups)) - 1, 1)
    within = Counter(zip(texts, groups, strict=True))
    places = defaultdict(set)
    for text, number in zip(texts, groups, strict=True):
        places[text].add(number)
    return {
        "length": torch.tensor([float(len(text)) for text in completions]),
        "distinct": torch.tensor([distinct(text) for text in texts]),
        "duplicates": torch.tensor([float(within[key] > 1) for key in zip(texts, groups, strict=True)]),
        "shared": torch.tensor([(len(places[text]) - 1) / others for text in texts]),
    }


def distinct(text: str) -> float:
    """Share of a text's n-grams of characters that are distinct: 1 without repetition, near 0 for a loop. 1 for texts
    shorter than an n-gram."""
    grams = [text[i : i + NGRAM] for i in range(len(text) - NGRAM + 1)]
    return len(set(grams)) / len(grams) if grams else 1.0
