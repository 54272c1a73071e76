"""Presets on recorded samples against the losses of TRL and of the authors, written out here."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from flowrl import composition
from flowrl.scorers.conversations import Conversations
from flowrl.types import TokenTrace
from tests.contract.toys import gradients, roll, small, start
from tests.fidelity import cell, release
from tests.fidelity.bench import alike
from tests.fidelity.text import TextTrial, text_trial

release("sft", "TRL 1.16.0 (SFTTrainer); masked: ML-GSAI/LLaDA b7e6c35; pictures: diffusers' SD3 scripts")
release("dpo", "eric-mitchell/direct-preference-optimization and TRL 1.16.0 (DPOTrainer)")
release("ipo, rpo", "TRL 1.16.0 (DPOTrainer); no code of the authors'")
release("apo_zero, apo_down", "TRL 1.16.0 (DPOTrainer, contributed by the authors)")
release("kto", "ContextualAI/HALOs and TRL 1.16.0 (KTOTrainer)")
release("cpo", "TRL 1.16.0 (CPOTrainer, the authors')")
release("simpo", "princeton-nlp/SimPO and TRL 1.16.0 (CPOTrainer, loss_type simpo)")
release("orpo", "xfactlab/orpo and TRL 1.16.0 (ORPOTrainer)")
release("reward_model", "TRL f2cd577 of 24 Jul 2026 (RewardTrainer)")
release("bvpo", "the paper alone; no code of the authors'")
release("dpo_online", "TRL 1.16.0 (OnlineDPOTrainer); no code of the authors'")


def sums(t: TextTrial, values: Tensor) -> Tensor:
    """[N] log-probabilities of completions; of views the mean of their bounds."""
    if values.dim() == 2:
        return (values * t.content).sum(dim=1)
    length = t.content.sum(dim=1, keepdim=True)
    return (length / t.mask.sum(dim=2) * (values * t.mask).sum(dim=2)).mean(dim=1)


def halves(t: TextTrial, *values: Tensor) -> list[tuple[Tensor, Tensor]]:
    """(chosen, rejected) of each [N], of the pairs that differ: the first of a group is the better one."""
    feedback = t.it.rollout.feedback
    differ = feedback[0::2] > feedback[1::2]
    assert 4 <= int(differ.sum()) < len(differ)  # pairs of equal rating are left out
    return [(value[0::2][differ], value[1::2][differ]) for value in values]


def log_ratios(t: TextTrial) -> Tensor:
    return sums(t, t.live) - sums(t, t.reference)


def per_token(t: TextTrial, values: Tensor) -> Tensor:
    return values / t.content.sum(dim=1)


def chosen_nll(t: TextTrial) -> Tensor:
    """TRL's: over all tokens of preferred completions."""
    (live, _), (length, _) = halves(t, sums(t, t.live), t.content.sum(dim=1).double())
    return -live.sum() / length.sum()


@cell("dpo", "loss, gradient", "equal", "-log sigmoid(.1 (s_w - s_l)), sums over tokens, mean over pairs")
@pytest.mark.parametrize("variant", ["dpo", "dpo/masked"])
def test_dpo_gradient(variant: str) -> None:
    t = text_trial(variant, ratings=["r0", "r1"])
    [(w, x)] = halves(t, log_ratios(t))
    assert alike(t.gradient, t.gradient_of(-logsigmoid(0.1 * (w - x)).mean()))


@cell("dpo", "loss, gradient", "option", "label_smoothing is the authors' conservative DPO; TRL 1.16 ignores it")
def test_conservative_dpo() -> None:
    t = text_trial("dpo", ratings=["r0", "r1"], label_smoothing=0.2)
    [(w, x)] = halves(t, log_ratios(t))
    z = 0.1 * (w - x)
    assert alike(t.gradient, t.gradient_of((-0.8 * logsigmoid(z) - 0.2 * logsigmoid(-z)).mean()))
    assert not alike(t.gradient, text_trial("dpo", ratings=["r0", "r1"]).gradient)


