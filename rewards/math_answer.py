"""Mathematical answers (GSM8K, MATH, AIME) compared by value with math-verify, in processes that may be killed."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from flowrl.errors import UserError, install_command, missing_package
from flowrl.processes import ChildError
from flowrl.sandbox.worker_pool import WorkerPool
from rewards._extraction import after_hashes, boxed, last_number, latex, number, tagged

RANGE = "[0, 1]"
NEEDS = ("answer", "math-verify")
MAX_ANSWER = 500
"""Characters; a longer answer is wrong. Gold answers of GSM8K, MATH and AIME are shorter by far."""


class math_answer:  # noqa: N801 - the name a config uses
    r"""1 where the completion's answer equals the column ``answer``, else 0; NaN where the gold answer is unreadable.

    Gold: the text after ``####`` (GSM8K), else the last ``\boxed{...}`` (a MATH solution), else the whole column.
    Answer: the last ``\boxed{...}``, else ``<answer>...</answer>``, else after ``####``, else the last number; with
    ``strict_format`` a bare number does not count. Equality, the cheap kinds first: same normalised LaTeX, same
    fraction, and, unless ``mode="string"`` (in the manner of Hendrycks' MATH scorer), equal by math-verify.
    A unit written after a number is ignored on both sides.

    Verifying hostile answers (``9^{9^{9^9}}``) hangs or eats memory, so it happens in ``workers`` processes, each
    with ``memory`` bytes, that are killed after ``timeout`` seconds: one zero and one more in ``timeouts`` (``crashes``
    for a worker that died, ``failures`` where math-verify raised). Raises `UserError` when math-verify is not
    installed or a worker cannot start.
    """

    def __init__(
        self,
        *,
        mode: Literal["verify", "string"] = "verify",
        strict_format: bool = False,
        timeout: float = 3.0,
        workers: int = 2,
        memory: int = 2 << 30,
    ) -> None:
        if mode not in ("verify", "string"):
            raise UserError(f"math_answer: mode is 'verify' or 'string', found {mode!r}")
        if mode == "verify" and importlib.util.find_spec("math_verify") is None:
            raise missing_package("math_answer", "math-verify", "text", "set mode: string")
        self.mode, self.strict_format = mode, strict_format
        self._pool = WorkerPool("rewards._equivalence:build", workers=workers, timeout=timeout, memory=memory)

    @property
    def timeouts(self) -> int:
        """Answers that took too long so far."""
        return self._pool.counts["timeout"]

    @property
    def crashes(self) -> int:
        """Worker processes that died on an answer so far."""
        return self._pool.counts["crashed"]

    @property
    def failures(self) -> int:
        """Answers on which math-verify raised so far (out of memory included)."""
        return self._pool.counts["failed"]

    def __call__(self, completions: Sequence[str], prompts: Sequence[str], answer: Sequence[Any]) -> Tensor:
        """[N] float64 in {0, 1, NaN}."""
        golds = [None if gold is None else gold_answer(str(gold)) for gold in answer]
        found = [found_answer(text, self.strict_format) for text in completions]
        scores = [_cheap(gold, mine, self.mode) for gold, mine in zip(golds, found, strict=True)]
        # Each different pair is verified once: samples of a group often agree.
        pairs = list(dict.fromkeys((golds[i], found[i]) for i, score in enumerate(scores) if score is None))
        verified = dict(zip(pairs, self._verify(pairs), strict=True))
        known = [verified[golds[i], found[i]] if score is None else score for i, score in enumerate(scores)]
        return torch.tensor(known, dtype=torch.float64)

    def close(self) -> None:
        """End the worker processes."""
        self._pool.close()

    def _verify(self, pairs: Sequence[tuple[str | None, str | None]]) -> list[float]:
        try:
            replies = self._pool.map(pairs)
        except ChildError as error:
            raise UserError(f"math_answer: {error}; is math-verify whole ({install_command('text')})?") from error
        unreadable = float("nan")  # a gold answer that math-verify cannot parse
        return [
            (unreadable if reply.value is None else reply.value) if reply.status == "done" else 0.0 for reply in replies
        ]


def gold_answer(text: str) -> str | None:
    """The answer inside a column of GSM8K, MATH or plain answers; None for an empty one."""
    return after_hashes(text) or boxed(text) or text.strip() or None


def found_answer(text: str, strict_format: bool) -> str | None:
    """The answer a completion gives, or None."""
    marked = boxed(text) or tagged(text) or after_hashes(text)
    if marked is not None and "\\boxed" not in marked:
        return marked or None
    return None if strict_format else last_number(text)


def _cheap(gold: str | None, mine: str | None, mode: str) -> float | None:
    """The score where it needs no computer algebra, else None."""
    if gold is None:
        return float("nan")
    if mine is None or len(mine) > MAX_ANSWER:
        return 0.0
    if latex(gold) == latex(mine):
        return 1.0
    left, right = number(gold), number(mine)
    if left is not None and right is not None:
        return float(left == right)
    return 0.0 if mode == "string" else None
