"""Presets that mix demonstrations with the policy's own samples, against their formulas written out here."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from flowrl import composition
from flowrl.parts.selections import BySuccess
from flowrl.types import DATA
from tests.contract.toys import GROUP, PROMPTS
from tests.fidelity import cell, release
from tests.fidelity.bench import alike
from tests.fidelity.text import TextTrial, clipped, mean_over, text_trial

release("chord", "Trinity-RFT (CHORD's own code), as the formula sheet has it")
release("luffy", "none read; the off-policy loss of several public ports of it")
release("hpt", "TsinghuaC3I/Unify-Post-Training, as the formula sheet has it")
release("dypo", "Tocci-Zhu/DYPO 061e581 (its test of the pair loss)")
release("psft", "zwhong714/PSFT, as the formula sheet has it")
release("otr, egspo, rpd", "none; the papers' abstracts and notes on them")


def data(t: TextTrial) -> Tensor:
    """[N] bool: demonstrations."""
    return t.it.rollout.source == DATA


def normalised(t: TextTrial, std: bool = True) -> Tensor:
    """[N] by the mean and the deviation of the own samples of a group."""
    out = torch.zeros(len(PROMPTS) * GROUP, dtype=torch.float64)
    for p in range(len(PROMPTS)):
        rows = slice(p * GROUP, (p + 1) * GROUP)
        own = t.rewards[p][~data(t)[rows]]
        out[rows] = (t.rewards[p] - own.mean()) / ((own.std(correction=1) + 1e-8) if std else 1)
    return out


def per_row(t: TextTrial, a: Tensor, low: float = 0.2, high: float = 0.2) -> Tensor:
    """[N, L] PPO's loss."""
    return clipped(t.live - t.old, a[:, None].expand(t.content.shape), low, high)


@cell("chord", "loss, gradient", "equal", "(1 - mu) GRPO + mu SFT with p (1 - p) at a demonstration's tokens")
def test_chord_gradient() -> None:
    for phi in (True, False):
        t = text_trial("chord", peak=0.3, valley=0.3, phi=phi)
        assert data(t).view(len(PROMPTS), GROUP).tolist() == [[True] + [False] * (GROUP - 1)] * len(PROMPTS)
        p = t.live.exp().detach()
        rl = mean_over(per_row(t, normalised(t)), t.content, 1)[~data(t)].mean()
        sft = mean_over(-(p * (1 - p) if phi else 1) * t.live, t.content, 1)[data(t)].mean()
        assert alike(t.gradient, t.gradient_of(0.7 * rl + 0.3 * sft)), phi


@cell("chord", "defaults", "equal", "mu .1 throughout (peak and valley), phi on, clip .2")
@cell("chord", "loss", "option", "a schedule of mu: `{peak: 0.9, valley: 0.05, warmup: 20, decay: 200, phi: false}`")
def test_chord_settings() -> None:
    made = composition.build("chord")
    assert (made.aggregation.share, made.coefficients, made.objective.clip_range) == (0.1, (), (0.2, 0.2))
    mu = composition.build({"use": "chord", "peak": 0.9, "valley": 0.05, "warmup": 20, "decay": 200}).coefficients[0]
    assert [round(mu(0.0, {}, i), 6) for i in (0, 10, 20, 120, 220, 999)] == [0, 0.45, 0.9, 0.475, 0.05, 0.05]


@cell("luffy", "loss, gradient", "equal", "-A p / (p + .1) of demonstrations, -A ratio of own samples, in one group")
def test_luffy_gradient() -> None:
    t = text_trial("luffy")
    a = (t.rewards - t.rewards.mean(dim=1, keepdim=True)).flatten()[:, None]
    p = t.live.exp()
    each = torch.where(data(t)[:, None], -a * p / (p + 0.1), -a * (t.live - t.old).exp())
    total = torch.where(t.content, each, 0.0).sum(dim=1) / t.algorithm.sampler.length
    assert alike(t.gradient, t.gradient_of(total.mean()))


@cell(
    "luffy",
    "defaults",
    "deviation",
    "gamma .1, no clip, no standard deviation, fixed length, one demonstration in the group's mean",
    reason="the script's entropy bonus of .001 is left out; its settings are from ports and notes",
)
def test_luffy_settings() -> None:
    made = composition.build("luffy")
    assert made.objective.demonstrations.gamma == 0.1 and made.regularizers == ()
    assert made.objective.clip_range == (1.0, 1e9) and made.advantage.advantage.scale == "none"


@cell("hpt", "loss, gradient", "equal", "a prompt's own samples by GRPO, or its demonstration by SFT, one token mean")
def test_hpt_gradient() -> None:
    t = text_trial("hpt", gate=3, weight=0.3)
    own = ~data(t).view(len(PROMPTS), GROUP)
    right = ((t.rewards > 0.5) & own).sum(dim=1)
    assert sorted(int(n) > 3 for n in right) == [False, True]
    keep = torch.where((right > 3)[:, None], own, ~own).flatten()
    each = torch.where(data(t)[:, None], -0.3 * t.live, per_row(t, normalised(t)))
    assert alike(t.gradient, t.gradient_of(mean_over(each, t.content & keep[:, None])))


