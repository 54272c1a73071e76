"""Presets on preferences, regressions and labels of whole completions, against their formulas written out here."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from flowrl import composition
from flowrl.parts.selections import NonzeroAdvantage, OwnSamples, ReplaceFlatGroups
from flowrl.types import RIVAL
from tests.contract.toys import GROUP, PROMPTS
from tests.fidelity import cell, release
from tests.fidelity.bench import alike
from tests.fidelity.text import TextTrial, centred, others_mean, text_trial

release("gvpo", "jszkc/GVPO, 2025, as the formula sheet has it")
release("rebel", "ZhaolinGao/REBEL, 2024, as the formula sheet has it")
release("copg, p3o, online_ipo, ipo_md, dno, nash_mp, real", "none; the papers' formulas")
release("inpo", "none by the authors; a third party's port")
release("f_dpg", "naver/disco, as the formula sheet has it")
release("nft", "NVlabs/NFT ed8e5b0, dp_actor.py")
release("pacs", "ritzz-ai/PACS, 2025, as the formula sheet has it")
release("nash_md, xpo", "TRL 1.0.0 (NashMDTrainer, XPOTrainer)")


def summed(values: Tensor, t: TextTrial) -> Tensor:
    """[P, G] sums over a completion's tokens."""
    return torch.where(t.content, values, 0.0).sum(dim=1).view(len(PROMPTS), GROUP)


def less_mean(values: Tensor) -> Tensor:
    return values - values.mean(dim=1, keepdim=True)


def gaps(values: Tensor) -> Tensor:
    """[P, G, G] differences of all pairs."""
    return values[:, :, None] - values[:, None, :]


def over_pairs(values: Tensor) -> Tensor:
    """The mean of [P, G, G] over unordered pairs of two samples, then over prompts."""
    one = torch.ones(GROUP, GROUP, dtype=torch.bool).triu(diagonal=1)
    return values[:, one].mean()


def wins(rewards: Tensor) -> Tensor:
    """[P, G, G] 1 for the higher reward, 1/2 for equal ones."""
    return (gaps(rewards).sign() + 1) / 2


@cell("gvpo", "loss, gradient", "equal", "half the squared centred residual of .1 log-ratios, over a group's n - 1")
def test_gvpo_gradient() -> None:
    t = text_trial("gvpo")
    s = 0.1 * summed(t.live - t.old, t)
    held = s - s.mean(dim=1, keepdim=True).detach()  # the release holds the mean; residuals sum to 0
    loss = ((held - less_mean(t.rewards)) ** 2).sum(dim=1) / (2 * (GROUP - 1))
    assert alike(t.gradient, t.gradient_of(loss.mean()))


@cell("gvpo", "defaults", "equal", "beta .1, log-ratios to the policy that sampled, no standard deviation, no KL")
@cell("rebel", "defaults", "equal", "eta 1, log-ratios to the policy that sampled")
@cell("copg", "defaults", "deviation", "beta .1", reason="the paper's belongs to its reward model, which is not public")
def test_regression_settings() -> None:
    gvpo, rebel, copg = (composition.build(name).objective for name in ("gvpo", "rebel", "copg"))
    assert (gvpo.beta, gvpo.target, gvpo.scale, gvpo.reference_share) == (0.1, 1.0, 0.5, 0.0)
    assert (rebel.beta, rebel.target, rebel.reference_share) == (1.0, 1.0, 0.0)
    assert (copg.beta, copg.target, copg.reference_share) == (0.1, 1.0, 1.0)
    assert all(composition.build(name).advantage.scale == "none" for name in ("gvpo", "rebel", "copg"))


@cell("rebel", "loss, gradient", "equal", "the squared residual of a pair's log-ratios and rewards, mean over pairs")
def test_rebel_gradient() -> None:
    t = text_trial("rebel", eta=0.7)
    loss = over_pairs((gaps(summed(t.live - t.old, t)) - 0.7 * gaps(t.rewards)) ** 2)
    assert alike(t.gradient, t.gradient_of(loss))


