"""What is reported about an update: the same quantities for every algorithm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flowrl.devices import put, to_host
from flowrl.math.groups import flat_groups, group_index
from flowrl.parts.algorithm import Algorithm
from flowrl.types import (
    REPLAY,
    Batch,
    Episodes,
    Likelihood,
    OneProcess,
    Ranks,
    Rollout,
    Scores,
    Share,
    TokenTrace,
    exchange,
)

DEVIATION = "ratio/first_max_deviation"
"""Largest ``|ratio - 1|`` before an iteration's first update, where new and old policy are the same."""
MISMATCH, MISMATCH_MAX = "sampler/mean_log_ratio", "sampler/max_log_ratio"
"""Mean and largest ``|log p(trainer) - log p(sampler)|`` of a token before an iteration's first update."""
MISMATCH_K1, MISMATCH_K3 = "sampler/k1", "sampler/k3"
"""Of the same tokens, with ``d = log p(trainer) - log p(sampler)``: the means of ``-d`` and of ``exp(d) - 1 - d``. Both
estimate the KL of the sampler to the trainer (J. Schulman, Approximating KL Divergence, 2020)."""
VERSION = "sampling/version"
"""`Rollout.version` of the samples that were learned from."""
OUTSIDE = "ratio/first_outside_clip"
"""Share of the ratios that are clipped that lie outside the clip before an iteration's first update."""
NEARLY_ALL = "ratio/first_deviation_p99"
"""99th percentile of their ``|ratio - 1|``: the clip that would leave out one of a hundred."""

WEIGHT, SHARE = "combination/weight_", "combination/share_"
"""Of a channel's gradient, followed by its number: what it was multiplied by, and that times its length, as a share."""
BINS = 24
"""Of a `histogram`."""


