"""From one verdict per image to the numbers of ``results.json``.

Schema of ``results.json`` (``flowrl.evaluation/1``); an estimate is ``{"value", "low", "high"}``, a 95 % bootstrap
interval over prompts, null where unknown::

    schema, target, kind          what was evaluated; kind is model, run, lora or images
    manifest                      samples, limit, seed, steps, guidance, solver, versions, identity of each arm
    suites.NAME
      title, version, source      printed name, version of the suite, where its prompts are from
      primary                     the measure of the headline ("correct" for GenEval)
      partial, missing_tags       whether only a part of the prompts was used, and the tags without any
      prompts, prompts_available  prompts used, and how many the suite has
      images_per_prompt, resolution, metadata_sha256
      tags.TAG                    prompts: how many
      arms.ARM                    ARM is base and tuned, or model, or images
        images, unscored          images judged, and those without a primary measure
        measures.MEASURE
          overall                 unweighted mean over tags; null while tags are missing
          images                  mean over images
          any_of_n                share of prompts with at least one success (measures of 0 and 1 only)
          wilson                  [low, high] of ``images`` if all images were independent (0 and 1 only)
          tags.TAG                mean over the tag's images
        reasons                   {failure reason: images}
      difference.MEASURE          tuned minus base at equal prompts and seeds: overall, images, tags, and win_rate
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flowrl.evaluation.statistics import Floats, Resamples, difference, wilson, wins

SCHEMA = "flowrl.evaluation/1"
MAX_REASONS = 40


@dataclass(frozen=True)
class Judged:
    """What a suite found in the images of one arm; P prompts with up to S images each."""

    measures: Mapping[str, Floats]
    """[P, S] each; NaN where there is no image or it could not be scored."""
    present: Floats
    """[P, S] 1 where there is an image."""
    reasons: Sequence[str]
    """Why images failed, clause by clause; an image that failed two clauses gives two."""


def summarise(
    arms: Mapping[str, Judged], tags: Sequence[str], expected_tags: Sequence[str], resamples: int, seed: int
) -> dict[str, Any]:
    """``arms``, ``difference``, ``tags`` and ``missing_tags`` of a suite; ``tags`` [P] names every prompt's tag."""
    draws = Resamples.draw(tags, resamples, seed)
    missing = [tag for tag in expected_tags if tag not in draws.rows]
    out: dict[str, Any] = {
        "missing_tags": missing,
        "tags": {tag: {"prompts": len(rows)} for tag, rows in draws.rows.items()},
        "arms": {name: _arm(judged, draws, not missing) for name, judged in arms.items()},
        "difference": {},
    }
    if {"base", "tuned"} <= arms.keys():
        base, tuned = arms["base"].measures, arms["tuned"].measures
        out["difference"] = {
            name: _difference(base[name], tuned[name], draws, not missing) for name in base if name in tuned
        }
    return out


def _arm(judged: Judged, draws: Resamples, complete: bool) -> dict[str, Any]:
    images = int(judged.present.sum())
    first = next(iter(judged.measures.values()))
    return {
        "images": images,
        "unscored": images - int((~np.isnan(first)).sum()),
        "measures": {name: _measure(values, draws, complete) for name, values in judged.measures.items()},
        "reasons": dict(Counter(judged.reasons).most_common(MAX_REASONS)),
    }


def _measure(values: Floats, draws: Resamples, complete: bool) -> dict[str, Any]:
    out = _spread(values, draws, complete)
    known = values[~np.isnan(values)]
    if np.isin(known, (0.0, 1.0)).all():
        best = np.where(np.isnan(values).all(axis=1), np.nan, np.nan_to_num(values).max(axis=1))
        low, high = wilson(float(known.sum()), len(known))
        out["any_of_n"] = draws.images(best[:, None]).json()
        out["wilson"] = [low, high] if len(known) else None
    return out


def _difference(base: Floats, tuned: Floats, draws: Resamples, complete: bool) -> dict[str, Any]:
    out = _spread(difference(base, tuned), draws, complete)
    out["win_rate"] = draws.images(wins(base, tuned)).json()
    return out


def _spread(values: Floats, draws: Resamples, complete: bool) -> dict[str, Any]:
    """A mean over tags that lacks tags would be read as the benchmark's number, so it is withheld."""
    return {
        "overall": draws.overall(values).json() if complete else None,
        "images": draws.images(values).json(),
        "tags": {tag: estimate.json() for tag, estimate in draws.by_tag(values).items()},
    }
