"""Presets for autoregressive language models, against the losses of TRL, verl and the authors written out here."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from flowrl import composition
from flowrl.config.model import ModelConfig
from flowrl.parts.selections import ReplaceFlatGroups
from tests.contract.toys import GROUP, PROMPTS
from tests.fidelity import cell, release
from tests.fidelity.bench import alike
from tests.fidelity.text import TextTrial, centred, clipped, k3, mean_over, others_mean, standardised, text_trial

BOTH = "TRL 1.16.0 (loss_type of that name) and verl 0.9.1"
release("grpo, dapo, dr_grpo, gspo", BOTH)
release("cispo", "TRL 1.16.0 (loss_type cispo)")
release("rloo, remax, reinforce_pp", "verl 0.9.1 (adv_estimator of that name)")
release("ppo", "verl 0.9.1 (adv_estimator gae); TRL 1.0.0, the last with a PPO")
release("gpg", "AMAP-ML/GPG e096da8, 21 May 2025")
release("reinforce", "Williams 1992")
release("selftok_pg", "the abstract alone")


def wide(a: Tensor, t: TextTrial) -> Tensor:
    """[N, L] the advantage of a sample at each of its tokens."""
    return a[:, None].expand(t.content.shape)


@cell(
    "grpo",
    "loss, gradient",
    "equal",
    "clipped token ratios plus .04 k3, mean over a completion's tokens, then over completions",
)
def test_grpo_gradient() -> None:
    t = text_trial("grpo", off=1.0)
    a = standardised(t.rewards, 1)
    assert torch.allclose(a, t.it.advantage)
    each = clipped(t.live - t.old, wide(a, t), 0.2, 0.2) + 0.04 * k3(t.live, t.reference)
    assert alike(t.gradient, t.gradient_of(mean_over(each, t.content, 1).mean()))
    assert 0 < t.metrics["clip_fraction"] < 1


@cell("grpo", "defaults", "equal", "clip .2, KL .04, T 1, sample standard deviation of the group (the paper's)")
def test_grpo_settings() -> None:
    made = composition.build("grpo")
    assert (made.objective.clip_range, made.regularizers[0].weight, made.sampler.temperature) == ((0.2, 0.2), 0.04, 1.0)
    assert (made.advantage.scale, made.advantage.ddof, made.advantage.clip) == ("group", 1, None)


@cell(
    "grpo, dapo, gspo, cispo",
    "defaults",
    "deviation",
    "1e-8 is added to the standard deviation",
    reason="TRL adds 1e-4 and verl 1e-6; a group without spread gets exactly 0 here, so nothing has to be held down",
)
def test_the_smallest_spread() -> None:
    for name in ("grpo", "dapo", "gspo", "cispo"):
        assert composition.build(name).advantage.eps == 1e-8


@cell(
    "grpo",
    "loss",
    "option",
    "verl's dual clip `objective: {dual: 3}`; TRL's sequence_mask correction `token_advantage: [{use: "
    "truncated_importance, level: sequence, beyond: mask, cap: 3}]`; `mask_truncated_completions: true`; token mean, "
    "constant length",
)
def test_grpo_options() -> None:
    t = text_trial("grpo", off=2.0, kl=0.0, objective={"dual": 3.0})
    a = wide(standardised(t.rewards, 1), t)
    loss = clipped(t.live - t.old, a, 0.2, 0.2)
    loss = torch.where(a < 0, torch.minimum(loss, -3 * a), loss)
    assert alike(t.gradient, t.gradient_of(mean_over(loss, t.content, 1).mean()))
    cut = text_trial("grpo", kl=0.0, mask_truncated_completions=True)
    ended = (cut.it.rollout.trace.tokens == cut.policy.end_tokens[0]).any(dim=1)
    each = mean_over(clipped(cut.live - cut.old, wide(standardised(cut.rewards, 1), cut), 0.2, 0.2), cut.content, 1)
    assert alike(cut.gradient, cut.gradient_of(each[ended].mean())) and 0 < int(ended.sum()) < len(ended)


@cell(
    "dapo",
    "loss, gradient",
    "equal",
    "clip .2 and .28, mean over all tokens of the batch, groups that score alike left out",
)
def test_dapo_gradient() -> None:
    t = text_trial("dapo", off=1.0)
    each = clipped(t.live - t.old, wide(standardised(t.rewards, 1), t), 0.2, 0.28)
    assert alike(t.gradient, t.gradient_of(mean_over(each, t.content)))


@cell("dapo", "defaults", "equal", "clip .2 and .28, no KL, up to ten rounds of sampling")
def test_dapo_settings() -> None:
    made = composition.build("dapo")
    assert (made.objective.clip_range, made.regularizers) == ((0.2, 0.28), ())
    assert made.selection == ReplaceFlatGroups(rounds=10)


@cell(
    "dapo",
    "rewards",
    "deviation",
    "a group is flat by its total reward",
    reason="verl's recipe looks at accuracy alone; with a `length_penalty` in the total a group counts as different",
)
def test_dapo_looks_at_the_total() -> None:
    t = text_trial("dapo")
    assert bool(t.algorithm.selection(t.it.scores, t.it.advantage).all())
    flat = torch.full_like(t.it.scores.rewards, 0.5)
    assert not bool(t.algorithm.selection(replace(t.it.scores, rewards=flat), t.it.advantage).any())


@cell(
    "dr_grpo",
    "loss, gradient",
    "equal",
    "centred advantage, sums over tokens divided by the greatest length, mean over completions",
)
def test_dr_grpo_gradient() -> None:
    t = text_trial("dr_grpo", off=1.0)
    each = clipped(t.live - t.old, wide(centred(t.rewards), t), 0.2, 0.2)
    total = torch.where(t.content, each, 0.0).sum(dim=1) / t.algorithm.sampler.length
    assert alike(t.gradient, t.gradient_of(total.mean()))


@cell("gspo", "loss, gradient", "equal", "one ratio exp(mean d) a completion, clipped at 3e-4 and 4e-4")
def test_gspo_gradient() -> None:
    t = text_trial("gspo", off=0.3, low=0.03, high=0.04)
    a = standardised(t.rewards, 1)
    d = mean_over(t.live - t.old, t.content, 1)
    assert alike(t.gradient, t.gradient_of(clipped(d, a, 0.03, 0.04).mean()))
    beyond = torch.where(a > 0, d.exp() > 1.04, d.exp() < 0.97)[a != 0]  # of completions, not of tokens
    assert 0 < 2 * t.metrics["clip_fraction"] == pytest.approx(float(beyond.double().mean()))
    assert composition.build("gspo").objective.clip_range == (3e-4, 4e-4)


@cell("cispo", "loss, gradient", "equal", "-sg(min(ratio, 1 + high)) A log p, mean over all tokens")
def test_cispo_gradient() -> None:
    t = text_trial("cispo", off=1.0, high=0.2)
    ratio = (t.live - t.old).exp().detach()
    assert bool((ratio[t.content] > 1.2).any())
    each = -ratio.clamp(max=1.2) * wide(standardised(t.rewards, 1), t) * t.live
    assert alike(t.gradient, t.gradient_of(mean_over(each, t.content)))


@cell("rloo", "loss, gradient", "equal", "reward less the mean of the others times the completion's log-probability")
def test_rloo_gradient() -> None:
    t = text_trial("rloo")
    total = torch.where(t.content, t.live, 0.0).sum(dim=1)
    assert alike(t.gradient, t.gradient_of(-(others_mean(t.rewards) * total).mean()))


@cell(
    "reinforce",
    "loss, gradient",
    "equal",
    "reward less the mean of the batch's other samples times the completion's log-probability",
)
def test_reinforce_gradient() -> None:
    t = text_trial("reinforce")
    total = torch.where(t.content, t.live, 0.0).sum(dim=1)
    a = others_mean(t.rewards.reshape(1, -1))
    assert alike(t.gradient, t.gradient_of(-(a * total).mean()))


@cell(
    "selftok_pg",
    "loss, gradient",
    "equal",
    "the group's standardised reward times the log-probability of each token, mean over all: a plain policy gradient",
)
@cell("selftok_pg", "defaults", "equal", "no clip, no KL, T 1")
def test_selftok_pg() -> None:
    t = text_trial("selftok_pg")
    a = standardised(t.rewards, 1)
    assert alike(t.gradient, t.gradient_of(mean_over(-wide(a, t) * t.live, t.content)))
    made = composition.build("selftok_pg")
    assert made.objective.clip_range is None and made.regularizers == () and made.sampler.temperature == 1.0


@cell(
    "remax",
    "loss, gradient",
    "equal",
    "reward less the greedy completion's times the completion's log-probability; the greedy ones are not trained",
)
def test_remax_gradient() -> None:
    t = text_trial("remax")
    greedy = t.rewards[:, :1]
    total = torch.where(t.content, t.live, 0.0).sum(dim=1).view(len(PROMPTS), GROUP)
    assert alike(t.gradient, t.gradient_of(-((t.rewards - greedy) * total)[:, 1:].mean()))


def whitened(values: Tensor, mask: Tensor) -> Tensor:
    """verl's masked_whiten, with the population's variance."""
    inside = values[mask]
    return (values - inside.mean()) / (inside.std(correction=0) + 1e-8)


@cell(
    "reinforce_pp",
    "loss, gradient",
    "equal",
    "the reward at the last token less .01 log-ratio at each, summed over what follows, whitened over all"
    " tokens; clip .2, token mean",
)
def test_reinforce_pp_gradient() -> None:
    t = text_trial("reinforce_pp", off=1.0)
    reward = -0.01 * torch.where(t.content, t.old - t.reference, 0.0)
    last = t.content & (t.content.flip(1).cumsum(dim=1).flip(1) == 1)
    reward = reward + torch.where(last, t.rewards.flatten()[:, None], 0.0)
    returns = reward.flip(1).cumsum(dim=1).flip(1)
    each = clipped(t.live - t.old, whitened(returns.detach(), t.content), 0.2, 0.2)
    assert alike(t.gradient, t.gradient_of(mean_over(each, t.content)))


def critic(t: TextTrial) -> Tensor:
    """[N, L] values of the weights in use."""
    return t.policy._rows(t.it.rollout.condition, t.it.rollout.trace.tokens)[1].double()


@cell(
    "ppo",
    "loss, gradient",
    "equal",
    "GAE (lambda .95) on the critic's values, whitened; clipped ratios and half the clipped squared value"
    " error, token means",
)
def test_ppo_gradient() -> None:
    t = text_trial("ppo", off=0.5)
    with t.policy.using("sampled"):
        old = torch.where(t.content, critic(t), 0.0).detach()
    reward, length = t.rewards.flatten(), t.content.sum(dim=1)
    advantage = torch.zeros_like(old)
    for row in range(len(old)):
        running = 0.0
        for place in reversed(range(int(length[row]))):
            last = place == int(length[row]) - 1
            following = 0.0 if last else float(old[row, place + 1])
            delta = (float(reward[row]) if last else 0.0) + following - float(old[row, place])
            running = delta + 0.95 * running
            advantage[row, place] = running
    returns = advantage + old
    value = critic(t)
    near = old + (value - old).clamp(-0.2, 0.2)
    loss = clipped(t.live - t.old, whitened(advantage, t.content), 0.2, 0.2)
    loss = loss + 0.5 * 0.5 * torch.maximum((value - returns) ** 2, (near - returns) ** 2)
    assert alike(t.gradient, t.gradient_of(mean_over(loss, t.content)))


@cell(
    "ppo",
    "defaults",
    "equal",
    "the critic is a network of its own (`model.critic: network`), at ten times the policy's rate as in "
    "verl, clipped by itself",
)
def test_ppo_critic() -> None:
    model = ModelConfig(path="countdown")
    assert composition.build("ppo").valued and model.critic_for(valued=True) == "network"
    assert model.critic_for(valued=False) is None
    assert ModelConfig(path="countdown", critic="head").critic_for(valued=True) == "head"


@cell(
    "ppo",
    "defaults",
    "deviation",
    "lambda .95, values clipped at .2, value weight .5, no KL",
    reason=(
        "PPO's own; verl has lambda 1 and .5 for the clip, TRL weighs values by .1 and puts a KL of .05 into "
        "the reward; all are options but that KL"
    ),
)
def test_ppo_settings() -> None:
    made = composition.build(
        {"use": "ppo", "lam": 1.0, "regularizers": [{"use": "value_loss", "clip": 0.5, "weight": 0.1}]}
    )
    assert (made.token_advantage[0].lam, made.regularizers[0].clip, made.regularizers[0].weight) == (1.0, 0.5, 0.1)


@cell("gpg", "loss, gradient", "equal", "-A log p, centred advantage, mean over all tokens of the groups that differ")
def test_gpg_gradient() -> None:
    t = text_trial("gpg")
    each = -wide(centred(t.rewards), t) * t.live
    assert alike(t.gradient, t.gradient_of(mean_over(each, t.content)))


@cell(
    "gpg",
    "defaults",
    "equal",
    "up to 20 rounds of sampling until half of the groups differ, T .7, no standard deviation, no KL",
)
def test_gpg_settings() -> None:
    made = composition.build("gpg")
    assert made.selection == ReplaceFlatGroups(rounds=20, share=0.5)
    assert (made.advantage.scale, made.regularizers, made.sampler.temperature) == ("none", (), 0.7)


@cell(
    "gpg",
    "loss",
    "deviation",
    "flat groups leave the mean instead of filling the batch",
    reason="the release divides by their share (adjust_gd), which is the same where all groups are equally long",
)
def test_gpg_flat_groups() -> None:
    t = text_trial("gpg")
    advantage = centred(t.rewards)
    advantage[: len(advantage) // 2] = 0.0  # the first group as a flat one
    each = -wide(advantage, t) * t.live
    mine = t.content & (advantage != 0)[:, None]
    filled = mean_over(each, t.content) / 0.5
    longer = mine.sum() / (t.content.sum() / 2)
    assert torch.allclose(mean_over(each, mine) * longer, filled)


@cell(
    "grpo, dapo, dr_grpo, gspo, rloo, reinforce, cispo, gpg, reinforce_pp, remax, ppo",
    "gradient",
    "option",
    "with `top_p` or `top_k` the cut distribution is scored; `estimator: {truncated: false}` scores the "
    "whole one, as TRL and verl do",
)
def test_cut_sampling_has_ratio_one() -> None:
    t = text_trial("grpo", sampler={"top_k": 2})
    assert t.metrics["ratio/first_max_deviation"] < 1e-6
    assert t.metrics["entropy"] <= 0.6932 < text_trial("grpo").metrics["entropy"] + 0.6


@cell(
    "dr_grpo",
    "defaults",
    "equal",
    "clip .2, no KL, T 1; divided by the sampler's length (TRL: max_completion_length)",
)
@cell("gspo", "defaults", "equal", "clip 3e-4 and 4e-4, no KL, T 1")
@cell("cispo", "defaults", "equal", "ratios up to 5 (TRL's documentation), no lower bound, no KL, T 1")
@cell("rloo, remax, reinforce", "defaults", "equal", "no clip, no KL, no standard deviation, T 1")
@cell("reinforce_pp", "defaults", "equal", "clip .2, KL .01 in the reward, no discount, T 1")
def test_other_settings() -> None:
    made = {name: composition.build(name) for name in ("dr_grpo", "gspo", "cispo", "rloo", "remax", "reinforce")}
    for name, algorithm in made.items():
        assert algorithm.regularizers == () and algorithm.sampler.temperature == 1.0, name
    assert made["dr_grpo"].objective.clip_range == (0.2, 0.2) and made["gspo"].objective.clip_range == (3e-4, 4e-4)
    assert made["cispo"].objective.high == 4.0 and made["rloo"].objective.clip_range is None
    last = composition.build("reinforce_pp")
    assert (last.objective.clip_range, last.token_advantage[0].weight, last.regularizers) == ((0.2, 0.2), 0.01, ())