class StepMetrics:
    """Weighted sums over the micro-batches of an iteration, turned into means over all processes at the end.

    What a micro-batch adds stays on the device. It is read in one copy when the optimiser batch is closed, so the host
    waits once for each.
    """

    def __init__(self, ranks: Ranks | None = None) -> None:
        self._ranks: Ranks = ranks or OneProcess()
        self._sums: dict[str, list[Tensor]] = {}
        self._counts: dict[str, list[Tensor]] = {}
        self._losses: list[float] = []
        self._norms: list[float] = []
        self._deviations: list[Tensor] = []
        self._mismatches: list[Tensor] = []
        self._combined: list[Tensor] = []
        self._first: list[Tensor] = []
        self._outside: list[Tensor] = []
        self._open: list[tuple[list[Tensor], Tensor]] = []
        """Of the open optimiser batch, on the device: numbers and the list that each will be put into."""
        self._open_losses: list[Tensor] = []

    def add_block(self, algorithm: Algorithm, live: Likelihood, batch: Batch, loss: Tensor) -> None:
        """Note one micro-batch. Nothing is moved off the device before the batch is closed."""
        with torch.no_grad():
            counted = batch.weight > 0
            log_ratio = (live.logp - batch.old.logp).double()
            ratio = log_ratio.exp()
            present = _present(batch, counted)
            if not self._losses:  # the iteration's first optimiser batch: nothing has been updated yet
                self._open.append((self._deviations, _largest(ratio - 1, present)))
                self._note_first(algorithm, live, batch, present)
                sampled = batch.probe.sampler_logp
                if sampled is not None:
                    gap = live.logp - put(sampled, live.logp)
                    self._open.append((self._mismatches, torch.where(present, gap, torch.nan)))
            notes = {"ratio/mean": ratio, "ratio/log_square": log_ratio**2}
            notes |= {term.name: term(live, batch).double() for term in algorithm.regularizers if term.weight > 0}
            notes |= {name: value.double() for name, value in live.extra.items() if name.startswith("norm_growth/")}
            for name, value in notes.items():
                self._note(name, value, counted)
            if "entropy" in live.extra:
                entropy = live.extra["entropy"].double()
                self._note("entropy", entropy, counted & ~entropy.isnan())
            for name, value in algorithm.objective.measures(live, batch).items():
                self._note(name, value.double(), ~value.isnan())
            if present is not counted:
                self._note("replay/ratio", ratio, counted & ~present)
            self._note_clip(algorithm, live, batch, counted)
            self._open_losses.append(loss.detach().double())

    def _note_clip(self, algorithm: Algorithm, live: Likelihood, batch: Batch, counted: Tensor) -> None:
        """The share of what the clip acts on, decisions or samples, whose gradient it stops."""
        bounds = algorithm.objective.bounds(live, batch)
        if bounds is None:
            return
        low, high = bounds
        ratio, advantage = algorithm.objective.log_ratio(live, batch).double().exp(), batch.advantage
        advantage, counted = (advantage[:, 0], counted.any(dim=1)) if ratio.dim() == 1 else (advantage, counted)
        beyond = torch.where(advantage > 0, ratio > 1 + high, ratio < 1 - low)
        self._note("clip_fraction", (beyond & (advantage != 0)).double(), counted)

    def _note(self, name: str, value: Tensor, counted: Tensor) -> None:
        total = torch.where(counted, value, torch.zeros_like(value)).sum()
        self._open.append((self._sums.setdefault(name, []), total))
        self._open.append((self._counts.setdefault(name, []), counted.sum()))

    def _note_first(self, algorithm: Algorithm, live: Likelihood, batch: Batch, counted: Tensor) -> None:
        """How far what is clipped lies from 1 before any update, and which of it the clip already cuts; NaN for what
        does not count, because choosing the rest on the device would wait for how many they are."""
        bounds = algorithm.objective.bounds(live, batch)
        if bounds is None:
            return
        acted = algorithm.objective.log_ratio(live, batch).double()
        ratio = torch.where(counted.any(dim=1) if acted.dim() == 1 else counted, acted.exp(), torch.nan)
        outside = (ratio < 1 - bounds[0]) | (ratio > 1 + bounds[1])
        self._open.append((self._first, (ratio - 1).abs()))
        self._open.append((self._outside, torch.where(ratio.isnan(), torch.nan, outside.double())))

    def close_batch(self, norms: Sequence[Tensor] = ()) -> tuple[float, list[float]]:
        """End an optimiser batch: its loss, over all processes, and the gradient's ``norms`` as numbers, read
        together."""
        losses, behind = len(self._open_losses), len(self._open_losses) + len(norms)
        found = to_host([*self._open_losses, *norms, *(value for _, value in self._open)])
        loss = float(torch.stack(found[:losses]).sum()) if losses else 0.0
        if self._ranks.size > 1:
            loss = float(self._ranks.total(torch.tensor(loss, dtype=torch.float64)))
        for (where, _), value in zip(self._open, found[behind:], strict=True):
            where.append(value)
        self._losses.append(loss)
        self._open, self._open_losses = [], []
        return loss, [float(norm) for norm in found[losses:behind]]

    def add_gradient_norm(self, norm: float) -> None:
        """Norm of an optimiser batch's gradient before clipping."""
        self._norms.append(norm)

    def add_combination(self, weights: Tensor, gram: Tensor) -> None:
        """How the gradients of C channels became one, from their weights [C] and inner products [C, C]."""
        lengths = weights.abs() * gram.diagonal().clamp(min=0).sqrt()
        self._combined.append(torch.stack([weights, lengths / lengths.sum().clamp(min=1e-300)]))

    def add_deviation(self, value: float) -> None:
        """``max |ratio - 1|`` before the first update, where it had to be measured apart."""
        self._deviations.append(torch.tensor(value))

    def metrics(self) -> dict[str, float]:
        """Means over decisions (ratios, KL, entropy), over what is clipped (decisions, or samples where they have one
        ratio) and over optimiser steps (loss, gradient norm)."""
        means = self._means()
        return {
            "loss": sum(self._losses) / max(len(self._losses), 1),
            "grad_norm": sum(self._norms) / max(len(self._norms), 1),
            DEVIATION: self._largest_deviation(),
            **self._rounding(),
            "clip_fraction": 0.0,
            **means,
            **self._mismatch(),
            **self._combination(),
        }

    def _combination(self) -> dict[str, float]:
        """Of every channel, its weight and its share of the combined gradient (weight times length), where there are
        several."""
        if not self._combined or self._combined[0].shape[1] < 2:
            return {}
        weights, shares = torch.stack(self._combined).mean(dim=0).tolist()
        named = {f"{WEIGHT}{c}": weight for c, weight in enumerate(weights)}
        return named | {f"{SHARE}{c}": share for c, share in enumerate(shares)}

    def _largest_deviation(self) -> float:
        """Of all processes; NaN if one is."""
        every = exchange(self._ranks, [float(deviation) for deviation in self._deviations])
        return float(torch.tensor([0.0, *(value for part in every for value in part)], dtype=torch.float64).max())

    def _means(self) -> dict[str, float]:
        """Over what every quantity was noted of."""
        counts = {name: sum(float(count) for count in each) for name, each in self._counts.items()}
        sums = {name: float(torch.stack(values).sum()) for name, values in self._sums.items()}
        said = exchange(self._ranks, [sums, counts])
        names = dict.fromkeys(name for found, _ in said for name in found)
        total, count = ({name: sum(part[i].get(name, 0.0) for part in said) for name in names} for i in (0, 1))
        return {name: value / max(count[name], 1.0) for name, value in total.items()}

    def _gathered(self, parts: Sequence[Tensor]) -> Tensor:
        """[K] what was noted on all processes, in their order."""
        found = _counted(parts)
        return found if self._ranks.size == 1 else self._ranks.gather(found.double())

    def _mismatch(self) -> dict[str, float]:
        """How far the trainer is from the sampler, over the tokens of the first optimiser batch; nothing where the
        sampler does not tell its own."""
        gap = self._gathered(self._mismatches)
        if not len(gap):
            return {}
        far, wide = gap.abs(), gap.double()
        return {
            MISMATCH: float(far.mean()),
            MISMATCH_MAX: float(far.max()),
            MISMATCH_K1: float(-wide.mean()),
            MISMATCH_K3: float((wide.expm1() - wide).mean()),
        }

    def _rounding(self) -> dict[str, float]:
        """What the clip cuts before any update; nothing where there is no clip."""
        far, outside = self._gathered(self._first).sort().values, self._gathered(self._outside)
        if not len(far):
            return {}
        return {OUTSIDE: float(outside.mean()), NEARLY_ALL: float(far[int(0.99 * (len(far) - 1))])}


