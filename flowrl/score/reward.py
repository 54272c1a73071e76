"""One reward of a run: called in batches, again after a failure, and never with a silent zero."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from flowrl.clients.results import RewardError, as_scores, number_type
from flowrl.config.reward import OnErrorConfig
from flowrl.errors import UserError
from flowrl.exit_guard import catch_exit
from flowrl.score.combination import Gate, applies_to
from flowrl.score.reward_function import RewardFunction
from flowrl.score.samples import split_by_group, take, without_broken_images
from flowrl.types import Ranks, Samples, exchange

LOG = logging.getLogger("flowrl.score")
WAIT = 0.5
"""Seconds before the first retry; doubled each time, up to `MAX_WAIT`."""
MAX_WAIT = 8.0


@dataclass
class CallStats:
    """Statistics of a reward's calls."""

    seconds: float = 0.0
    """Spent in its calls."""
    failures: int = 0
    """Calls that raised or whose result was none."""
    last_failure: str = ""
    number_type: str = ""
    """What the last result consisted of: float32, float64, int64, list."""


def gather_stats(stats: Sequence[CallStats], ranks: Ranks) -> list[CallStats]:
    """Those of all processes: times and failures added up, and the first failure that one has to tell."""
    every = exchange(ranks, [[its.seconds, its.failures, its.last_failure] for its in stats])
    columns = [list(zip(*column, strict=True)) for column in zip(*every, strict=True)]
    return [
        replace(its, seconds=sum(seconds), failures=sum(failures), last_failure=next(filter(None, said), ""))
        for its, (seconds, failures, said) in zip(stats, columns, strict=True)
    ]


@dataclass(frozen=True)
class Reward:
    """A reward of a run."""

    name: str
    weight: float
    """Factor in the total; 0 for one that is only watched, and for a gate."""
    function: RewardFunction
    batch_size: int | None
    applies: Mapping[str, Any] = field(default_factory=dict)
    gate: Gate | None = None
    on_error: OnErrorConfig | None = None
    """None: exceptions stop the run, and samples it could not score follow the run's ``on_nan``."""
    overlap: bool = True

    @torch.no_grad()
    def score(self, samples: Samples, group: Tensor, stats: CallStats) -> Tensor:
        """[N] float64 scores; NaN where it could not score or its ``applies`` does not hold, `NOT_APPLICABLE` where it
        said None. A sample whose image is not finite could not be scored. group: [N] int64 on the host.

        Calls hold ``batch_size`` samples, whole groups of a reward that compares them. Raises `RewardError` for a call
        that fails, where ``on_error`` wants it, and `UserError` for mistakes of the config, which no policy forgives.
        """
        samples, broken = without_broken_images(samples)
        scores = torch.full((len(samples),), torch.nan, dtype=torch.float64)
        rows = applies_to(self.applies, samples.prompts).nonzero()[:, 0].tolist()
        for batch in self._batches(group, rows):
            self._score_batch(scores, samples, group, batch, stats)
        return scores.masked_fill(broken, torch.nan)

    def _batches(self, group: Tensor, rows: list[int]) -> list[list[int]]:
        if not self.function.grouped:
            size = self.batch_size or max(1, len(rows))
            return [rows[start : start + size] for start in range(0, len(rows), size)]
        batches: list[list[int]] = []
        for members in split_by_group(group, rows):
            if batches and (self.batch_size is None or len(batches[-1]) + len(members) <= self.batch_size):
                batches[-1] += members
            else:
                batches.append(members)
        return batches

    def _score_batch(self, scores: Tensor, samples: Samples, group: Tensor, rows: list[int], stats: CallStats) -> None:
        """Write the scores of ``rows`` [n] into ``scores`` [N]. A call that fails is repeated as ``on_error`` says, for
        what is missing. With ``drop_group``, its groups are then asked one by one, so that one bad sample costs its own
        group only, whatever samples it happened to be asked with."""
        policy = self.on_error or OnErrorConfig()
        failure: RewardError | None = None
        for attempt in range(policy.retry + 1):
            if attempt:
                time.sleep(min(WAIT * 2 ** (attempt - 1), MAX_WAIT))
            failure = self._call(scores, samples, group, rows, stats)
            if failure is None:
                rows = self._unscored(scores, group, rows)
                if not rows:
                    return
        if failure is None:  # what is missing stays NaN
            return
        if policy.then == "raise":
            raise failure
        groups = split_by_group(group, rows)
        for members in groups:
            if len(groups) > 1:
                failure = self._call(scores, samples, group, members, stats)
            if failure is not None:
                LOG.warning("%d samples of a group could not be scored: %s", len(members), failure)

    def _unscored(self, scores: Tensor, group: Tensor, rows: Sequence[int]) -> list[int]:
        """Rows without a score, and the others of their groups where the reward compares samples."""
        chosen = torch.tensor(rows)
        missing = scores[chosen].isnan()
        if self.function.grouped:
            missing = torch.isin(group[chosen], group[chosen][missing])
        return chosen[missing].tolist()

    def _call(
        self, scores: Tensor, samples: Samples, group: Tensor, rows: list[int], stats: CallStats
    ) -> RewardError | None:
        """Call the function once, and write its result into ``scores[rows]``; or say how it failed."""
        samples = take(samples, rows)
        if samples.images is not None and not samples.images.is_inference():
            # `.data` has a count of in-place changes of its own, so that the reward that made them is the one named.
            samples = replace(samples, images=samples.images.data)
        version, start = _version(samples), time.perf_counter()
        try:
            with catch_exit():
                result = self.function(samples, group[rows] if self.function.grouped else None)
            if _version(samples) != version:
                raise UserError(f"reward {self.name!r} changes the images in place; work on images.clone()")
            stats.number_type = number_type(result)
            scores[rows] = as_scores(result, len(samples), self.name)
            return None
        except RewardError as error:
            failure = error
        except UserError:
            raise
        except (Exception, SystemExit) as error:  # whatever a user's code raises is reported as theirs, chained
            failure = RewardError.of(self.name, error)
        finally:
            stats.seconds += time.perf_counter() - start
        stats.failures, stats.last_failure = stats.failures + 1, str(failure)
        return failure


def _version(samples: Samples) -> int:
    """Counts in-place changes of the images (tensors made in inference mode do not count)."""
    return 0 if samples.images is None or samples.images.is_inference() else samples.images._version