@cell("hpt", "defaults", "equal", "gate 0, SFT at weight 1, clip .2, no KL")
@cell(
    "hpt",
    "loss",
    "deviation",
    "two kinds of prompts",
    reason="the release has a second gate, for policy gradients on demonstrations; that is `luffy`",
)
def test_hpt_settings() -> None:
    made = composition.build("hpt")
    assert made.selection == BySuccess(0, 0.5) and made.objective.demonstrations.weight == 1.0


@cell("dypo", "loss, gradient", "equal", "alpha GRPO + (1 - alpha) -ln sigmoid(beta gap) over right and wrong pairs")
def test_dypo_gradient() -> None:
    t = text_trial("dypo", alpha=0.4, beta=0.7, threshold=0.3)
    own = ~data(t).view(len(PROMPTS), GROUP)
    s = torch.where(t.content, t.live - t.reference, 0.0).sum(dim=1).view(len(PROMPTS), GROUP)
    a = normalised(t).view(len(PROMPTS), GROUP)
    right = ((t.rewards > 0.3) & own).sum(dim=1)
    mixed = (right > 0) & (right < own.sum(dim=1))
    assert bool(mixed.any())
    rl = mean_over(per_row(t, normalised(t)), t.content, 1).view(len(PROMPTS), GROUP)
    losses, weights = [], []
    for p in mixed.nonzero()[:, 0].tolist():
        gaps = s[p][own[p] & (a[p] > 0), None] - s[p][own[p] & (a[p] < 0)]
        losses.append(0.4 * rl[p][own[p]].mean() - 0.6 * logsigmoid(0.7 * gaps).mean())
        weights.append(int(own[p].sum()))
    for p in (right == 0).nonzero()[:, 0].tolist():
        losses.append(mean_over(-t.live, t.content, 1).view(len(PROMPTS), GROUP)[p][~own[p]].mean())
        weights.append(1)
    total = sum(w * loss for w, loss in zip(weights, losses, strict=True)) / sum(weights)
    assert alike(t.gradient, t.gradient_of(total))


@cell(
    "dypo",
    "defaults",
    "deviation",
    "alpha .5, beta 1, all teachers' answers, log-ratios to the reference",
    reason="constants are from notes; the release takes the answer of one of the teachers at random",
)
def test_dypo_settings() -> None:
    made = composition.build("dypo")
    part = made.objective.objective
    assert (part.alpha, part.beta, part.reference, made.selection.drop_solved) == (0.5, 1.0, "reference", True)


@cell("psft", "loss, gradient", "equal", "PPO's clip of .2 and .28 at advantage 1, mean over all tokens")
@cell("psft", "defaults", "equal", "clip .2 and .28, second clip 10, token mean, no KL")
def test_psft_gradient() -> None:
    t = text_trial("psft", off=1.0)
    each = per_row(t, torch.ones(len(t.content), dtype=torch.float64), 0.2, 0.28)
    assert alike(t.gradient, t.gradient_of(mean_over(each, t.content)))
    made = composition.build("psft").objective
    assert (made.low, made.high, made.dual) == (0.2, 0.28, 10.0) and 0 < t.metrics["clip_fraction"] < 1


@cell("otr", "loss, gradient", "equal", "-(1 - wrong) p log p of a demonstration's token: the estimator's expectation")
@cell("otr", "defaults", "deviation", "no candidates are drawn, wrong ones are worth 0", reason="not confirmed by code")
def test_otr_gradient() -> None:
    t = text_trial("otr", wrong=-0.1)
    each = -1.1 * t.live.exp().detach() * t.live
    assert alike(t.gradient, t.gradient_of(mean_over(each, t.content)))
    assert composition.build("otr").objective.weight == 1.0


@cell("egspo", "loss, gradient", "equal", "PPO with the gradient of low-entropy tokens attenuated")
@cell("egspo", "defaults", "deviation", "a fifth of the tokens in full, the others half", reason="constants not seen")
def test_egspo_gradient() -> None:
    """The difference to PPO's gradient is that of the attenuated tokens."""
    whole, none, half = (text_trial("egspo", attenuation=rest) for rest in (1.0, 0.0, 0.5))
    assert alike(2 * half.gradient, whole.gradient + none.gradient)
    assert alike(whole.gradient, text_trial("ppo").gradient) and not alike(none.gradient, whole.gradient)
    mask = composition.build("egspo").loss_masks[0]
    assert (mask.share, mask.rest) == (0.2, 0.5)


@cell("rpd", "loss, gradient", "equal", "PPO plus KL(teacher | policy) over the vocabulary at every token")
@cell(
    "rpd",
    "defaults",
    "deviation",
    "weight 1, a divergence of distributions over tokens",
    reason="the paper imitates a robot's action vectors by their squared error; its weight was not seen",
)
def test_rpd_gradient() -> None:
    """The difference to PPO's gradient is that of the cross entropy with the teacher's distribution."""
    t, plain = text_trial("rpd", weight=0.5), text_trial("rpd", weight=0.0)
    assert alike(plain.gradient, text_trial("ppo").gradient)
    condition, tokens = t.it.rollout.condition, t.it.rollout.trace.tokens
    with t.policy.using("teacher"):
        taught = t.policy._rows(condition, tokens)[0].double().softmax(dim=-1).detach()
    live = t.policy._rows(condition, tokens)[0].double().log_softmax(dim=-1)
    entropy = mean_over(-(taught * live).sum(dim=-1), t.content)
    assert alike(t.gradient - plain.gradient, t.gradient_of(0.5 * entropy))
    assert composition.build("rpd").regularizers[-1].weight == 1.0
