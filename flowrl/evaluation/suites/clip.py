"""CLIPScore (arXiv:2104.08718) on a file of prompts, by default the cosine of CLIP ViT-L/14."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowrl.evaluation.scorers import ScorerSuite, scorer_suite
from flowrl.evaluation.target import Target

MEDIA = ("images",)


def build(target: Target, data: Path | None = None, options: Mapping[str, Any] | None = None) -> ScorerSuite:
    """``data`` is a file of prompts, ``options`` are those of the reward `clipscore`. Raises UserError."""
    return scorer_suite("clip", "clipscore", target, data, options)
