"""LAION's aesthetic predictor on a file of prompts, about 3 to 8; it does not look at the prompt."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowrl.evaluation.scorers import ScorerSuite, scorer_suite
from flowrl.evaluation.target import Target

MEDIA = ("images",)


def build(target: Target, data: Path | None = None, options: Mapping[str, Any] | None = None) -> ScorerSuite:
    """``data`` is a file of prompts, ``options`` are those of the reward `aesthetic`. Raises UserError."""
    return scorer_suite("aesthetic", "aesthetic", target, data, options)
