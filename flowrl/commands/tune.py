"""The fastest way to compute a run on the machine at hand: batch sizes, checkpointing and compilation are tried."""

from __future__ import annotations

import gc
import importlib.util
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from flowrl.config import Config
from flowrl.config.yaml_text import write_yaml
from flowrl.devices import default_kind, in_use, peak_allocated, reset_peaks
from flowrl.errors import UserError, first_line, is_out_of_memory
from flowrl.files import write_atomically
from flowrl.models import DiffusionPolicy
from flowrl.parts.selections import AllSamples
from flowrl.rounds import ScoredRollout, sample_and_score
from flowrl.runtime.memory_log import room
from flowrl.runtime.timing import PhaseTimer
from flowrl.session import Session, open_session
from flowrl.startup.doublings import Cost, DoesNotFitError, Tried, double, fastest
from flowrl.startup.preflight import CheckedRun, check_run
from flowrl.step import improve

SAMPLE, DECODE, MICRO = "train.sample_batch", "model.decode_batch", "train.micro_batch"
CHECKPOINTING, COMPILE = "model.gradient_checkpointing", "model.compile"
KEYS = (SAMPLE, DECODE, MICRO, CHECKPOINTING, COMPILE)
"""What is tried, in this order. None of them changes results but for rounding."""
LEAST_ROWS = 8
"""Network rows of an update that is measured, so that the optimiser's step does not outweigh them."""
MOST_REPEATS = 5
"""Measurements of a size, of which the fastest counts."""


_T = TypeVar("_T")


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    arm: str
    """The checkpointing and compilation it was tried with."""
    key: str
    tried: Tried


@dataclass
class Arm:
    """A model loaded one way, and the fastest sizes for it."""

    options: dict[str, bool]
    """Of `CHECKPOINTING` and `COMPILE`."""
    rows: list[Row] = field(default_factory=list)
    chosen: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    """Per sample: sampling, decoding and all updates it takes part in."""
    stopped: str = ""
    """Why there is nothing to choose."""

    @property
    def name(self) -> str:
        """The options that are on."""
        return " + ".join(key.partition(".")[2] for key, on in self.options.items() if on) or "plain"


def tune(
    config: Config, keys: Sequence[str] = KEYS, seconds: float = 3.0, say: Callable[[str], None] = lambda text: None
) -> list[Arm]:
    """Everything that was tried, each size for about ``seconds``, the arm as configured first.

    Raises `UserError` for a key that is not tried or a run that cannot start.
    """
    unknown = [key for key in keys if key not in KEYS]
    if unknown:
        raise UserError(f"--key {unknown[0]!r} is not one that tune tries; known: {', '.join(KEYS)}")
    check_run(config)  # what is wrong with the run itself ends it here
    arms = [_arm(config, {CHECKPOINTING: config.model.gradient_checkpointing, COMPILE: config.model.compile})]
    _try(arms[0], config, keys, seconds, say)
    for key in (CHECKPOINTING, COMPILE):
        if key not in keys or (key == COMPILE and not has_compiler(config.model.device)):
            continue
        best = winner(arms) or arms[0]
        arms.append(_arm(config, {**best.options, key: not arms[0].options[key]}))
        _try(arms[-1], config, keys, seconds, say)
    return arms


def winner(arms: Sequence[Arm]) -> Arm | None:
    """The fastest arm that fits; of two within `doublings.GAIN` the earlier, which is nearer to the config."""
    whole = [(index, arm) for index, arm in enumerate(arms) if not arm.stopped]
    found = fastest([Tried(index, Cost(arm.seconds)) for index, arm in whole])
    return None if found is None else arms[found.size]


def overrides_of(arm: Arm, config: Config) -> dict[str, Any]:
    """What the arm changes in a config, as a nested mapping."""
    changes: dict[str, Any] = {}
    for key, value in {**arm.chosen, **arm.options}.items():
        section, _, name = key.partition(".")
        if getattr(getattr(config, section), name) != value:
            changes.setdefault(section, {})[name] = value
    return changes


def write_overrides(path: Path, changes: dict[str, Any], note: str) -> None:
    """Write a file of overrides, whole or not at all. Raises `UserError` where there is a file already."""
    check_free(path)
    write_atomically(path, f"# {note}\n{write_yaml(changes)}")


