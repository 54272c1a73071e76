"""PickScore (arXiv:2305.01569) on a file of prompts: PartiPrompts, DrawBench, Pick-a-Pic. Raw, about 18 to 24."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowrl.evaluation.scorers import ScorerSuite, scorer_suite
from flowrl.evaluation.target import Target

MEDIA = ("images",)


def build(target: Target, data: Path | None = None, options: Mapping[str, Any] | None = None) -> ScorerSuite:
    """``data`` is a file of prompts, ``options`` are those of the reward `pickscore`. Raises UserError."""
    return scorer_suite("pickscore", "pickscore", target, data, options)
