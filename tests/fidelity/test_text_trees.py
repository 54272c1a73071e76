"""Trees of completions: d-TreeRPO."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from flowrl import composition
from flowrl.samplers.masked_tree import MaskedTreeSampler
from tests.contract.toys import GROUP, PROMPTS
from tests.fidelity import cell, release
from tests.fidelity.bench import alike, cosine
from tests.fidelity.text import TextTrial, clipped, k3, text_trial

release("d_treerpo", "THU-BPM/d-TreeRPO 3eb6f21")


def edges(t: TextTrial) -> list[tuple[int, int, float]]:
    """``(a leaf below, level, advantage)`` of every edge that fixed tokens: its value less its siblings' mean."""
    found = []
    for start in range(0, GROUP * len(PROMPTS), 16):
        reward = t.it.scores.total[start : start + 16].view(4, 4)
        top = reward.mean(dim=1)
        for k in range(4):
            found.append((start + 4 * k, 0, float(top[k] - (top.sum() - top[k]) / 3)))
            for leaf in range(4):
                rest = (reward[k].sum() - reward[k, leaf]) / 3
                found.append((start + 4 * k + leaf, 1, float(reward[k, leaf] - rest)))
    return [edge for edge in found if bool(t.mask[edge[0], edge[1]].any())]


def released_loss(t: TextTrial, low: float, kl: float) -> Tensor:
    """The mean over edges of the mean over their tokens, each edge once."""
    terms = []
    for leaf, level, advantage in edges(t):
        asked = t.mask[leaf, level]
        live, old, other = (values[leaf, level][asked] for values in (t.live, t.old, t.reference))
        terms.append((clipped(live - old, torch.tensor(advantage), low, low) + kl * k3(live, other)).mean())
    return torch.stack(terms).mean()


@cell(
    "d_treerpo",
    "loss, gradient",
    "equal",
    "leave-one-out among siblings, tokens of an edge scored at its start, clip and k3, mean over tokens and then edges",
)
def test_d_treerpo_gradient() -> None:
    t = text_trial("d_treerpo", clip=0.1, kl=0.04)
    assert alike(t.gradient, t.gradient_of(released_loss(t, 0.1, 0.04)))
    assert 0.02 < t.metrics["clip_fraction"] < 0.95


@cell(
    "d_treerpo",
    "loss",
    "option",
    "`loss_weight: uniform`: every level counts the same, the unbiased weights; the release pools edges",
)
def test_d_treerpo_levels() -> None:
    pooled, even = text_trial("d_treerpo", kl=0.0), text_trial("d_treerpo", kl=0.0, loss_weight="uniform")
    assert torch.equal(pooled.it.rollout.final, even.it.rollout.final)
    assert 0.5 < cosine(pooled.gradient, even.gradient) < 0.999


@cell(
    "d_treerpo",
    "defaults",
    "equal",
    "two levels of four branches, 256 tokens, 128 steps, blocks of 32, clip .4, KL .01 to the base, prompts unmasked",
)
def test_d_treerpo_defaults() -> None:
    made = composition.build("d_treerpo")
    sampler = made.sampler
    assert isinstance(sampler, MaskedTreeSampler) and sampler.tree == 16
    assert (sampler.length, sampler.steps, sampler.block, sampler.order) == (256, 128, 32, "low_confidence")
    assert made.objective.clip_range == (0.4, 0.4) and made.estimator.corrupt == 0
    assert [(term.weight, term.to) for term in made.regularizers] == [(0.01, "reference")]


@cell(
    "d_treerpo",
    "loss",
    "deviation",
    "no self-distillation",
    reason="its targets are histograms of the siblings' tokens, a term across rows; its weight is at most .003",
)
def test_d_treerpo_without_distillation() -> None:
    made = composition.build("d_treerpo")
    assert [type(term).__name__ for term in made.regularizers] == ["KL"]
    weight = 3e-3 * (torch.e ** (2 * 0.5) - 1) / (torch.e**2 - 1)
    assert weight == pytest.approx(0.0008, abs=1e-4)  # of 3e-3 half way through the released run