def check_free(path: Path) -> None:
    """Raise `UserError` where no file of overrides can be written."""
    if path.suffix not in (".yaml", ".yml"):
        raise UserError(f"--out {path} should end in .yaml, so that flowrl train takes it as a file of overrides")
    if path.exists():
        raise UserError(f"--out {path} exists already; name another file, or remove it")
    if not path.absolute().parent.is_dir():
        raise UserError(f"--out {path}: there is no folder {path.parent}; make it, or name another file")


def has_compiler(device: str) -> bool:
    """Whether torch.compile finds what it generates code with: Triton on an accelerator, a C++ compiler on the CPU."""
    kind = default_kind() if device == "auto" else device.partition(":")[0]
    if kind == "cpu":
        return any(shutil.which(name) for name in (os.environ.get("CXX") or "g++", "clang++", "cl"))
    return kind in ("cuda", "xpu") and importlib.util.find_spec("triton") is not None


def _arm(config: Config, options: dict[str, bool]) -> Arm:
    train = config.train
    chosen = {SAMPLE: train.sample_batch, MICRO: train.micro_batch}
    return Arm(options, chosen=chosen)


def _try(arm: Arm, config: Config, keys: Sequence[str], seconds: float, say: Callable[[str], None]) -> None:
    """Fill an arm. A model that does not take the options, or does not fit with them, stops the arm alone."""
    options = {key.partition(".")[2]: on for key, on in arm.options.items()}
    say(f"trying {arm.name}: loading {config.model.path}")
    try:
        plan = check_run(config.model_copy(update={"model": config.model.model_copy(update=options)}))
        session = open_session(plan)
        with closing(session.rewards):
            _search(arm, _Probe(session, plan, seconds), keys, say)
    except Exception as error:
        # What the config itself asks for has to work; of compilers and memory, anything may come of the rest.
        own = all(on == getattr(config.model, key) for key, on in options.items())
        if own and not is_out_of_memory(error):
            raise
        arm.stopped = first_line(error)
    session = None  # before the next one is loaded
    _free()