@cell("copg", "loss, gradient", "equal", "the squared difference of a pair's regularised rewards")
def test_copg_gradient() -> None:
    t = text_trial("copg")
    r = t.rewards - 0.1 * summed(t.live - t.reference, t)
    one = torch.ones(GROUP, GROUP, dtype=torch.bool).triu(diagonal=1)
    loss = (gaps(r) ** 2)[:, one].sum(dim=1) / (GROUP - 1) / GROUP  # each sample's share of the report's sum
    assert alike(t.gradient, t.gradient_of(loss.mean()))


@cell("p3o", "loss, gradient", "equal", "a pair's difference of rewards, each ratio of completions clipped by itself")
@cell(
    "p3o", "defaults", "deviation", "clip .2", reason="the paper's range was not seen; nor its KL, which is an option"
)
def test_p3o_gradient() -> None:
    t = text_trial("p3o")
    ratio, gap = summed(t.live - t.old, t).exp(), gaps(t.rewards)
    first = torch.maximum(-gap * ratio[:, :, None], -gap * ratio.clamp(0.8, 1.2)[:, :, None])
    second = torch.maximum(gap * ratio[:, None, :], gap * ratio.clamp(0.8, 1.2)[:, None, :])
    assert alike(t.gradient, t.gradient_of(over_pairs((first + second) / 2)))
    assert composition.build("p3o").objective.clip_range == (0.2, 0.2) and t.metrics["clip_fraction"] > 0


@cell("f_dpg", "loss, gradient", "equal", "-sg(-f'(p / target) - baseline) log p of a completion")
def test_f_dpg_gradient() -> None:
    for kind, slope in {
        "jensen_shannon": lambda x: (2 * x / (x + 1)).log(),
        "forward_kl": lambda x: -1 / x,
        "reverse_kl": lambda x: x.log() + 1,
        "total_variation": lambda x: (x - 1).sign() / 2,
    }.items():
        t = text_trial("f_dpg", kind=kind, beta=1.0)
        against = summed(t.old - t.reference, t).detach()
        z = (t.rewards - against).exp().mean(dim=1, keepdim=True)
        advantage = others_mean(-slope((against - t.rewards).exp() * z))
        loss = -(advantage.view(len(PROMPTS), GROUP) * summed(t.live, t)).mean()
        assert alike(t.gradient, t.gradient_of(loss)), kind


@cell(
    "f_dpg",
    "defaults",
    "deviation",
    "Z of each prompt from its group, the group's other samples as baseline, Jensen-Shannon at beta .1",
    reason="the release keeps a running Z of one target and a moving average as baseline; samples are the policy's own",
)
def test_f_dpg_settings() -> None:
    part = composition.build("f_dpg").token_advantage[0]
    assert (part.kind, part.temperature) == ("jensen_shannon", 0.1)


@cell("nft", "loss, gradient", "equal", "-ln ratio of right tokens, -ln of the implicit negative policy's, times 1 - p")
def test_nft_gradient() -> None:
    for normalise, prompts in ((1, "hard"), (2, "balanced"), (0, "even")):
        t = text_trial("nft", off=1.0, prompts=prompts)
        right = (t.rewards > 0.5).double()
        p = right.mean(dim=1, keepdim=True).clamp(0.02, 0.98).expand_as(right).flatten()[:, None]
        ratio = (t.live - t.old).clamp(max=10).exp()
        proxy = (1 - p * ratio) / (1 - p)
        held = proxy + (proxy.clamp(min=1.0) - proxy).detach()
        assert bool((proxy[t.content] < 1).any()) and bool((proxy[t.content] > 1).any())
        each = torch.where(right.flatten()[:, None] > 0, -ratio.log(), -held.log())
        weight = {1: 1 - p, 2: ((1 - p) / p).sqrt(), 0: torch.ones_like(p)}[normalise]
        total = torch.where(t.content, weight * each, 0.0).sum(dim=1) / t.algorithm.sampler.length
        mixed = (right.mean(dim=1, keepdim=True) % 1 > 0).expand_as(right).flatten()
        assert alike(t.gradient, t.gradient_of(total[mixed].mean()))