@cell("dpo", "loss, gradient", "option", "weighted is WPO: a pair times min(1, exp(a_w + a_l)) (wzhouad/WPO a104458)")
@pytest.mark.parametrize("cap", [1.0, math.inf])
def test_pairs_weighted_by_the_policy(cap: float) -> None:
    uncapped = {} if cap == 1 else {"objective": {"weighting": "free"}}  # TRL
    t = text_trial("dpo", ratings=["r0", "r1"], weighted=True, **uncapped)
    trace = t.it.rollout.trace
    assert isinstance(trace, TokenTrace)
    p = t.policy._rows(t.it.rollout.condition, trace.tokens)[0].double().softmax(dim=-1)
    own = (t.content * (t.live - p.square().sum(dim=-1).log())).sum(dim=1) / t.content.sum(dim=1)
    [(w, x), (a, b)] = halves(t, log_ratios(t), own.detach())
    assert bool((a + b > 0).any()) and bool((a + b < 0).any())
    assert alike(t.gradient, t.gradient_of(((a + b).exp().clamp(max=cap) * -logsigmoid(0.1 * (w - x))).mean()))


@cell("dpo", "loss, gradient", "option", "tail is LD-DPO's alpha, of tokens beyond the shorter one (TRL ld_alpha)")
def test_length_desensitised_pairs() -> None:
    t = text_trial("dpo", ratings=["r0", "r1"], tail=0.3)
    length = t.content.sum(dim=1)
    shared = torch.minimum(length[0::2], length[1::2]).repeat_interleave(2)
    place = torch.arange(t.content.shape[1])
    factor = t.content * torch.where(place < shared[:, None], 1.0, 0.3)
    assert bool((length > shared).any())
    [(w, x)] = halves(t, (factor * (t.live - t.reference)).sum(dim=1))
    assert alike(t.gradient, t.gradient_of(-logsigmoid(0.1 * (w - x)).mean()))


@cell("bvpo", "loss, gradient", "equal", "share g(with reasoning) + (1 - share) g(without), each DPO's of a pair")
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("empty", [[], ["c2", "c3"]])
def test_bvpo_gradient(share: float, empty: list[str]) -> None:
    t = text_trial("bvpo", share=share, empty_columns=empty)
    texts = t.policy.decode(t.it.rollout.final)
    if not empty:
        for first in range(0, len(texts), 4):
            for whole, bare in zip(texts[first : first + 2], texts[first + 2 : first + 4], strict=True):
                assert bare == (f"2{whole.rpartition('2')[2]}" if "2" in whole else whole)
    assert texts[2::4] != texts[0::4]
    score = log_ratios(t)
    whole, bare = (score[k::4] - score[k + 1 :: 4] for k in (0, 2))
    loss = share * -logsigmoid(0.1 * whole).mean() + (1 - share) * -logsigmoid(0.1 * bare).mean()
    assert alike(t.gradient, t.gradient_of(loss))


@cell(
    "bvpo",
    "defaults",
    "deviation",
    "both gradients share evenly; DPO's beta .1",
    reason="the paper's experiments do not report the share, and there is no code",
)
def test_bvpo_defaults() -> None:
    made = composition.build("bvpo")
    assert made.combination is not None and made.combination(torch.eye(2).double()).tolist() == [1.0, 1.0]
    assert made.objective.beta == 0.1


@cell("bvpo", "data", "option", "empty_columns are the paper's: pairs of answers made with reasoning switched off")
def test_bvpo_pairs_without_reasoning() -> None:
    made = composition.build({"use": "bvpo", "empty_columns": ["a", "b"]}).sampler
    assert made.columns == ("chosen", "rejected", "a", "b") and made.group == 4 and not made.trace_end
    assert composition.build("bvpo").sampler.group == 4


@cell("ipo", "loss, gradient", "equal", "(d - 1 / .2)^2 of log-ratios per token")
@pytest.mark.parametrize("variant", ["ipo", "ipo/masked"])
def test_ipo_gradient(variant: str) -> None:
    t = text_trial(variant, ratings=["r0", "r1"])
    [(w, x)] = halves(t, per_token(t, log_ratios(t)))
    assert alike(t.gradient, t.gradient_of(((w - x - 5) ** 2).mean()))


@cell("ipo", "loss, gradient", "option", "per_token=false: of sums, as in the paper")
def test_ipo_of_the_paper() -> None:
    t = text_trial("ipo", ratings=["r0", "r1"], per_token=False)
    [(w, x)] = halves(t, log_ratios(t))
    assert alike(t.gradient, t.gradient_of(((w - x - 5) ** 2).mean()))


