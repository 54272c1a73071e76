"""Whether the steps and times that a run trains on tell anything on the model's own time grid: a self-check at start,
of every preset and every grid."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from flowrl.errors import UserError
from flowrl.estimators.matching import ContrastedMatching, Matching
from flowrl.estimators.times import NOISE_TIME, GridTimes
from flowrl.estimators.transitions import Transitions
from flowrl.math.flow import negligible
from flowrl.parts.algorithm import Algorithm
from flowrl.samplers.flow import FlowSampler
from flowrl.samplers.windows import EveryStep

TOLERATED_SHARE = 0.01
"""Share of the draws that may be noise."""


def check_time_grid(algorithm: Algorithm, policy: Any) -> list[str]:
    """A sentence for every trained step whose noise is negligible, and for times whose gradient is noise, with what to
    change; empty where all is well.

    Raises:
        UserError: for a trained step without any noise, which has no likelihood, or a grid with nothing to train.
    """
    estimator = algorithm.estimator
    sampler = getattr(algorithm.sampler, "sampler", algorithm.sampler)  # that of records has the grid
    if not isinstance(sampler, FlowSampler):
        return []
    try:
        times = sampler.grid(policy).cpu()
        if isinstance(estimator, Transitions):
            return _steps(sampler, times, estimator.weight_vanishes)
        if isinstance(estimator, Matching | ContrastedMatching):
            return _times(estimator, times)
    except ValueError as error:  # a window that leaves no step, times that leave none
        raise UserError(f"algorithm: {error}") from error
    return []


def _steps(sampler: FlowSampler, times: Tensor, vanishes: bool) -> list[str]:
    trained = sampler.recordable(times)
    faint = negligible(sampler.dynamics, times)
    std = sampler.dynamics.coefficients(times[:-1], times[1:])[2]
    found = []
    for k in (k for k in trained if faint[k]):
        step = f"step {k + 1} of {sampler.steps} (t {times[k]:.4f} -> {times[k + 1]:.4f})"
        if std[k] == 0:
            raise UserError(f"{step} is deterministic, so it has no likelihood to train on; {_remedy(sampler, faint)}")
        if vanishes:
            continue
        found.append(
            f"{step} is trained although its noise is negligible, standard deviation {std[k]:.4f}: it explores nothing "
            f"and its log-ratio drowns those of the other steps; {_remedy(sampler, faint)}"
        )
    return found


def _remedy(sampler: FlowSampler, faint: Tensor) -> str:
    if not isinstance(sampler.window, EveryStep):
        return "move algorithm.sampler.window to earlier steps, or raise the noise of algorithm.sampler.dynamics"
    last = int((~faint).nonzero()[-1]) if not bool(faint.all()) else -1
    if last < 0:
        return "raise the noise of algorithm.sampler.dynamics"
    return f"set algorithm.sampler.window.drop to {sampler.steps - 1 - last}, or to null, which chooses by the noise"


def _times(estimator: Matching | ContrastedMatching, times: Tensor) -> list[str]:
    share = estimator.times.share_below(NOISE_TIME, times)
    if estimator.weight_vanishes or share <= TOLERATED_SHARE:
        return []
    key, lowest = "low", ""
    if isinstance(estimator.times, GridTimes):
        key, lowest = "least", f", down to {float(estimator.times.usable(times).min()):.4f}"
    return [
        f"{share:.0%} of the times that the estimator draws lie below t = {NOISE_TIME}{lowest}, where the error tells"
        f" nothing of the policy and has the largest gradient; set algorithm.estimator.times.{key}={NOISE_TIME}, or a"
        " weight that vanishes with t (algorithm.estimator.weight=t)"
    ]
