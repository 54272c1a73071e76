"""Presets that learn from a teacher, against the losses of TRL, verl and the authors written out here."""

from __future__ import annotations

import torch
from torch import Tensor

from flowrl import composition
from tests.fidelity import cell, release
from tests.fidelity.bench import alike
from tests.fidelity.text import TextTrial, clipped, mean_over, standardised, text_trial

release("gkd", "TRL 1.16.0 (experimental.gkd)")
release("minillm", "TRL 1.16.0 (experimental.minillm), a port of microsoft/LMOps")
release("opd", "verl 0.9.1 (distillation, loss_mode k1, use_policy_gradient)")
release("iw_opd", "TRL 1.16.0 (experimental.iw_opd)")
release("vopd", "the paper's formula; no code")


def tables(t: TextTrial, heat: float = 1.0) -> tuple[Tensor, Tensor]:
    """[N, L, V] log-probabilities of the moved policy, with gradient, and of the teacher."""
    condition, tokens = t.it.rollout.condition, t.it.rollout.trace.tokens
    with t.policy.using("teacher") as teacher:
        others = teacher._rows(condition, tokens)[0].detach().double()
    mine = t.policy._rows(condition, tokens)[0].double()
    return (mine / heat).log_softmax(-1), (others / heat).log_softmax(-1)


def said(t: TextTrial, table: Tensor) -> Tensor:
    """[N, L] of the tokens that were drawn."""
    return table.gather(-1, t.it.rollout.trace.tokens[..., None])[..., 0]


def generalised_jsd(student: Tensor, teacher: Tensor, beta: float) -> Tensor:
    """[N, L] TRL's ``generalized_jsd_loss`` before its mean."""
    p, q = student.exp(), teacher.exp()
    if beta == 0:
        return (q * (teacher - student)).sum(-1)
    if beta == 1:
        return (p * (student - teacher)).sum(-1)
    m = ((1 - beta) * p + beta * q).log()
    return (beta * q * (teacher - m) + (1 - beta) * p * (student - m)).sum(-1)


@cell(
    "gkd",
    "loss, gradient",
    "equal",
    "generalised JSD over the whole vocabulary at temperature 1, mean over tokens; its ends 0 and 1 are the plain KLs",
)
def test_gkd_gradient() -> None:
    for beta in (0.0, 0.5, 1.0):
        t = text_trial("gkd", off=0.5, beta=beta)
        loss = mean_over(generalised_jsd(*tables(t), beta), t.content)
        assert alike(t.gradient, t.gradient_of(loss))


@cell("gkd", "defaults", "equal", "beta .5, temperature .9, 128 tokens")
def test_gkd_settings() -> None:
    made = composition.build("gkd")
    assert (made.estimator.divergence, made.sampler.temperature, made.sampler.length) == (0.5, 0.9, 128)


@cell(
    "minillm",
    "loss, gradient",
    "equal",
    "GRPO's advantage plus the teacher's log-ratio of a token, clipped ratio, plus the reverse KL over the vocabulary",
)
def test_minillm_gradient() -> None:
    t = text_trial("minillm", off=0.5)
    student, teacher = tables(t)
    a = standardised(t.rewards, 1)[:, None] + said(t, teacher) - t.old
    loss = clipped(t.live - t.old, a, 0.2, 0.2) + generalised_jsd(student, teacher, 1.0)
    assert alike(t.gradient, t.gradient_of(mean_over(loss, t.content)))


@cell("minillm", "defaults", "equal", "gamma 0, sums divided by their discounts, single-step term, clip .2, no KL")
def test_minillm_settings() -> None:
    made = composition.build("minillm")
    (reward,) = made.token_advantage
    assert (reward.gamma, reward.normalised, reward.task) == (0.0, True, 1.0)
    assert made.regularizers[0].weight == 1.0 and made.objective.clip_range == (0.2, 0.2)