@cell("rpo", "loss, gradient", "equal", "DPO plus the NLL of all preferred tokens of the batch")
@pytest.mark.parametrize("variant", ["rpo", "rpo/masked"])
def test_rpo_gradient(variant: str) -> None:
    t = text_trial(variant, ratings=["r0", "r1"])
    [(w, x)] = halves(t, log_ratios(t))
    assert alike(t.gradient, t.gradient_of(-logsigmoid(0.1 * (w - x)).mean() + chosen_nll(t)))


@cell("apo_zero", "loss, gradient", "equal", "sigmoid(-.1 s_w) + sigmoid(.1 s_l)")
@pytest.mark.parametrize("variant", ["apo_zero", "apo_zero/masked"])
def test_apo_zero_gradient(variant: str) -> None:
    t = text_trial(variant, ratings=["r0", "r1"])
    [(w, x)] = halves(t, log_ratios(t))
    assert alike(t.gradient, t.gradient_of((1 - (0.1 * w).sigmoid() + (0.1 * x).sigmoid()).mean()))


@cell("apo_down", "loss, gradient", "equal", "sigmoid(.1 s_w) + sigmoid(-.1 (s_w - s_l))")
@pytest.mark.parametrize("variant", ["apo_down", "apo_down/masked"])
def test_apo_down_gradient(variant: str) -> None:
    t = text_trial(variant, ratings=["r0", "r1"])
    [(w, x)] = halves(t, log_ratios(t))
    assert alike(t.gradient, t.gradient_of(((0.1 * w).sigmoid() + 1 - (0.1 * (w - x)).sigmoid()).mean()))


@cell("cpo", "loss, gradient", "equal", "-log sigmoid(.1 (L_w - L_l)) plus the NLL of all preferred tokens")
@pytest.mark.parametrize("variant", ["cpo", "cpo/masked"])
def test_cpo_gradient(variant: str) -> None:
    t = text_trial(variant, ratings=["r0", "r1"])
    [(w, x)] = halves(t, sums(t, t.live))
    assert alike(t.gradient, t.gradient_of(-logsigmoid(0.1 * (w - x)).mean() + chosen_nll(t)))


@cell("simpo", "loss, gradient", "equal", "-log sigmoid(2 (mean log p_w - mean log p_l) - .5)")
@pytest.mark.parametrize("variant", ["simpo", "simpo/masked"])
def test_simpo_gradient(variant: str) -> None:
    t = text_trial(variant, ratings=["r0", "r1"])
    [(w, x)] = halves(t, per_token(t, sums(t, t.live)))
    assert alike(t.gradient, t.gradient_of(-logsigmoid(2 * (w - x) - 0.5).mean()))


@cell("orpo", "loss, gradient", "equal", "NLL of preferred completions - .1 log sigmoid(log odds_w - log odds_l)")
@pytest.mark.parametrize("variant", ["orpo", "orpo/masked"])
def test_orpo_gradient(variant: str) -> None:
    t = text_trial(variant, ratings=["r0", "r1"])
    mean = per_token(t, sums(t, t.live))
    [(w, x)] = halves(t, mean - torch.log1p(-mean.exp()))
    assert alike(t.gradient, t.gradient_of(chosen_nll(t) - 0.1 * logsigmoid(w - x).mean()))


@cell(
    "orpo",
    "loss",
    "deviation",
    "the NLL is that of the completion",
    reason="both codes count the prompt's tokens as well, which no policy here scores",
)
def test_orpo_leaves_the_prompt_out() -> None:
    assert composition.build("orpo").objective.sft == 1.0
    t = text_trial("orpo", ratings=["r0", "r1"])
    assert t.rows.tokens.shape == t.content.shape  # what is scored is the completion