def _counted(parts: Sequence[Tensor]) -> Tensor:
    """All numbers of these parts but NaN, which stands for what does not count."""
    found = torch.cat([part.flatten() for part in parts]) if parts else torch.zeros(0)
    return found[~found.isnan()]


def _present(batch: Batch, counted: Tensor) -> Tensor:
    """[N, D] bool: what counts of samples that this iteration made; of older ones the ratio is not 1 before the first
    update. ``counted`` itself where there are none."""
    old = None if batch.source is None else batch.source == REPLAY
    if old is None or not bool(old.any()):
        return counted
    return counted & put(~old, counted.device)[:, None]


def _largest(value: Tensor, where: Tensor) -> Tensor:
    return torch.where(where, value.abs(), torch.zeros_like(value)).max()


def describe_completions(rollout: Rollout, share: Share | None = None) -> dict[str, float]:
    """Lengths of completions in tokens, through the end, of all processes; nothing for other families."""
    trace = rollout.trace
    if not isinstance(trace, TokenTrace):
        return {}
    length = trace.mask.sum(dim=1)
    length = (length if share is None else share.gather(length)).double()
    return {
        "completion/length": float(length.mean()),
        "completion/full_length_fraction": float((length == trace.mask.shape[1]).double().mean()),
    }


def describe_episodes(rollout: Rollout, share: Share) -> dict[str, float]:
    """Of episodes of all processes: decisions, the share that a time limit cut, success where the environment tells it,
    and the entropy in nats of the modes that successful episodes (or all, where it tells none) took, as D3IL's
    behaviour entropy (arXiv:2402.14606); nothing for other rollouts."""
    if not isinstance(rollout.trace, Episodes):
        return {}
    _, decisions, cut, success, mode = share.gather(rollout.final).double().unbind(dim=1)
    found = {"episode/decisions": float(decisions.mean()), "episode/truncated": float(cut.mean())}
    told = ~success.isnan()
    if bool(told.any()):
        found["episode/success"] = float(success[told].mean())
    taken = mode[(mode >= 0) & (~told | (success > 0))].long()
    if bool((mode >= 0).any()):
        shares = taken.bincount().double() / max(len(taken), 1)
        found["episode/mode_entropy"] = float(torch.special.entr(shares).sum())
        found["episode/modes"] = float((shares > 0).sum())
    return found


