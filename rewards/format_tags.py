"""Does a completion keep to the form <reasoning>...</reasoning><answer>...</answer>."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from flowrl.errors import UserError

RANGE = "[0, weight], or below 0 with mode 'count' and trailing text"
NEEDS = ()
TRAILING_COST = 0.001
"""Per character behind the last tag, in mode ``count`` (d1)."""


def format_tags(
    completions: Sequence[str],
    prompts: Sequence[str],
    *,
    mode: Literal["exact", "strict", "soft", "count"] = "exact",
    tags: Sequence[str] = ("reasoning", "answer"),
    weight: float = 1.0,
) -> Tensor:
    """[N]: ``weight`` where a completion has the form, 0 elsewhere; ``count`` gives shares of it.

    ``exact``: every tag opened and closed exactly once, in order, with something inside, and only white space outside.
    ``strict`` (d1's strict format, arXiv:2504.12216): each tag and each content on lines of their own, one newline
    between them, nothing before or behind but a last newline. ``soft`` (d1's soft format): the tags in order at the
    start of the completion, white space between them, whatever follows. Contents may span lines in all modes (the
    published patterns, matched without DOTALL, missed that). ``count`` (after d1's tag count): an equal share for each
    opening and closing tag that occurs exactly once with its newline, less 0.001 per character behind the last one: it
    can go below 0. ``weight=0.5`` gives d1's scale. Raises `UserError` for an unknown mode or a tag that is no word.
    """
    if mode not in _MODES:
        raise UserError(f"format_tags: mode is one of {', '.join(_MODES)}, found {mode!r}")
    bad = [tag for tag in tags if not re.fullmatch(r"[A-Za-z_][\w-]*", tag)]
    if bad or not tags:
        raise UserError(f"format_tags: tags are words such as 'answer', without brackets; found {bad or 'none'}")
    return torch.tensor([weight * _MODES[mode](text, tags) for text in completions], dtype=torch.float64)


def _exact(text: str, tags: Sequence[str]) -> float:
    once = all(text.count(mark) == 1 for tag in tags for mark in (f"<{tag}>", f"</{tag}>"))
    parts = r"\s*".join(rf"<{tag}>(.*?)</{tag}>" for tag in tags)
    found = re.fullmatch(rf"\s*{parts}\s*", text, re.DOTALL) if once else None
    return float(found is not None and all(part.strip() for part in found.groups()))


def _strict(text: str, tags: Sequence[str]) -> float:
    body = r"\n".join(rf"<{tag}>\n(?:(?!</?{tag}>).)*?\n</{tag}>" for tag in tags)
    return float(re.fullmatch(rf"{body}\n?", text, re.DOTALL) is not None)


def _soft(text: str, tags: Sequence[str]) -> float:
    body = r"\s*".join(rf"<{tag}>(?:(?!</{tag}>).)*</{tag}>" for tag in tags)
    return float(re.match(rf"\s*{body}", text, re.DOTALL) is not None)


def _count(text: str, tags: Sequence[str]) -> float:
    share = 1 / (2 * len(tags))
    score = sum(share * (text.count(mark) == 1) for tag in tags for mark in (f"<{tag}>\n", f"\n</{tag}>"))
    behind = text.rpartition(f"</{tags[-1]}>")[2] if f"</{tags[-1]}>" in text else ""
    return score - TRAILING_COST * len(behind.strip())


_MODES = {"exact": _exact, "strict": _strict, "soft": _soft, "count": _count}