@cell(
    "kto",
    "loss, gradient",
    "equal",
    "1 - sigmoid(.1 (s - z)) of desirable, 1 - sigmoid(.1 (z - s)) of undesirable completions, z the mean log-ratio of "
    "completions of other prompts, at least 0, without gradient",
)
@pytest.mark.parametrize("variant", ["kto", "kto/masked"])
def test_kto_gradient(variant: str) -> None:
    t = text_trial(variant)
    s, label = log_ratios(t), t.it.rollout.feedback[0::2] > 0
    assert 0 < int(label.sum()) < len(label)
    z = s[1::2].detach().mean().clamp(min=0)
    loss = torch.where(label, 1 - (0.1 * (s[0::2] - z)).sigmoid(), 1 - (0.1 * (z - s[0::2])).sigmoid())
    assert alike(t.gradient, t.gradient_of(loss.mean()))


@cell(
    "kto",
    "data",
    "deviation",
    "the other completion is that of the prompt before in the data set, whatever is drawn",
    reason="TRL and HALOs take the row before in the batch, so that results depend on the batch",
)
def test_the_other_completion_is_of_the_prompt_before() -> None:
    algorithm = small("kto")
    it = roll(algorithm, start(algorithm))
    tokens = it.rollout.trace.tokens
    assert torch.equal(tokens[1::2], tokens[0::2].roll(1, dims=0)) and bool(it.rollout.feedback[1::2].isnan().all())


@cell("sft", "loss, gradient", "equal", "-log p of completion tokens and their end, mean over all tokens of the batch")
def test_sft_gradient() -> None:
    t = text_trial("sft")
    assert len(set(t.content.sum(dim=1).tolist())) > 1
    assert alike(t.gradient, t.gradient_of(-(t.live * t.content).sum() / t.content.sum()))


@cell(
    "sft",
    "loss, gradient",
    "equal",
    "masked: LLaDA's bound of each completion per token, mean of completions",
)
def test_masked_sft_gradient() -> None:
    t = text_trial("sft/masked")
    assert alike(t.gradient, t.gradient_of(-(sums(t, t.live) / t.content.sum(dim=1)).mean()))


@cell(
    "sft",
    "loss",
    "deviation",
    "masked: one end token is trained, and k of L tokens are hidden, k uniform",
    reason="LLaDA trains the end tokens up to the longest completion of a batch and hides each with probability t, 1/t "
    "weighs them; `sampler.ends` all trains end tokens up to a fixed length, and both laws have the same mean",
)
def test_masked_sft_trains_one_end() -> None:
    algorithm = small("sft/masked")
    policy = start(algorithm)
    trace = roll(algorithm, policy).rollout.trace
    ends = (trace.tokens == policy.end_tokens[0]) & trace.mask
    assert int(ends.sum(dim=1).max()) == 1
    full = replace(algorithm, sampler=replace(algorithm.sampler, ends="all"))
    trace = roll(full, policy).rollout.trace
    ended = trace.ended
    assert bool(ended.any()) and bool(trace.mask[ended].all()) and not bool(trace.mask[~ended].logical_not().any())


@cell("sft", "loss, gradient", "equal", "pictures: mean (v - (noise - clean))^2 at logit-normal times, one draw each")
def test_picture_sft_gradient() -> None:
    algorithm = small("sft/diffusion")
    policy = start(algorithm)
    it = roll(algorithm, policy)
    rows = algorithm.estimator.probe(it.rollout, policy, it.draw.seeds)
    assert rows.t.shape == (len(it.scores.group), 1)
    t, noise, clean = rows.t[:, 0], rows.noise[:, 0], it.rollout.final
    x = (1 - t)[:, None].float() * clean + t[:, None].float() * noise
    error = (policy.velocity(x, t, it.rollout.condition) - (noise - clean)).square().mean()
    found = torch.autograd.grad(error, policy.parameters())
    assert alike(gradients(algorithm, it)[0], torch.cat([g.flatten() for g in found]))


def rated_pairs(**spec: Any) -> tuple[Tensor, Any, tuple[Tensor, Tensor, Tensor]]:
    """``(the preset's gradient, weights, (r_w, r_l, by how much the data set rates the first above the other))``."""
    algorithm = small("reward_model", ratings=["r0", "r1"], **spec)
    policy = start(algorithm)
    it = roll(algorithm, policy)
    trace, said = it.rollout.trace, it.rollout.feedback
    assert isinstance(trace, TokenTrace) and said is not None
    rating = policy.rate(it.rollout.condition, trace.tokens, trace.mask).double()
    differ = said[0::2] > said[1::2]
    parts = (rating[0::2][differ], rating[1::2][differ], (said[0::2] - said[1::2])[differ])
    return gradients(algorithm, it)[0], policy, parts