@cell("nft", "defaults", "equal", "wrong samples at full weight, prompts by 1 - p, flat groups sampled anew, no KL")
@cell(
    "nft",
    "loss",
    "deviation",
    "sums over tokens are divided by the greatest length, mean over completions",
    reason="the release divides by 1000 and sums over completions: only the learning rate's scale",
)
def test_nft_settings() -> None:
    made = composition.build("nft")
    assert (made.objective.wrong, made.objective.prompts, made.regularizers) == (1.0, "hard", ())
    assert isinstance(made.selection, ReplaceFlatGroups) and type(made.aggregation).__name__ == "FixedLength"


@cell("pacs", "loss, gradient", "equal", "binary cross entropy of the label with the leave-one-out log-ratio")
@cell("pacs", "loss", "option", "class weights of each question: `balanced: true`")
@cell("pacs", "defaults", "equal", "beta 1, log-ratios to the policy that sampled, no class weights")
def test_pacs_gradient() -> None:
    for balanced in (False, True):
        t = text_trial("pacs", balanced=balanced)
        logit = others_mean(summed(t.live - t.old, t)).view(len(PROMPTS), GROUP)
        right = (t.rewards > 0.5).double()
        loss = -(right * logsigmoid(logit) + (1 - right) * logsigmoid(-logit))
        if balanced:
            n = right.sum(dim=1, keepdim=True)
            balance = torch.where(right > 0, GROUP / (2 * n), GROUP / (2 * (GROUP - n)))
            loss = loss * torch.where((n > 0) & (n < GROUP), balance, 1.0)
        assert alike(t.gradient, t.gradient_of(loss.mean()))
    made = composition.build("pacs").objective
    assert (made.beta, made.balanced) == (1.0, False)


@cell("real", "loss, gradient", "equal", "ln(1 + sum of wrong exp) + ln(1 + sum of right exp) of mean log-ratios")
@cell("real", "defaults", "equal", "temperature .5, anchor logit 0")
def test_real_gradient() -> None:
    t = text_trial("real")
    mean = summed(t.live - t.old, t) / t.content.sum(dim=1).view(len(PROMPTS), GROUP)
    right = t.rewards > 0.5
    up = (1 + torch.where(right, (-mean / 0.5).exp(), 0.0).sum(dim=1)).log()
    down = (1 + torch.where(right, 0.0, (mean / 0.5).exp()).sum(dim=1)).log()
    assert alike(t.gradient, t.gradient_of((up + down).mean()))


@cell("online_ipo, ipo_md", "loss, gradient", "equal", "(s_i - s_j - (P - 1/2) / tau)^2 of all pairs of a group")
def test_ipo_gradient() -> None:
    for name in ("online_ipo", "ipo_md"):
        t = text_trial(name, tau=0.5)
        s = summed(t.live - t.reference, t)
        loss = over_pairs((gaps(s) - (wins(t.rewards) - 0.5) / 0.5) ** 2)
        assert alike(t.gradient, t.gradient_of(loss)), name


@cell(
    "online_ipo, ipo_md",
    "defaults",
    "deviation",
    "tau .1; the mixture holds an eighth of the reference",
    reason="the paper's experiments are on models and preference models that are not public",
)
def test_ipo_settings() -> None:
    made = composition.build("ipo_md")
    assert (made.sampler.mixture, made.sampler.opponents, made.objective.target) == (0.125, False, 10.0)


@cell("inpo", "loss, gradient", "equal", "(h - 1 / (2 eta))^2, h of the winner over the loser with two anchors")
@cell("inpo", "defaults", "equal", "eta .0075, tau a third of it; the best and the worst of a group")
def test_inpo_gradient() -> None:
    t = text_trial("inpo", eta=0.3, tau=0.1)
    h = summed(t.live - t.reference / 3 - 2 * t.old / 3, t)
    best, worst = t.rewards.argmax(dim=1), t.rewards.argmin(dim=1)
    rows = torch.arange(len(PROMPTS))
    loss = (h[rows, best] - h[rows, worst] - 1 / 0.6) ** 2
    assert alike(t.gradient, t.gradient_of(loss.mean()))
    made = composition.build("inpo")
    assert math.isclose(made.objective.reference_share, 1 / 3) and math.isclose(made.objective.target, 1 / 0.03)
    assert made.selection == NonzeroAdvantage()


