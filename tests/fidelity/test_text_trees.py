"""Trees of completions: d-TreeRPO, BRPO."""

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
release("brpo", "sail-sg/AnytimeReasoner, as copied in wjurayj/AnytimeReasoner 068a38b")


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


def budget_advantages(reward: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """Of thoughts [B, G, S] and answers [B, G, S, A], as compute_cot_advantage and compute_summary_advantage."""
    groups, thoughts, count, answers = reward.shape
    r, cot = reward.mean(dim=3), torch.zeros(groups, thoughts, count).double()
    for b in range(groups):
        for g in range(thoughts):
            for s in range(count):
                earned = (r[b, g, s:] * p[s:]).sum()
                average = (r[b, :, s:] * p[s:]).sum(dim=1).mean()
                discounts = 2.0 ** torch.arange(s)
                last = (r[b, g, :s] * discounts).sum() / discounts.sum() * p[s:].sum() if s else torch.zeros(())
                cot[b, g, s] = earned - (s * last + (count - s) * average) / count
    level = reward.mean(dim=1, keepdim=True) if answers == 1 else r[..., None]
    return cot, reward - level


@cell(
    "brpo",
    "loss, gradient",
    "equal",
    "returns of longer parts less the mixed baseline for a thought's tokens, once each; answers less the mean of their "
    "part; the text between them untrained; clip, fixed length",
)
def test_brpo_gradient() -> None:
    t = text_trial("brpo", clip=0.1)
    shape = (len(PROMPTS), 4, 2, 2)  # groups, thoughts, budgets, answers
    cot, answer = budget_advantages(t.it.scores.total.view(shape), torch.tensor([0.5, 0.5]).double())
    advantage, trained = torch.zeros(*shape, t.live.shape[1]).double(), torch.zeros(*shape, t.live.shape[1]).bool()
    tokens = t.it.rollout.trace.tokens.view(*shape, -1)
    for index in torch.cartesian_prod(*(torch.arange(n) for n in shape)).tolist():
        said, (start, stop) = tokens[tuple(index)].tolist(), ((0, 1), (1, 2))[index[2]]
        thought = said[:stop]
        end = next((k + 1 for k, token in enumerate(thought) if token in (0, 2)), stop)
        if index[3] == 0:
            trained[(*index, slice(start, end))] = start < end
            advantage[(*index, slice(start, end))] = cot[tuple(index[:3])]
        if 0 not in thought[:end]:  # else the thought said the end
            last = next((k + 1 for k in range(end, min(end + 1, 3)) if said[k] == 0), min(end + 1, 3))
            trained[(*index, slice(end, last))] = True
            advantage[(*index, slice(end, last))] = answer[tuple(index)]
    trained, advantage = trained.flatten(0, 3), advantage.flatten(0, 3)
    assert torch.equal(trained, t.content)
    loss = torch.where(trained, clipped(t.live - t.old, advantage, 0.1, 0.1), 0.0).sum() / t.live.shape[1]
    assert alike(t.gradient, t.gradient_of(loss / trained.any(dim=1).sum()))
    assert 0.02 < t.metrics["clip_fraction"] < 0.98


@cell(
    "brpo",
    "defaults",
    "equal",
    "four budgets to 8000 tokens, four answers of 128 with what is put before them, no standard deviation, no KL",
)
def test_brpo_defaults() -> None:
    made = composition.build("brpo")
    sampler = made.sampler
    assert (sampler.budgets, sampler.answers, sampler.room) == ((2000, 4000, 6000, 8000), 4, 128)
    assert made.objective.clip_range == (0.2, 0.2) and not made.regularizers


@cell(
    "brpo", "defaults", "option", "`prior: linear` and `base`: budgets in proportion to their length, or the last alone"
)
def test_brpo_priors() -> None:
    linear, base = (composition.build({"use": "brpo", "prior": prior}).advantage.prior for prior in ("linear", "base"))
    assert linear == (2000.0, 4000.0, 6000.0, 8000.0) and base == (0.0, 0.0, 0.0, 1.0)


@cell(
    "brpo",
    "loss",
    "deviation",
    "samples without a token of their own stay out of the mean",
    reason="a thought that ended early adds nothing at later budgets, and one that said the model's end has no answer",
)
def test_brpo_counts_samples_with_tokens() -> None:
    t = text_trial("brpo")
    assert 0 < int((~t.content.any(dim=1)).sum()) < len(t.content)