def slope(policy: Any, loss: Tensor) -> Tensor:
    found = torch.autograd.grad(loss, policy.parameters(), allow_unused=True)
    pairs = zip(found, policy.parameters(), strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs])


@cell("reward_model", "loss, gradient", "equal", "-log sigmoid(r_w - r_l), mean over pairs; centring and margin")
def test_reward_model_gradient() -> None:
    found, policy, (w, x, _) = rated_pairs()
    assert alike(found, slope(policy, -logsigmoid(w - x).mean()))
    found, policy, (w, x, apart) = rated_pairs(centre=0.01, objective={"margin": 1.0})
    assert alike(found, slope(policy, -logsigmoid(w - x - apart).mean() + 0.01 * (w + x).square().mean()))


@cell("reward_model", "defaults", "equal", "1024 tokens, no centring, the data set's order unless it has a margin")
def test_reward_model_defaults() -> None:
    made = composition.build("reward_model")
    assert made.sampler.length == 1024 and made.objective.centre == made.objective.margin == 0
    assert composition.build({"use": "reward_model", "margin": "margin"}).objective.margin == 1


@cell(
    "reward_model",
    "data",
    "deviation",
    "a plain text ends where it ends",
    reason="TRL adds an end token to plain texts, and the reward that loads the result reads none",
)
def test_reward_model_adds_no_end_token() -> None:
    def tokenizer(text: str, **options: Any) -> dict[str, list[int]]:
        return {"input_ids": [ord(sign) for sign in text]}

    row, cut = Conversations(tokenizer, "joined", 100).row("2 +", " 3")
    assert row == {"input_ids": [ord(sign) for sign in "2 + 3"]} and not cut


@cell("dpo_online", "loss, gradient", "equal", "DPO on the best and the worst of the policy's own completions")
@pytest.mark.parametrize("variant", ["dpo_online", "dpo_online/masked"])
def test_online_dpo_gradient(variant: str) -> None:
    t = text_trial(variant, temperature=1.0)
    s = log_ratios(t).view_as(t.rewards)
    best, worst = t.rewards.argmax(dim=1, keepdim=True), t.rewards.argmin(dim=1, keepdim=True)
    z = 0.1 * (s.gather(1, best) - s.gather(1, worst))
    assert alike(t.gradient, t.gradient_of(-logsigmoid(z).mean()))


@cell("dpo, ipo, rpo, apo_zero, apo_down, cpo", "defaults", "equal", "beta .1; 1024 tokens; weight 1 of a further NLL")
@cell("simpo", "defaults", "equal", "beta 2, margin .25 beta")
@cell("orpo", "defaults", "equal", "weight .1 of the odds ratio")
@cell("kto", "defaults", "equal", "beta .1, both weights 1")
@cell("dpo_online", "defaults", "equal", "beta .1, temperature .9, 64 tokens")
def test_published_settings() -> None:
    made = {
        n: composition.build(n) for n in ("dpo", "ipo", "rpo", "apo_zero", "apo_down", "cpo", "simpo", "orpo", "kto")
    }
    for name in ("dpo", "ipo", "rpo", "apo_zero", "apo_down", "cpo", "kto"):
        assert made[name].objective.beta == 0.1 and made[name].sampler.length == 1024, name
    assert made["rpo"].objective.sft == made["cpo"].objective.sft == 1.0 and made["dpo"].objective.sft == 0.0
    assert (made["simpo"].objective.beta, made["simpo"].objective.margin, made["simpo"].objective.sft) == (
        2.0,
        0.5,
        0.0,
    )
    assert made["orpo"].objective.weight == 0.1
    assert (made["kto"].objective.desirable, made["kto"].objective.undesirable) == (1.0, 1.0)
    online = composition.build("dpo_online")
    assert (online.objective.beta, online.sampler.temperature, online.sampler.length) == (0.1, 0.9, 64)


@cell("sft", "defaults", "equal", "1024 tokens, completion alone, no packing")
def test_sft_settings() -> None:
    assert composition.build("sft").sampler.length == 1024
    assert math.isclose(composition.build("sft").sampler.group, 1)
