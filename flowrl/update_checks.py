"""Self-checks that look at an update on its way: which steps it trains, what each term of its loss pulls at, which
weights it reaches and how far it moves them. `flowrl.checks` says what is healthy.

They leave weights, gradients, random states and every count as they were. All processes make the same exchanges.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from flowrl.coupling import Gradients
from flowrl.devices import to_host, wide
from flowrl.models.sharding import is_sharded, whole_of
from flowrl.models.text.policy import TextPolicy
from flowrl.parts.algorithm import Algorithm
from flowrl.types import OneProcess, Policy, Ranks, Table

REACH, COVERAGE, STEP = "check/gradient_reach", "check/step_coverage", "check/update_to_weight"
SHARE = "check/gradient_share/"
"""And the name of a term of the loss: the norm of its gradient over the sum of those of all terms."""
DETACHED, START = "check/penalties_without_gradient", "check/start_distance"
DRIFT = "check/drift"

CHECK_ROWS, CHECK_DECISIONS = 8, 256
"""Network rows, about, that are measured once more for a check; of long completions fewer, of about so many tokens, but
two: one alone would be in no other company."""
CHANCE = 1e-4
"""Probability with which a batch may lack a time by chance that the check expects in it, all times together."""
BINS, TIMES = 4, 64
"""Into how many bins times are put that are drawn from a continuum, which more than `TIMES` different ones are."""
LOOKED_AT = 1024
"""Evenly spaced numbers of a weight that are remembered to see how far a step moves it, about."""
VALUED = 1e-13
"""Value of a penalty from which on it has a gradient; in float16 that of a smaller one may vanish."""
PARTS = 24
"""Into how many parts samples are put whose gradients tell how sure their mean is; of fewer than `LEAST_PARTS` none."""
LEAST_PARTS = 8
EARLY = (1, 2, 10)
"""Iterations that are checked in any case: the first, the next, in which weights have moved, and one in which penalties
have grown, also with a warm-up."""


class Alone(Protocol):
    """Loss and gradient, of all processes, of the terms of an algorithm, of a few samples."""

    def __call__(self, *, algorithm: Algorithm, terms: Literal["objective", "regularizers"]) -> tuple[float, Gradients]:
        """With the policy as it is."""
        ...


class OfSome(Protocol):
    """Loss and gradient, of all processes, of the objective, of some samples [n] with weights [N, D]."""

    def __call__(self, *, table: Table, some: Tensor, weight: Tensor) -> tuple[float, Gradients]:
        """With the policy as it is."""
        ...


def due(every: int, iteration: int) -> bool:
    """Whether the iteration after ``iteration`` finished ones is checked: those of `EARLY` and each whose number is a
    multiple of ``every``; none where that is 0."""
    return bool(every) and (iteration + 1 in EARLY or (iteration + 1) % every == 0)


def few_samples(table: Table) -> int:
    """How many samples of a table are a few, see `CHECK_ROWS`."""
    network_rows = table.mask.shape[1] // table.rows.unit
    return min(max(1, CHECK_ROWS // network_rows), max(2, CHECK_DECISIONS // table.mask.shape[1]))


@contextmanager
def undisturbed(policy: Policy) -> Iterator[None]:
    """Inside, random numbers may be drawn and the policy asked: states of random generators and what is counted of
    routers are afterwards what they were."""
    device: torch.device = getattr(policy, "device", torch.device("cpu"))
    routers = policy.network.routers if isinstance(policy, TextPolicy) else None
    loads = None if routers is None else routers.loads
    states = random.getstate(), np.random.get_state()
    own = [] if device.type == "cpu" else [device.index or 0]
    try:
        with torch.random.fork_rng(own, device_type=device.type if own else "cuda"):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        if routers is not None and loads is not None:
            routers.loads = loads


class UpdateChecks:
    """What is seen of one iteration's update. ``on``: whether it is looked at; ``first``: whether all weight sets are
    still equal."""

    def __init__(self, on: bool = False, first: bool = False) -> None:
        self._on, self._first = on, first
        self._found: dict[str, float] = {}
        self._coverage: list[float] = []
        self._terms_seen = not on
        self.forwards = 0
        """Network rows that the checks themselves asked for on this process."""

    def metrics(self) -> dict[str, float]:
        """Lines of metrics.jsonl; nothing where an iteration is not looked at."""
        least = {COVERAGE: min(self._coverage)} if self._coverage else {}
        return self._found | least

    def see_batch(self, table: Table, index: Tensor, weight: Tensor) -> None:
        """Note which times the samples ``index`` of an optimiser batch train, by their weights [N, D]."""
        times = getattr(table.rows, "t", None)
        if not self._on or times is None:
            return
        found = covered(times, table.mask, table.group, index, weight[index] != 0)
        if found is not None:
            self._coverage.append(found)

    def wants_terms(self, algorithm: Algorithm) -> bool:
        """Whether the terms of the loss are to be seen: before the first step, where there is more than one."""
        return not self._terms_seen and algorithm.penalised

    def see_terms(self, policy: Policy, algorithm: Algorithm, weight: float, alone: Alone) -> None:
        """Note the gradient of each term of the loss alone, of samples whose weights sum to ``weight``, and how far
        the weight sets are apart that a term compares. Nothing where no sample has an advantage."""
        self._terms_seen = True
        if weight <= 0:
            return
        calls = getattr(policy, "network_calls", 0)
        penalties = [term for term in algorithm.regularizers if term.weight > 0]
        with undisturbed(policy):
            _, gradients = alone(algorithm=replace(algorithm, regularizers=()), terms="objective")
            norms, detached, distances = {"objective": _norm(gradients)}, 0, []
            for term in penalties:
                loss, gradients = alone(algorithm=replace(algorithm, regularizers=(term,)), terms="regularizers")
                norms[term.name] = _norm(gradients)
                mean = abs(loss) / (term.weight * weight)
                detached += norms[term.name] == 0 and mean > VALUED
                distances += [mean] if term.to else []
        self.forwards += getattr(policy, "network_calls", 0) - calls
        total = sum(norms.values())
        if 0 < total < math.inf:  # what is scaled for float16 may overflow
            self._found |= {SHARE + name: norm / total for name, norm in norms.items()}
        self._found[DETACHED] = float(detached)
        if self._first and distances:
            self._found[START] = max(distances)

    def wants_drift(self, algorithm: Algorithm) -> bool:
        """Whether the gradient for equal advantages is to be seen: before the very first step, of a control policy
        whose ratios are of matching errors. That of a density is zero in expectation, whoever samples."""
        return self._on and self._first and algorithm.family == "control" and algorithm.clips_in_units

    def see_drift(self, policy: Policy, table: Table, of: OfSome) -> None:
        """Note the norm of the mean gradient of decisions that all have advantage 1 over its standard error, which is
        about what the norm would be if the expectation were zero: ``|mean g| / sqrt(sum var(g) / P)`` of P parts of the
        samples that have decisions."""
        samples = table.mask.any(dim=1).nonzero()[:, 0]
        parts = min(PARTS, len(samples))
        if parts < LEAST_PARTS:
            return
        alike, found = replace(table, advantage=torch.ones_like(table.advantage)), []
        calls = getattr(policy, "network_calls", 0)
        with undisturbed(policy):
            for some in (samples[part::parts] for part in range(parts)):
                weight = torch.zeros(table.mask.shape, dtype=torch.float64)
                weight[some] = table.mask[some].double() / table.mask[some].sum()
                _, gradients = of(table=alike, some=some, weight=weight)
                found.append(torch.cat([g.detach().double().flatten().cpu() for g in gradients if g is not None]))
        self.forwards += getattr(policy, "network_calls", 0) - calls
        error = float((torch.stack(found).var(dim=0).sum() / parts).sqrt())
        if error > 0:
            self._found[DRIFT] = float(torch.stack(found).mean(dim=0).norm()) / error

    def see_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        """Note the share of the policy's trained tensors that have a gradient, of the first optimiser batch in which
        any has."""
        if self._on and REACH not in self._found:
            trained = optimizer.param_groups[0]["params"]
            reached = sum(parameter.grad is not None for parameter in trained)
            self._found[REACH] = reached / max(len(trained), 1)

    @contextmanager
    def see_step(self, optimizer: torch.optim.Optimizer, ranks: Ranks, norm: float) -> Iterator[None]:
        """Inside is an optimiser step. Note ``|change| / |weights|`` of the policy's trained weights, of the first one
        with a learning rate and a gradient, of this ``norm``."""
        group = optimizer.param_groups[0]
        if not self._on or STEP in self._found or not group["lr"] or not norm:
            yield
            return
        before = [_some(parameter) for parameter in group["params"]]
        yield
        moved = [_some(parameter) - old for parameter, old in zip(group["params"], before, strict=True)]
        change, size = (_length(group["params"], parts, ranks) for parts in (moved, before))
        if size > 0:
            self._found[STEP] = change / size


def covered(times: Tensor, mask: Tensor, group: Tensor, index: Tensor, trained: Tensor) -> float | None:
    """Share of the times that an optimiser batch should hold which it trains; ``None`` where chance alone could miss
    any of them.

    ``times`` and ``mask`` [N, D] of all samples, of the groups [N]; ``trained`` [n, D] of those of the batch, ``index``
    [n]. A time is expected if it would be missing with probability ``(1 - p)^B``, times the number of times, below
    `CHANCE`: p is the share of groups that hold it, B the number of groups in the batch.
    """
    number = _numbered(times)
    count = int(number.max()) + 1
    _, which = group.unique(return_inverse=True)
    held = torch.zeros(int(which.max()) + 1, count, dtype=torch.bool)
    held[which[:, None].expand(mask.shape)[mask], number[mask]] = True
    held = held[held.any(dim=1)]
    if not len(held) or not bool(trained.any()):
        return None
    taking_part = len(which[index][trained.any(dim=1)].unique())
    missing = (1 - held.double().mean(dim=0)) ** taking_part
    expected = (missing * count < CHANCE) & held.any(dim=0)
    if not bool(expected.any()):
        return None
    present = torch.zeros(count, dtype=torch.bool)
    present[number[index][trained]] = True
    return float(present[expected].double().mean())


def _numbered(times: Tensor) -> Tensor:
    """[N, D] int64: which of the different times each is, or which quarter of them where they are of a continuum."""
    values, number = times.unique(return_inverse=True)
    return number if len(values) <= TIMES else number * BINS // len(values)


def _norm(gradients: Gradients) -> float:
    squares = [wide(g).square().sum() for g in gradients if g is not None]
    return float(torch.stack(to_host([whole_of(square) for square in squares])).sum().sqrt()) if squares else 0.0


def _some(parameter: Tensor) -> Tensor:
    """A copy of `LOOKED_AT` evenly spaced numbers, or fewer than twice as many, of this process' part of a weight."""
    local: Any = parameter.detach()
    flat = (local.to_local() if is_sharded(parameter) else local).reshape(-1)
    return flat[:: _stride(flat.numel())].clone()


def _stride(count: int) -> int:
    return max(1, count // LOOKED_AT)


def _length(parameters: list[Tensor], parts: list[Tensor], ranks: Ranks) -> float:
    """The norm of whole weights, estimated from the ``parts`` that were looked at; each process holds its own of a
    weight that is split."""
    whole = torch.zeros(2, dtype=torch.float64)
    squares = to_host([wide(part).square().sum() for part in parts])
    for parameter, square in zip(parameters, squares, strict=True):
        split = is_sharded(parameter)
        local: Any = parameter.detach()
        count = local.to_local().numel() if split else parameter.numel()
        whole[int(split)] += float(square) * _stride(count)
    if any(map(is_sharded, parameters)) and not isinstance(ranks, OneProcess):
        whole[1] = ranks.total(whole[1])
    return float(whole.sum().sqrt())