@cell("dno", "loss, gradient", "equal", "cross entropy of sigmoid(eta (s_i - s_j)) with sigmoid(w_i - w_j)")
@cell("dno", "defaults", "deviation", "eta .1, all pairs", reason="the paper runs DPO on filtered pairs instead")
def test_dno_gradient() -> None:
    t = text_trial("dno", eta=0.5)
    gap, soft = 0.5 * gaps(summed(t.live - t.old, t)), gaps(wins(t.rewards).mean(dim=2)).sigmoid()
    loss = over_pairs(-(soft * logsigmoid(gap) + (1 - soft) * logsigmoid(-gap)))
    assert alike(t.gradient, t.gradient_of(loss)) and composition.build("dno").objective.beta == 0.1


def halves(t: TextTrial) -> Tensor:
    """[P, G] bool: samples of the rival."""
    return (t.it.rollout.source == RIVAL).view(len(PROMPTS), GROUP)


@cell("nash_md, nash_mp", "loss, gradient", "equal", "-(P - 1/2) log p + beta sum_t sg(log p / p_ref) log p")
def test_nash_gradient() -> None:
    for name in ("nash_md", "nash_mp"):
        t = text_trial(name)
        rival = halves(t)
        assert rival.tolist() == [[False, True] * (GROUP // 2)] * len(PROMPTS)
        better = torch.where(rival[:, None, :], gaps(t.rewards).sigmoid(), 0.0).sum(dim=2) / (GROUP // 2)
        toll = summed((t.live - t.reference).detach() * t.live, t)
        loss = -(better - 0.5) * summed(t.live, t) + 0.1 * toll
        assert alike(t.gradient, t.gradient_of(loss[~rival].mean())), name


@cell("nash_md", "defaults", "equal", "mixture .5 by tokens, beta .1, T .9, sigmoid of the rewards' difference")
@cell(
    "nash_mp",
    "defaults",
    "deviation",
    "opponents of a slow copy that keeps .9 of itself an iteration",
    reason="the practical algorithm's constants were not seen",
)
def test_nash_settings() -> None:
    made, slow = composition.build("nash_md"), composition.build("nash_mp")
    assert (made.sampler.mixture, made.sampler.temperature, made.regularizers[0].weight) == (0.5, 0.9, 0.1)
    assert made.selection == OwnSamples() and made.advantage.preference == "sigmoid"
    assert (slow.sampler.mixture, slow.sampler.to, slow.ema_weights[0].decay(1)) == (1.0, "slow", 0.9)


@cell("xpo", "loss, gradient", "equal", "DPO on an own sample and one of the reference, plus alpha log p of the latter")
@cell("xpo", "defaults", "equal", "beta .1, alpha 1e-5, T .9; the own sample is chosen where scores are equal")
def test_xpo_gradient() -> None:
    t = text_trial("xpo", alpha=0.1)
    s, rival = 0.1 * summed(t.live - t.reference, t), halves(t)
    own, other = (t.rewards[mask].view(len(PROMPTS), -1) for mask in (~rival, rival))
    margin = s[~rival].view(len(PROMPTS), -1, 1) - s[rival].view(len(PROMPTS), 1, -1)
    chosen = own[:, :, None] >= other[:, None, :]
    loss = -logsigmoid(torch.where(chosen, margin, -margin)).mean() + 0.1 * summed(t.live, t)[rival].mean()
    assert alike(t.gradient, t.gradient_of(loss))
    made = composition.build("xpo").objective
    assert (made.beta, made.optimism, composition.build("xpo").sampler.temperature) == (0.1, 1e-5, 0.9)


def test_centred_rewards_are_what_the_regressions_read() -> None:
    t = text_trial("gvpo")
    assert torch.allclose(t.it.advantage, centred(t.rewards))
