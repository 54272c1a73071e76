"""One reward asked for the scores of some samples: in batches, again after a failure, and never with a silent zero."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from flowrl.clients.results import RewardError, as_scores, kind_of
from flowrl.config.reward import OnErrorConfig
from flowrl.errors import UserError, describe_exception, is_out_of_memory
from flowrl.exit_guard import catch_exit
from flowrl.score.combination import Gate
from flowrl.score.signatures import Answer, take
from flowrl.types import Samples

LOG = logging.getLogger("flowrl.score")
WAIT = 0.5
"""Seconds before the first retry; doubled each time, up to `MAX_WAIT`."""
MAX_WAIT = 8.0


@dataclass(frozen=True)
class Reward:
    """A reward of a run."""

    name: str
    weight: float
    """Factor in the total; 0 for one that is only watched, and for a gate."""
    answer: Answer
    batch_size: int | None
    applies: Mapping[str, Any] = field(default_factory=dict)
    gate: Gate | None = None
    on_error: OnErrorConfig | None = None
    """None: exceptions stop the run, and samples it could not score follow the run's ``on_nan``."""
    overlap: bool = True


@dataclass
class CallStats:
    """What happened while a reward was asked."""

    seconds: float = 0.0
    """Spent in its calls."""
    failures: int = 0
    """Calls that raised or whose answer was none."""
    last: str = ""
    """The last failure."""
    kind: str = ""
    """What the last answer consisted of: float32, float64, int64, list."""


def ask(reward: Reward, samples: Samples, group: Tensor, rows: Sequence[int], stats: CallStats) -> Tensor:
    """[len(rows)] float64 scores of these rows; NaN where it could not score, `NOT_APPLICABLE` where it said None.

    Calls hold ``batch_size`` samples, whole groups of a reward that compares them. A call that fails is repeated as
    ``on_error`` says. With ``drop_group``, its groups are then asked one by one, so that one bad sample costs its own
    group only, whatever samples it happened to be asked with. Raises `RewardError`.
    """
    values = torch.full((len(samples),), torch.nan, dtype=torch.float64)
    for batch in _batches(reward, group, rows):
        _fill(values, reward, samples, group, batch, stats)
    return values[list(rows)]


def _fill(values: Tensor, reward: Reward, samples: Samples, group: Tensor, batch: list[int], stats: CallStats) -> None:
    policy = reward.on_error or OnErrorConfig()
    error, pending = _try(values, reward, samples, group, batch, policy.retry, stats)
    if error is None:
        return
    if policy.then == "raise":
        raise error
    apart = _groups(group, pending)
    for rows in apart:
        if len(apart) > 1:
            error, _ = _try(values, reward, samples, group, rows, 0, stats)
        if error is not None:
            LOG.warning("%d samples of a group could not be scored: %s", len(rows), error)


def _try(
    values: Tensor, reward: Reward, samples: Samples, group: Tensor, rows: list[int], retries: int, stats: CallStats
) -> tuple[RewardError | None, list[int]]:
    """Write the scores of ``rows`` into ``values``; asks again for those that are missing. Returns the failure of the
    last try, if it failed, and the rows it was about."""
    pending: list[int] = rows
    error: RewardError | None = None
    for attempt in range(retries + 1):
        if attempt:
            time.sleep(min(WAIT * 2 ** (attempt - 1), MAX_WAIT))
        try:
            values[pending] = _once(reward, take(samples, pending), group[pending], stats)
        except RewardError as failure:
            stats.failures, stats.last, error = stats.failures + 1, str(failure), failure
            continue
        error = None
        missing = {row for row in pending if bool(values[row].isnan())}
        if reward.answer.grouped:
            missing = {row for row in pending if any(group[row] == group[other] for other in missing)}
        if not missing:
            break
        pending = [row for row in pending if row in missing]
    return error, pending


def _once(reward: Reward, samples: Samples, group: Tensor, stats: CallStats) -> Tensor:
    """[n] the answer to one call. Raises `RewardError` for a failure, and other `UserError` as the reward raised it:
    mistakes of the config, which no policy forgives."""
    if samples.images is not None and not samples.images.is_inference():
        # `.data` has a count of in-place changes of its own, so that the reward that made them is the one named.
        samples = replace(samples, images=samples.images.data)
    version, start = _version(samples), time.perf_counter()
    try:
        with catch_exit():
            answer = reward.answer(samples, group if reward.answer.grouped else None)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # whatever a stranger's code raises is reported as theirs, chained
        raise RewardError(f"reward {reward.name!r} raised {describe_exception(error)}{_advice(error)}") from error
    finally:
        stats.seconds += time.perf_counter() - start
    if _version(samples) != version:
        raise UserError(f"reward {reward.name!r} changes the images in place; work on images.clone()")
    stats.kind = kind_of(answer)
    try:
        return as_scores(answer, len(samples), reward.name)
    except UserError as error:
        raise RewardError(str(error)) from None


def _advice(error: BaseException) -> str:
    """For memory that ran out."""
    return "; give it a batch_size, or a device of its own" if is_out_of_memory(error) else ""


def _version(samples: Samples) -> int:
    """Counts in-place changes of the images (tensors made in inference mode do not count)."""
    return 0 if samples.images is None or samples.images.is_inference() else samples.images._version


def _batches(reward: Reward, group: Tensor, rows: Sequence[int]) -> list[list[int]]:
    if not reward.answer.grouped:
        size = reward.batch_size or max(1, len(rows))
        return [list(rows[start : start + size]) for start in range(0, len(rows), size)]
    batches: list[list[int]] = []
    for members in _groups(group, rows):
        if batches and (reward.batch_size is None or len(batches[-1]) + len(members) <= reward.batch_size):
            batches[-1] += members
        else:
            batches.append(list(members))
    return batches


def _groups(group: Tensor, rows: Sequence[int]) -> list[list[int]]:
    """The rows of each group, in the order of their first."""
    found: dict[int, list[int]] = {}
    for row in rows:
        found.setdefault(int(group[row]), []).append(row)
    return list(found.values())
