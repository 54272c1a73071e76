"""From the scores of samples to the numbers of ``results.json``.

Schema of ``results.json`` (``flowrl.evaluation/2``); an estimate is ``{"value", "low", "high"}``, a 95 % bootstrap
interval over prompts, null where unknown::

    schema, target, kind          what was evaluated; kind is model, run, lora or images
    manifest                      samples, limit, seed, data, versions, identity of each arm
    suites.NAME                   of a grid of decodings, one NAME@length=64,steps=32 for each
      suite, decoding             the NAME, and what is after the @
      title, version, source      printed name, version of the suite, where its prompts are from
      medium                      images or completions
      sampling                    length, block, steps, guidance, temperature, ... as far as the sampler has them
      independent                 true where samples are trials of their own: ``wilson`` is the interval to read
      primary                     the measure of the headline ("correct" for GenEval)
      partial, missing_tags       whether only a part of the prompts was used, and the tags without any
      prompts, prompts_available  prompts used, and how many the suite has
      samples_per_prompt, resolution (of images), metadata_sha256
      protocol, departures        of a benchmark that says how samples are made: what it says, and what was not so
      self_test                   afresh, and checks: name, passed (null: undecided) and found, of what judges
      agreement                   of our verdicts with the official tool's (option official), overall and tags.TAG:
                                  images, both, ours, theirs, neither, agree, wilson, kappa
      distances                   with features: their encoder, and between: of, from, pictures (of both), frechet, cmmd
                                  (as released) and cmmd_unbiased
      tags.TAG                    prompts: how many
      arms.ARM                    ARM is base and tuned, or model, or images
        samples, unscored         samples scored, and those without a primary measure
        measures.MEASURE
          overall                 unweighted mean over tags; null while tags are missing
          samples                 mean over samples (of GenEval2's skills, over questions)
          any_of_n                share of prompts with at least one success (measures of 0 and 1 only)
          pass_at.K               chance that one of K samples is a success, K = 1, 2, 4, ... (0 and 1 only)
          wilson                  [low, high] of ``samples`` if all samples were independent (0 and 1 only)
          tags.TAG                mean over the tag's samples
        reasons                   {failure reason: samples}
      difference.MEASURE          tuned minus base at equal prompts and seeds: overall, samples, pass_at, tags, and
                                  win_rate
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flowrl.evaluation.statistics import Floats, Resamples, difference, pass_at, wilson, wins

SCHEMA = "flowrl.evaluation/2"
MAX_REASONS = 40


@dataclass(frozen=True)
class VariantScores:
    """What a suite found in the samples of one variant; P prompts with up to S samples each."""

    measures: Mapping[str, Floats]
    """[P, S] each; NaN where there is no sample or it could not be scored."""
    present: Floats
    """[P, S] 1 where there is a sample."""
    reasons: Sequence[str]
    """Why samples failed, clause by clause; a sample that failed two clauses gives two."""


def summarise(
    variants: Mapping[str, VariantScores],
    tags: Sequence[str],
    expected_tags: Sequence[str],
    resamples: int,
    seed: int,
    weights: Mapping[str, Floats] | None = None,
) -> dict[str, Any]:
    """``arms``, ``difference``, ``tags`` and ``missing_tags`` of a suite; ``tags`` [P] names every prompt's tag.

    ``weights`` [P] by measure say how much the samples of a prompt count in its means.
    """
    weights = weights or {}
    draws = Resamples.draw(tags, resamples, seed)
    missing = [tag for tag in expected_tags if tag not in draws.rows]
    out: dict[str, Any] = {
        "missing_tags": missing,
        "tags": {tag: {"prompts": len(rows)} for tag, rows in draws.rows.items()},
        "arms": {name: _variant(scores, draws, not missing, weights) for name, scores in variants.items()},
        "difference": {},
    }
    if {"base", "tuned"} <= variants.keys():
        base, tuned = variants["base"].measures, variants["tuned"].measures
        out["difference"] = {
            name: _difference(base[name], tuned[name], draws, not missing, weights.get(name))
            for name in base
            if name in tuned
        }
    return out


def _variant(scores: VariantScores, draws: Resamples, complete: bool, weights: Mapping[str, Floats]) -> dict[str, Any]:
    samples = int(scores.present.sum())
    first = next(iter(scores.measures.values()))
    return {
        "samples": samples,
        "unscored": samples - int((~np.isnan(first)).sum()),
        "measures": {
            name: _measure(values, draws, complete, weights.get(name)) for name, values in scores.measures.items()
        },
        "reasons": dict(Counter(scores.reasons).most_common(MAX_REASONS)),
    }


def _measure(values: Floats, draws: Resamples, complete: bool, weights: Floats | None) -> dict[str, Any]:
    out = _spread(values, draws, complete, weights)
    if _binary(values):
        known = values[~np.isnan(values)]
        best = np.where(np.isnan(values).all(axis=1), np.nan, np.nan_to_num(values).max(axis=1))
        low, high = wilson(float(known.sum()), len(known))
        out["any_of_n"] = draws.samples(best[:, None]).json()
        out["pass_at"] = {str(k): draws.samples(pass_at(values, k)).json() for k in _attempts(values)}
        out["wilson"] = [low, high] if len(known) else None
    return out


def _difference(
    base: Floats, tuned: Floats, draws: Resamples, complete: bool, weights: Floats | None
) -> dict[str, Any]:
    out = _spread(difference(base, tuned), draws, complete, weights)
    if _binary(base) and _binary(tuned):
        changes = {k: difference(pass_at(base, k), pass_at(tuned, k)) for k in _attempts(base)}
        out["pass_at"] = {str(k): draws.samples(change).json() for k, change in changes.items()}
    out["win_rate"] = draws.samples(wins(base, tuned)).json()
    return out


def _binary(values: Floats) -> bool:
    return bool(np.isin(values[~np.isnan(values)], (0.0, 1.0)).all())


def _attempts(values: Floats) -> list[int]:
    """1, 2, 4, ... up to the samples of a prompt, and that number itself."""
    most = values.shape[1]
    return sorted({*(2**power for power in range(most.bit_length())), most})


def _spread(values: Floats, draws: Resamples, complete: bool, weights: Floats | None) -> dict[str, Any]:
    """A mean over tags that lacks tags would be read as the benchmark's number, so it is withheld."""
    return {
        "overall": draws.overall(values, weights).json() if complete else None,
        "samples": draws.samples(values, weights).json(),
        "tags": {tag: estimate.json() for tag, estimate in draws.by_tag(values, weights).items()},
    }
