"""When a statistic, a reward or the KL has gone where honest learning does not go, and the sentence that says so."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowrl.config.schema import MonitorConfig
from flowrl.monitor.statistics import STATISTICS, Statistic
from flowrl.types import Scores

State = dict[str, Any]
"""State between calls, as JSON knows it: it is saved in checkpoints and continues exactly."""

SIGMAS = 3.0
"""Standard errors that are put down to sampling."""
ENOUGH = 8
"""Samples below which a difference of two evaluations says nothing."""
WHERE = {"heldout": "held-out samples", "train": "training samples"}


@dataclass(frozen=True)
class Check:
    """What was found about one thing."""

    name: str
    """``heldout/edges``, ``train/latent``, ``rewards/strict``, ``kl``."""
    value: float
    z: float
    raised: bool
    base: float | None = None
    """The value of the base model."""

    def metrics(self) -> dict[str, float]:
        """Lines of metrics.jsonl."""
        return {
            f"monitor/{self.name}": self.value,
            f"monitor/{self.name}/z": self.z,
            f"alarm/{self.name}": float(self.raised),
        }


def check_statistics(
    where: str, measured: Mapping[str, Tensor], group: Tensor, state: State, options: MonitorConfig
) -> list[Check]:
    """Compare statistics [N] with the first ones ever seen at ``where``, those of the base model.

    ``z = (|m - m0| - 3 e) / s``, with the sign of ``m - m0`` and 0 if sampling explains it all: ``m`` median, ``s``
    robust standard deviation of the base model's samples (1.4826 times the median absolute deviation, but at least a
    tenth of the median and the statistic's floor), ``e`` standard error of the difference of the two medians. Samples
    of one prompt are not independent, so ``e`` counts prompts (``group`` [N]), not samples.
    """
    bases: dict[str, list[float]] = state.setdefault(where, {})
    checks = []
    for name, values in measured.items():
        statistic, known = STATISTICS[name], ~values.isnan()
        if not bool(known.any()):
            continue
        now = summary(values[known], group[known], statistic)
        base = bases.setdefault(name, now)
        z = shift(now, base, statistic)
        side = statistic.high if z > 0 else statistic.low
        checks.append(Check(f"{where}/{name}", now[0], z, abs(z) > options.limit and side is not None, base[0]))
    return checks


def summary(values: Tensor, group: Tensor, statistic: Statistic) -> list[float]:
    """``[centre, spread, error]``: median, robust standard deviation and the median's standard error; of a share, its
    mean, 0 and the mean's standard error."""
    prompts = max(len(group.unique()), 1)
    values = values.double()
    if statistic.share:
        mean = float(values.mean())
        return [mean, 0.0, math.sqrt(mean * (1 - mean) / prompts)]
    centre = values.quantile(0.5)
    spread = 1.4826 * float((values - centre).abs().quantile(0.5))
    return [float(centre), spread, math.sqrt(math.pi / 2) * spread / math.sqrt(prompts)]


def shift(now: Sequence[float], base: Sequence[float], statistic: Statistic) -> float:
    """Robust standard deviations of the base model between two summaries, beyond what sampling explains."""
    scale = max(base[1], statistic.floor, 0.0 if statistic.share else 0.1 * abs(base[0]))
    moved = now[0] - base[0]
    beyond = max(0.0, abs(moved) - SIGMAS * math.hypot(now[2], base[2]))
    return math.copysign(beyond / scale, moved)


def check_rewards(scores: Scores, state: State, options: MonitorConfig) -> list[Check]:
    """Rewards that are only watched (weight 0) and fall while the trained one rises, over ``monitor.evaluations``.

    ``scores`` are of held-out samples: the same prompts and seeds every time, so differences are paired by sample.
    ``z`` is the mean difference over its standard error; an alarm needs it below -3, and above 2 for the total. It
    lasts until the reward is back where it fell from.
    """
    history: list[dict[str, list[float]]] = state.setdefault("scores", [])
    fallen: dict[str, list[float]] = state.setdefault("fallen", {})
    rewards = dict(zip(scores.names, scores.rewards.T, strict=True))
    watched = [name for name, weight in zip(scores.names, scores.weights.tolist(), strict=True) if weight == 0]
    if not watched:
        return []
    now = {"": scores.total.tolist(), **{name: rewards[name].tolist() for name in watched}}
    history.append(now)
    del history[: -options.evaluations - 1]
    if len(history) <= options.evaluations:
        return []
    _, rises = paired(history[0][""], now[""])
    checks = []
    for name in watched:
        before = fallen.get(name, history[0][name])
        change, z = paired(before, now[name])
        raised = z < -SIGMAS and (name in fallen or rises > 2)
        if raised:
            fallen[name] = before
        else:
            fallen.pop(name, None)
        checks.append(Check(f"rewards/{name}", change, z, raised))
    return checks


def paired(before: Sequence[float], after: Sequence[float]) -> tuple[float, float]:
    """``(mean difference, its z)``, over the samples that both could score; ``(0, 0)`` for fewer than ``ENOUGH``."""
    difference = torch.tensor(after, dtype=torch.float64) - torch.tensor(before, dtype=torch.float64)
    difference = difference[~difference.isnan()]
    if len(difference) < ENOUGH:
        return 0.0, 0.0
    mean, error = float(difference.mean()), float(difference.std()) / math.sqrt(len(difference))
    if error == 0:
        return mean, math.copysign(1e6, mean) if mean else 0.0
    return mean, mean / error


def sentence(check: Check, options: MonitorConfig) -> str:
    """What a raised check means, with its numbers."""
    where, _, name = check.name.partition("/")
    if where == "kl":
        return f"the KL to the reference is {check.value:.3g}, beyond monitor.kl={options.kl:g}"
    if where == "rewards":
        return (
            f"the watched reward {name} fell by {-check.value:.3g} ({-check.z:.1f} standard errors) while the trained "
            "reward rose: the trained reward may be exploited"
        )
    statistic = STATISTICS[name]
    base = "that of the base model" if check.base is None else f"the base model's {check.base:.3g}"
    way, meaning = ("above", statistic.high) if check.z > 0 else ("below", statistic.low)
    return (
        f"{statistic.words} of {WHERE[where]} is {check.value:.3g}, {way} {base} by {abs(check.z):.1f} robust standard "
        f"deviations more than sampling explains (limit {options.limit:g}): typical of {meaning}"
    )