def describe_sharing(rollout: Rollout, share: Share, forwards: int) -> dict[str, float]:
    """Network rows of a rollout whose samples share steps, and how many fewer they are than without, where a sample by
    itself takes ``forwards``; nothing for other rollouts."""
    if rollout.nodes is None:
        return {}
    made = float(share.ranks.total(torch.tensor(rollout.forwards)))
    alone = float(share.ranks.total(torch.tensor(forwards * len(rollout.group))))
    return {"sampling/forwards": made, "sampling/forwards_saved": alone - made}


def per_sample(advantage: Tensor) -> Tensor:
    """[N] one number for a person to read: the mean over the events and channels of a sample, where it has any."""
    return advantage if advantage.dim() == 1 else advantage.flatten(1).mean(dim=1)


def histogram(values: Tensor) -> dict[str, Any]:
    """How values are spread: ``counts`` of `BINS` bins of equal width between ``low`` and ``high``. What is not finite
    is left out."""
    known = values[values.isfinite()].double().flatten()
    if not len(known):
        return {"low": 0.0, "high": 0.0, "counts": []}
    low, high = float(known.min()), float(known.max())
    if low == high:  # torch would widen the range by itself
        return {"low": low, "high": high, "counts": [len(known)]}
    place = ((known - low) / (high - low) * BINS).long().clamp(max=BINS - 1)
    return {"low": low, "high": high, "counts": torch.bincount(place, minlength=BINS).tolist()}


def describe_scores(scores: Scores, advantage: Tensor) -> dict[str, float]:
    """Reward and advantage statistics of an iteration. NaN rewards are left out of their own statistics."""
    out: dict[str, float] = {}
    for k, name in enumerate(scores.names):
        known = scores.rewards[:, k][~scores.rewards[:, k].isnan()]
        out[f"reward/{name}/mean"] = float(known.mean()) if len(known) else float("nan")
        out[f"reward/{name}/std"] = float(known.std(correction=0)) if len(known) else float("nan")
    total = scores.total[scores.valid]
    flat = flat_groups(scores.total, scores.group, scores.valid)
    _, groups = group_index(scores.group)
    first = torch.cat([torch.tensor([True]), scores.group[1:] != scores.group[:-1]])
    out |= {
        "reward/mean": float(total.mean()) if len(total) else float("nan"),
        "reward/std": float(total.std(correction=0)) if len(total) else float("nan"),
        "reward/invalid_fraction": float((~scores.valid).double().mean()),
        "zero_std_fraction": float((flat & first).sum()) / max(groups, 1),
        "advantage/mean": float(advantage.mean()),
        "advantage/abs_max": float(advantage.abs().max()),
    }
    return out
