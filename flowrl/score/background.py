"""Scoring while sampling: chunks of samples are scored in the background as they are made, one thread per reward.

Every reward has a thread of its own, which lives as long as the run (rewards may keep state per thread), and
a short queue before it. A call never depends on what other threads do, so the scores are bit for bit those of asking
for the same chunks one after the other.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from flowrl.score.reward import CallStats, Reward, gather_stats
from flowrl.score.samples import joined, take
from flowrl.types import Prompt, Ranks, Samples, Scores

LOG = logging.getLogger("flowrl.score")
QUEUED = 2
"""Chunks that may wait before a reward; then the sampler waits too."""
CLOSE_SECONDS = 5.0
"""Seconds that `close` waits for a call in progress."""

Conclude = Callable[[Tensor, Sequence[Prompt], Tensor, Sequence[CallStats]], Scores]


class RewardThread:
    """A thread that works through its jobs in order; it starts with the first."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: queue.Queue[Callable[[], None] | None] = queue.Queue(QUEUED)
        self._thread: threading.Thread | None = None

    def put(self, job: Callable[[], None], check: Callable[[], None]) -> None:
        """Queue a job, waiting for room; ``check`` may raise meanwhile. A job must not raise."""
        if self._thread is None:
            # A daemon, because a reward that hangs must not keep an interrupted run from ending.
            self._thread = threading.Thread(target=self._work, name=f"reward {self._name}", daemon=True)
            self._thread.start()
        while True:
            check()
            try:
                return self._jobs.put(job, timeout=0.2)
            except queue.Full:
                continue

    def close(self) -> None:
        """End the thread after what it is doing, if that takes no longer than `CLOSE_SECONDS`."""
        if self._thread is None:
            return
        try:
            self._jobs.put(None, timeout=CLOSE_SECONDS)
            self._thread.join(CLOSE_SECONDS)
        except queue.Full:  # it hangs; said below
            pass
        if self._thread.is_alive():
            LOG.warning("reward %r is still at work and was left behind", self._name)
        self._thread = None
        self._jobs = queue.Queue(QUEUED)

    def _work(self) -> None:
        jobs = self._jobs
        while (job := jobs.get()) is not None:
            job()


class Scoring:
    """The scores of one iteration, in the making. Use as a context manager: leaving it ends what is still queued.

    ``add`` the chunks in order, then ``finish``. A failure in the background is raised by whichever comes next. Without
    ``asked`` no reward is asked, and every score stays NaN.
    """

    def __init__(
        self,
        rewards: Sequence[Reward],
        threads: Sequence[RewardThread | None],
        group: Tensor,
        conclude: Conclude,
        asked: bool = True,
    ) -> None:
        self._asked = asked
        self._rewards, self._threads, self._group, self._conclude = rewards, threads, group, conclude
        self.stats = [CallStats() for _ in rewards]
        self._scores = torch.full((len(group), len(rewards)), torch.nan, dtype=torch.float64)
        self._prompts: list[Prompt] = []
        self._held: list[Samples] = []  # chunks whose last group is not complete, for rewards that see whole groups
        self._later: list[Callable[[], None]] = []  # jobs of rewards without a thread
        self._open = 0  # jobs that have not ended
        self._error: BaseException | None = None
        self._stopped = False
        self._changed = threading.Condition()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped = True

    def add(self, samples: Samples) -> None:
        """Hand over the next samples. Waits while a reward is `QUEUED` chunks behind."""
        if not self._asked:
            return
        start, stop = len(self._prompts), len(self._prompts) + len(samples)
        self._prompts += samples.prompts
        whole = self._completed(samples, stop)
        for index, reward in enumerate(self._rewards):
            if not reward.function.grouped:
                self._submit(index, start, samples)
            elif whole is not None:
                self._submit(index, whole[0], whole[1])

    def finish(self) -> Scores:
        """Wait for all scores. Raises what a reward raised, and as `Rewards.conclude` does."""
        return self._conclude(self.wait(), self._prompts, self._group, self.stats)

    def wait(self) -> Tensor:
        """[N, R] float64: what all rewards returned, before any policy. Raises what a reward raised."""
        for job in self._later:
            job()
        with self._changed:
            self._changed.wait_for(lambda: self._open == 0 or self._error is not None)
        self._check()
        return self._scores

    def gather(self, ranks: Ranks) -> None:
        """Let the statistics be those of all processes."""
        self.stats = gather_stats(self.stats, ranks)

    def metrics(self, names: Sequence[str]) -> dict[str, float]:
        """``reward/seconds``: seconds spent in all rewards' calls, most of them while the next samples are made (what
        was waited for is ``time/reward``); ``reward/<name>/failures``:
        calls that failed, of rewards that had any."""
        failed = {f"reward/{n}/failures": float(t.failures) for n, t in zip(names, self.stats, strict=True)}
        busy = {"reward/seconds": sum(stats.seconds for stats in self.stats)}
        return busy | {key: value for key, value in failed.items() if value}

    def _completed(self, samples: Samples, stop: int) -> tuple[int, Samples] | None:
        """``(first row, samples)`` of groups that are now whole and were not before; keeps the rest."""
        if not any(reward.function.grouped for reward in self._rewards):
            return None
        self._held.append(samples)
        held = joined(self._held)
        begin = stop - len(held)
        open_group = self._group[stop] if stop < len(self._group) else None
        ready = len(held) if open_group is None else int((self._group[begin:stop] != open_group).sum())
        self._held = [take(held, range(ready, len(held)))] if ready < len(held) else []
        return (begin, take(held, range(ready))) if ready else None

    def _submit(self, index: int, start: int, samples: Samples) -> None:
        rows = slice(start, start + len(samples))

        def job() -> None:
            if self._stopped or self._error is not None:
                return self._note(None)
            try:
                self._scores[rows, index] = self._rewards[index].score(samples, self._group[rows], self.stats[index])
            except BaseException as error:  # raised where the samples are made: by `add` or `finish`
                return self._note(error)
            self._note(None)

        with self._changed:
            self._open += 1
        thread = self._threads[index]
        if thread is None:
            self._later.append(job)
        else:
            thread.put(job, self._check)

    def _note(self, error: BaseException | None) -> None:
        """A job has ended."""
        with self._changed:
            self._open -= 1
            self._error = self._error or error
            self._changed.notify_all()

    def _check(self) -> None:
        if self._error is not None:
            raise self._error
