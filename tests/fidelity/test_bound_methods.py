"""Presets on bounds and trajectories of masked-diffusion language models, against the papers' formulas written out
here."""

from __future__ import annotations

import torch

from flowrl import composition
from tests.fidelity import cell, release
from tests.fidelity.bench import alike
from tests.fidelity.text import centred, clipped, k3, mean_over, others_mean, standardised, text_trial

release("elbo_pg", "the bound of ML-GSAI/LLaDA b7e6c35; no released training code")
release("bgpo, vrpo, unigrpo, sepo", "the paper alone")
release("trajectory_pg", "the paper alone; AGRPO 98f1182 estimates the same sum")


@cell(
    "elbo_pg",
    "loss, gradient",
    "equal",
    "-A times LLaDA's bound: L / k times what k hidden tokens are worth, k uniform",
)
def test_elbo_gradient() -> None:
    t = text_trial("elbo_pg")
    length = t.content.sum(dim=1, keepdim=True)
    bound = (length / t.mask.sum(dim=2) * (t.live * t.mask).sum(dim=2)).mean(dim=1)
    assert alike(t.gradient, t.gradient_of(-(centred(t.rewards) * bound).mean()))


@cell("bgpo", "loss, gradient", "equal", "1 + d for A >= 0, exp(d) for A < 0 of every view (eq. 8)")
def test_bgpo_gradient() -> None:
    t = text_trial("bgpo", draws=4, off=0.1)
    a, length = standardised(t.rewards, 1)[:, None], t.content.sum(dim=1, keepdim=True)
    d = length / t.mask.sum(dim=2) * ((t.live - t.old) * t.mask).sum(dim=2)
    assert alike(t.gradient, t.gradient_of(-(a * torch.where(a >= 0, 1 + d, d.exp())).mean()))


@cell(
    "unigrpo",
    "loss, gradient",
    "equal",
    "clipped ratios of mean log-probabilities over a grid of mask rates, plus .01 k3",
)
def test_unigrpo_gradient() -> None:
    t = text_trial("unigrpo")
    count = t.mask.sum(dim=2).clamp(min=1)
    live, old, reference = ((lp * t.mask).sum(dim=2) / count for lp in (t.live, t.old, t.reference))
    a = standardised(t.rewards, 1)[:, None]
    assert alike(t.gradient, t.gradient_of((clipped(live - old, a, 0.2, 0.2) + 0.01 * k3(live, reference)).mean()))


@cell(
    "vrpo",
    "loss, gradient",
    "equal",
    "-log sigmoid(.2 (s_w - s_l)) of bounds less the reference's, plus .05 SFT per token of the winner",
)
def test_vrpo_gradient() -> None:
    t = text_trial("vrpo")
    length = t.content.sum(dim=1, keepdim=True)
    live, reference = (
        (length / t.mask.sum(dim=2) * (lp * t.mask).sum(dim=2)).mean(dim=1) for lp in (t.live, t.reference)
    )
    loss = []
    for group in range(len(t.rewards)):
        rewards, at = t.rewards[group], group * t.rewards.shape[1]
        w, x = at + int(rewards.argmax()), at + int(rewards.argmin())
        s = (live[w] - reference[w]) - (live[x] - reference[x])
        loss.append(-torch.nn.functional.logsigmoid(0.2 * s) - 0.05 * live[w] / length[w, 0])
    assert alike(t.gradient, t.gradient_of(torch.stack(loss).mean()))


@cell(
    "sepo",
    "loss, gradient",
    "equal",
    "clipped ratios of the conditional of one hidden position, whose score-entropy gradient is exact",
)
def test_sepo_gradient() -> None:
    t = text_trial("sepo")
    assert bool((t.mask.sum(dim=2) == 1).all())
    each = clipped(t.live - t.old, standardised(t.rewards, 1)[:, None, None], 0.2, 0.2)
    assert alike(t.gradient, t.gradient_of(mean_over(each, t.mask)))


@cell(
    "trajectory_pg",
    "loss, gradient",
    "equal",
    "-A times the sum over all steps of the log-probability of what was fixed, A leave-one-out",
)
def test_trajectory_gradient() -> None:
    t = text_trial("trajectory_pg")
    assert torch.equal(t.mask.sum(dim=(1, 2)), torch.full((len(t.mask),), 3))
    loss = -(others_mean(t.rewards) * (t.live * t.mask).sum(dim=(1, 2))).mean()
    assert alike(t.gradient, t.gradient_of(loss))


@cell("bgpo", "defaults", "equal", "sixteen views, T 1, no KL")
@cell(
    "vrpo",
    "defaults",
    "equal",
    "beta .2, SFT .05, eight distinct times with one mask each, shared with the reference",
)
def test_settings_that_are_published() -> None:
    assert composition.build("bgpo").estimator.views.draws == 16
    vrpo = composition.build("vrpo")
    assert (vrpo.objective.beta, vrpo.objective.sft, vrpo.estimator.views.draws) == (0.2, 0.05, 8)


@cell(
    "elbo_pg, sepo, unigrpo, trajectory_pg",
    "defaults",
    "deviation",
    "draws, clip, KL and steps are ours",
    reason="none are published for this form (unigrpo: neither clip nor KL nor grid are)",
)
def test_settings_that_are_not_published() -> None:
    draws = {name: composition.build(name).estimator.views.draws for name in ("elbo_pg", "sepo", "unigrpo")}
    assert draws == {"elbo_pg": 4, "sepo": 4, "unigrpo": 4}
    assert composition.build("trajectory_pg").sampler.steps == 64


@cell(
    "vrpo",
    "data",
    "deviation",
    "pairs are the best and the worst completion of a group that the policy sampled",
    reason="the paper's come from 350,000 pairs of its own, which are not public",
)
def test_vrpo_pairs_are_the_policys_own() -> None:
    t = text_trial("vrpo")
    for group in t.it.advantage.view_as(t.rewards):
        assert sorted(group.tolist())[:: len(group) - 1] == [-1.0, 1.0] and int((group != 0).sum()) == 2
