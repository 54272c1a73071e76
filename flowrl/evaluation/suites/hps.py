"""HPSv2.1 (arXiv:2306.09341) on a file of prompts, as a cosine; papers print 100 times that, over four styles."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowrl.evaluation.scorers import ScorerSuite, scorer_suite
from flowrl.evaluation.target import Target

MEDIA = ("images",)


def build(target: Target, data: Path | None = None, options: Mapping[str, Any] | None = None) -> ScorerSuite:
    """``data`` is a file of prompts, ``options`` are those of the reward `hpsv2`. Raises UserError."""
    return scorer_suite("hps", "hpsv2", target, data, options)