def _search(arm: Arm, probe: _Probe, keys: Sequence[str], say: Callable[[str], None]) -> None:
    """The sizes of one arm, one after the other; each of them is what the later ones are tried with."""
    diffusion = isinstance(probe.session.policy, DiffusionPolicy)
    if diffusion:
        arm.chosen[DECODE] = probe.session.config.model.decode_batch
    train, most = probe.plan.config.train, probe.plan.workload.samples
    plans: dict[str, tuple[Callable[[dict[str, int], int], Cost], int]] = {
        SAMPLE: (probe.sampling, most),
        **({DECODE: (probe.decoding, most)} if diffusion else {}),
        MICRO: (probe.updating, max(1, most // train.updates * probe.rows_per_sample)),
    }
    for key, (measure, largest) in plans.items():
        fixed = key not in keys or (key == MICRO and train.micro_tokens is not None)
        cap = min(largest, arm.chosen[SAMPLE]) if key == DECODE else largest
        say(f"trying {arm.name}: {key}")
        if fixed:
            tried = [_once(partial(measure, arm.chosen), min(arm.chosen[key], cap))]
        else:
            tried = double(partial(measure, arm.chosen), cap, room(in_use()))
        arm.rows += [Row(arm.name, key, each) for each in tried]
        best = fastest(tried)
        if best is None or best.cost is None:
            arm.stopped = f"{key}={tried[0].size}: out of memory"
            return
        if not fixed:
            arm.chosen[key] = best.size
        arm.seconds += best.cost.seconds


def _once(measure: Callable[[int], Cost], size: int) -> Tried:
    try:
        return Tried(size, measure(size))
    except DoesNotFitError:
        return Tried(size, None, "out of memory")


class _Probe:
    """Measures sizes in an open session, by the functions of the training loop. What the policy learns of made-up
    rewards is thrown away with the session."""

    def __init__(self, session: Session, plan: CheckedRun, seconds: float) -> None:
        self.session, self.plan, self._seconds = session, plan, seconds
        # One round, of which all samples are trained: times are not to depend on what the samples are worth.
        session.algorithm = replace(session.algorithm, selection=AllSamples())

    @property
    def rows_per_sample(self) -> int:
        """Network rows of an update per sample."""
        work = self.plan.workload
        return max(1, work.training_forwards // (work.samples * self.plan.config.train.epochs))

    def sampling(self, chosen: dict[str, int], size: int) -> Cost:
        """Of sampling so many at once."""

        def run() -> tuple[float, int]:
            batch, phases = self._sampled(size, size)
            return phases["time/sample"], len(batch.samples)

        return self._measured(run)

    def decoding(self, chosen: dict[str, int], size: int) -> Cost:
        """Of decoding so many images at once."""
        policy = self.session.policy
        assert isinstance(policy, DiffusionPolicy)
        final = self._within(lambda: self._sampled(size, min(size, chosen[SAMPLE])))[0].rollout.final
        policy.decoder.rows = size

        def run() -> tuple[float, int]:
            timer = PhaseTimer()
            with timer("decode"):
                policy.decode(final)
            return timer.collect()["time/decode"], len(final)

        return self._measured(run)

    def updating(self, chosen: dict[str, int], size: int) -> Cost:
        """Of an update with so many network rows at once, times the epochs."""
        count = -(-max(size, LEAST_ROWS) // self.rows_per_sample)
        batch = self._within(lambda: self._sampled(count, chosen[SAMPLE]))[0]
        return self._measured(lambda: self._updated(batch, size))

    def _sampled(self, count: int, rows: int) -> tuple[ScoredRollout, dict[str, float]]:
        """At least ``count`` samples, in groups as small as the algorithm takes, ``rows`` at a time."""
        config = self.plan.config
        group = max(self.plan.algorithm.min_group, min(2, config.data.group))
        prompts = -(-count // group)
        data = config.data.model_copy(update={"prompts": prompts, "group": group})
        train = config.train.model_copy(update={"sample_batch": rows})
        self.session.config = config.model_copy(update={"data": data, "train": train})
        timer = PhaseTimer()
        return sample_and_score(self.session, timer), timer.collect()

    def _updated(self, batch: ScoredRollout, size: int) -> tuple[float, int]:
        session, timer = self.session, PhaseTimer()
        # Made-up rewards, none of them missing: a flat group or an unscored sample would be left out.
        made_up = torch.arange(batch.scores.rewards.numel()).reshape(batch.scores.rewards.shape)
        rewards = made_up.to(batch.scores.rewards)
        scores = replace(batch.scores, rewards=rewards, valid=torch.ones_like(batch.scores.valid))
        advantage = session.algorithm.advantage(scores, deepcopy(session.memory))
        settings = replace(session.update_settings(), updates=1, epochs=1, micro_batch=size)
        policy, algorithm = session.policy, session.present_algorithm
        with timer("update"):
            improve(
                policy, session.optimizer, algorithm, batch.rollout, scores, advantage, settings, session.scaler,
                batch.share,
            )  # fmt: skip
        return timer.collect()["time/update"] * self.plan.config.train.epochs, len(batch.samples)

    def _measured(self, run: Callable[[], tuple[float, int]]) -> Cost:
        """The fastest of a few runs after one to warm up."""
        return self._within(lambda: self._repeated(run))

    def _repeated(self, run: Callable[[], tuple[float, int]]) -> Cost:
        reset_peaks()
        run()
        start, paces = time.perf_counter(), []
        while not paces or (time.perf_counter() - start < self._seconds and len(paces) < MOST_REPEATS):
            seconds, count = run()
            paces.append(seconds / count)
        return Cost(min(paces), peak())

    def _within(self, run: Callable[[], _T]) -> _T:
        """Raise `DoesNotFitError` where memory runs out inside."""
        try:
            return run()
        except (MemoryError, RuntimeError, OSError) as error:
            if not is_out_of_memory(error):
                raise
        self.session.optimizer.zero_grad(set_to_none=True)  # outside, where the traceback holds no tensors any more
        _free()
        raise DoesNotFitError


def peak() -> int:
    """Bytes at the peak: of the accelerator in use, or of this process since it began."""
    devices = in_use()
    if devices:
        return max(peak_allocated(device) for device in devices)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _free() -> None:
    gc.collect()
    if torch.accelerator.is_available():
        empty = getattr(torch.get_device_module(default_kind()), "empty_cache", None)
        if empty is not None:
            empty()