@cell(
    "minillm",
    "loss",
    "deviation",
    "discounts begin at each token, and the advantage is a constant",
    reason="TRL's begin at the first token unless they are divided out, which makes later sums gamma^t too small; its "
    "advantage carries a gradient, of expectation 0",
)
def test_minillm_discounts() -> None:
    for right in (True, False):
        t = text_trial("minillm", off=0.5, gamma=0.5, normalised=False, single_step=0.0, task=0.0)
        r = torch.where(t.content, said(t, tables(t)[1]) - t.old, 0.0)
        power = 0.5 ** torch.arange(r.shape[1]).double()
        released = (r * power).flip(1).cumsum(1).flip(1)
        a = released / power if right else released
        assert alike(t.gradient, t.gradient_of(mean_over(clipped(t.live - t.old, a, 0.2, 0.2), t.content))) is right


@cell("opd", "loss, gradient", "equal", "minus the log-ratio to the teacher as the advantage of a token, clipped ratio")
def test_opd_gradient() -> None:
    t = text_trial("opd", off=0.5)
    a = said(t, tables(t)[1]) - t.old
    assert alike(t.gradient, t.gradient_of(mean_over(clipped(t.live - t.old, a, 0.2, 0.2), t.content)))


@cell("opd", "defaults", "equal", "clip .2, mean over tokens, no task reward; T 1")
def test_opd_settings() -> None:
    made = composition.build("opd")
    assert made.objective.clip_range == (0.2, 0.2) and made.sampler.temperature == 1.0
    assert (made.token_advantage[0].gamma, made.token_advantage[0].task) == (0.0, 0.0)


@cell("opd", "loss", "option", "task rewards beside the teacher's `task: 1`; the KL of whole completions `gamma: 1`")
def test_opd_options() -> None:
    t = text_trial("opd", off=0.5, task=1.0, gamma=1.0)
    r = torch.where(t.content, said(t, tables(t)[1]) - t.old, 0.0)
    a = r.flip(1).cumsum(1).flip(1) + t.rewards.flatten()[:, None]
    assert alike(t.gradient, t.gradient_of(mean_over(clipped(t.live - t.old, a, 0.2, 0.2), t.content)))


@cell("iw_opd", "loss, gradient", "equal", "weights 1 + .5 (1 - share of the disagreement before), no ratio")
def test_iw_opd_gradient() -> None:
    t = text_trial("iw_opd", off=0.5)
    a = torch.where(t.content, said(t, tables(t)[1]) - t.old, 0.0)
    size = a.abs()
    weight = 1 + 0.5 * (1 - (size.cumsum(1) - size) / size.sum(1, keepdim=True))
    assert alike(t.gradient, t.gradient_of(mean_over(-weight * a * t.live, t.content)))


@cell("iw_opd", "defaults", "equal", "gamma .5 (here `decay`)")
def test_iw_opd_settings() -> None:
    assert composition.build("iw_opd").token_advantage[0].decay == 0.5


@cell(
    "vopd",
    "loss, gradient",
    "equal",
    "the log-ratio less its expectation over the vocabulary, detached; the clipped ratio of opd",
)
def test_vopd_gradient() -> None:
    t = text_trial("vopd", off=0.5)
    student, teacher = tables(t)
    with t.policy.using("sampled") as sampled:
        before = sampled._rows(t.it.rollout.condition, t.it.rollout.trace.tokens)[0].double().log_softmax(-1)
    a = said(t, teacher) - t.old + generalised_jsd(before, teacher, 1.0)
    assert alike(t.gradient, t.gradient_of(mean_over(clipped(t.live - t.old, a.detach(), 0.2, 0.2), t.content)))
    assert student.requires_grad


@cell("vopd", "defaults", "equal", "gamma 0, the whole vocabulary, clip .2 (opd's; the abstract names none)")
def test_vopd_settings() -> None:
    made = composition.build("vopd")
    assert made.token_advantage[0].baseline and made.estimator.divergence == 1.0
    assert made.objective.clip_range == (0.2, 0.2)
