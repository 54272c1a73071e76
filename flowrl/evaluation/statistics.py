"""Uncertainty of an evaluation: bootstrap over prompts, paired differences, Wilson intervals. Pure numpy.

Samples of one prompt share its difficulty, so a prompt, not a sample, is the unit that is resampled. Tags are
strata: their list is fixed by the benchmark, so prompts are resampled within each tag. Intervals cover the
choice of prompts and noise, not the training seed. Missing scores are NaN and leave every mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

RESAMPLES = 10_000
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean and its percentile interval; the interval is NaN where fewer than two prompts carry a value."""

    value: float
    low: float
    high: float

    def json(self) -> dict[str, float | None]:
        """Plain JSON: NaN becomes null."""
        numbers = {"value": self.value, "low": self.low, "high": self.high}
        return {key: None if math.isnan(number) else float(number) for key, number in numbers.items()}


@dataclass(frozen=True)
class Resamples:
    """How often each prompt occurs in each bootstrap resample.

    Drawn once per benchmark and used for every variant and measure, so comparisons are paired.
    """

    rows: dict[str, NDArray[np.int64]]
    """Prompt rows of each tag."""
    counts: dict[str, Floats]
    """[B, P_tag] multiplicities of each tag; every row sums to P_tag."""

    @classmethod
    def draw(cls, tags: Sequence[str], resamples: int = RESAMPLES, seed: int = 42) -> Self:
        """Resample the prompts of each tag with replacement; ``tags`` [P] names the tag of every prompt."""
        rng = np.random.default_rng(seed)
        labels = np.asarray(tags)
        rows = {tag: np.flatnonzero(labels == tag) for tag in dict.fromkeys(tags)}
        counts = {}
        for tag, members in rows.items():
            size = len(members)
            counts[tag] = rng.multinomial(size, np.full(size, 1 / size), size=resamples).astype(np.float64)
        return cls(rows, counts)

    def by_tag(self, values: Floats, weights: Floats | None = None) -> dict[str, Estimate]:
        """Mean over the samples of each tag; ``values`` [P, S], NaN = could not score; ``weights`` [P] of samples."""
        return {tag: _estimate(*self._means(values, tag, weights)) for tag in self.rows}

    def overall(self, values: Floats, weights: Floats | None = None) -> Estimate:
        """Unweighted mean of the tags' means (GenEval's Overall)."""
        parts = [self._means(values, tag, weights) for tag in self.rows]
        point = float(np.mean([point for point, _ in parts]))
        return _estimate(point, np.mean([means for _, means in parts], axis=0))

    def samples(self, values: Floats, weights: Floats | None = None) -> Estimate:
        """Mean over all samples, whatever their tag."""
        total, count = _sums(values, weights)
        sums = sum(self.counts[tag] @ total[rows] for tag, rows in self.rows.items())
        sizes = sum(self.counts[tag] @ count[rows] for tag, rows in self.rows.items())
        means = _unless_alone(_ratios(np.asarray(sums), np.asarray(sizes)), count)
        return _estimate(_ratio(total.sum(), count.sum()), means)

    def _means(self, values: Floats, tag: str, weights: Floats | None) -> tuple[float, Floats]:
        rows, counts = self.rows[tag], self.counts[tag]
        total, count = _sums(values[rows], None if weights is None else weights[rows])
        means = _unless_alone(_ratios(counts @ total, counts @ count), count)
        return _ratio(total.sum(), count.sum()), means


def bootstrap(values: ArrayLike, resamples: int = RESAMPLES, seed: int = 42) -> Estimate:
    """Mean of [P] or [P, S] values, percentile bootstrap over prompts (Efron & Tibshirani 1993, ch. 13)."""
    table = _table(values)
    return Resamples.draw(["all"] * len(table), resamples, seed).overall(table)


def paired_bootstrap(base: ArrayLike, tuned: ArrayLike, resamples: int = RESAMPLES, seed: int = 42) -> Estimate:
    """Mean of ``tuned - base`` [P] or [P, S], sample by sample, with its interval over prompts.

    Pairs in which either side is NaN are left out. Raises ValueError when the two shapes differ.
    """
    return bootstrap(difference(_table(base), _table(tuned)), resamples, seed)


def difference(base: Floats, tuned: Floats) -> Floats:
    """``tuned - base`` of equal shape; resampling it by prompt is the paired bootstrap."""
    if base.shape != tuned.shape:
        raise ValueError(f"paired values differ in shape: base {base.shape}, tuned {tuned.shape}")
    return tuned - base


def wins(base: Floats, tuned: Floats) -> Floats:
    """1 where tuned beats base, 1/2 for a tie, else 0, NaN where one is missing; its mean is the win rate."""
    return np.sign(difference(base, tuned)) / 2 + 0.5


def pass_at(values: Floats, k: int) -> Floats:
    """[P, 1] unbiased estimate per prompt that one of ``k`` samples is a success: ``1 - C(n - c, k) / C(n, k)``.

    ``values`` [P, S] are 0, 1 or NaN (missing); c of a prompt's n known ones are 1. NaN where n < k. Source: Chen et
    al. 2021, arXiv:2107.03374, equation 1.
    """
    out = np.full((len(values), 1), np.nan)
    for row, found in enumerate(values):
        known = found[~np.isnan(found)]
        n, c = len(known), int(known.sum())
        if n >= k:
            out[row] = 1 - math.comb(n - c, k) / math.comb(n, k)
    return out


def wilson(successes: float, trials: int, level: float = LEVEL) -> tuple[float, float]:
    """Score interval of a proportion (Wilson 1927), for trials that are independent.

    ``(p + z^2/2n +- z sqrt(p (1-p)/n + z^2/4n^2)) / (1 + z^2/n)``; NaN for no trials.
    """
    if trials == 0:
        return math.nan, math.nan
    z = NormalDist().inv_cdf((1 + level) / 2)
    share, inflation = successes / trials, 1 + z * z / trials
    centre = (share + z * z / (2 * trials)) / inflation
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials)) / inflation
    return max(0.0, centre - half), min(1.0, centre + half)


def _table(values: ArrayLike) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    return array[:, None] if array.ndim == 1 else array


def _sums(values: Floats, weights: Floats | None) -> tuple[Floats, Floats]:
    """Per prompt: the sum of its scored samples and how many there are, times its weight."""
    weight = 1.0 if weights is None else weights
    return np.nansum(values, axis=1) * weight, (~np.isnan(values)).sum(axis=1) * weight


def _ratio(total: float, count: float) -> float:
    return float(total / count) if count else math.nan


def _ratios(totals: Floats, counts: Floats) -> Floats:
    out = np.full(totals.shape, np.nan)
    return np.divide(totals, counts, out=out, where=counts > 0)


def _unless_alone(means: Floats, count: Floats) -> Floats:
    """One prompt says nothing about the spread between prompts: no interval rather than one of width 0."""
    return means if (count > 0).sum() > 1 else np.full_like(means, np.nan)


def _estimate(point: float, means: Floats) -> Estimate:
    known = means[~np.isnan(means)]
    if not len(known):
        return Estimate(point, math.nan, math.nan)
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(known, [tail, 1 - tail])
    return Estimate(point, float(low), float(high))
