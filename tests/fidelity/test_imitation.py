"""Presets that imitate and condition against the losses that their authors released, over the decisions that were
made."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flowrl import composition
from tests.contract.toy_environment import toy_policy
from tests.contract.toys import disturb, gradients, roll, small
from tests.fidelity import cell, release
from tests.fidelity.bench import alike
from tests.fidelity.test_control import Made, made

release("cfgrl", "kvfrans/cfgrl, rlbase/algs_offline/iql_diffusion.py, read in mhyatt000/cfgrl 6b95e5a")
release("mip", "simchowitzlabpublic/much-ado-about-noising 9f28318, 26 Mar 2026, mip/losses.py")
release("ptp", "long-context-dp/ldp 1cac600, 17 May 2025")


def told(m: Made) -> tuple[Any, Tensor, Tensor]:
    """Draws of the estimator, and the clean chunks and noises of their first numbers [L, h, d]."""
    rows: Any = m.algorithm.estimator.probe(m.iteration.rollout, m.policy, m.iteration.rollout.seeds)
    return rows.inner, rows.inner.clean[:, 0], rows.inner.noise[:, 0]


@cell("cfgrl", "loss, gradient", "equal", "errors with the label where A > 0, and .1 of those without it; same noise")
def test_cfgrl_gradient() -> None:
    m = made("cfgrl")
    value = m.old.value(m.trace.observed.flatten(0, 1)).view(m.trace.observed.shape[:2]).double().detach()
    _, returns = m.credit(0.99, 0.95)
    advantage = returns - value[m.rows, m.events]
    assert 0 < int((advantage > 0).sum()) <= len(advantage)
    inner, clean, noise = told(m)
    t = inner.t[:, 0].float()
    wide, seen = t[:, None, None], m.trace.observed[m.rows, m.events]
    x, velocity = (1 - wide) * clean + wide * noise, noise - clean

    def error(label: int) -> Tensor:
        answer = m.policy.network(seen, x, t, torch.full((len(t),), label))
        return (answer - velocity).double().square().flatten(1).mean(dim=1)

    actor = (error(1) * (advantage > 0) + 0.1 * error(0)).mean()
    critic = 0.5 * 0.5 * ((m.policy.value(seen).double() - returns) ** 2).mean()
    assert alike(gradients(m.algorithm, m.iteration)[0], m.gradient_of(actor + critic), 1e-4)


@cell("cfgrl", "defaults", "equal", "32 steps, the plain error times .1, w 1")
def test_cfgrl_settings() -> None:
    a: Any = composition.build("cfgrl")
    assert (a.sampler.sampler.steps, a.sampler.sampler.guidance, a.token_advantage[1].null) == (32, 1.0, 0.1)
    assert not a.token_advantage[0].whiten and a.network["conditions"] == 1


@cell(
    "cfgrl",
    "defaults",
    "deviation",
    "own episodes, with advantages of a critic of the mean return",
    reason="there a fixed set of data, and Q - V of IQL; `sampler: {use: demonstrations, executed: true}` reads one",
)
def test_cfgrl_data() -> None:
    a: Any = composition.build({"use": "cfgrl", "sampler": {"use": "demonstrations"}})
    assert a.sampler.columns == ("observed", "action") and a.token_advantage[0].lam == 0.95


@cell("mip", "loss, gradient", "equal", "(f(0) - a)^2 / tau^2 + (f(a + (1 - tau) e) - a)^2 / (1 - tau)^2, tau .9")
def test_mip_gradient() -> None:
    m = made("mip")
    inner, clean, _ = told(m)
    noise, tau, seen = inner.noise[:, 1], 0.9, m.trace.observed[m.rows, m.events]
    first = m.policy.network(seen, torch.zeros_like(clean), torch.ones(len(clean)))
    second = m.policy.network(seen, clean + (1 - tau) * noise, inner.t[:, 1].float())
    each = ((first - clean) / tau).double().square() + ((second - clean) / (1 - tau)).double().square()
    ours = gradients(m.algorithm, m.iteration)[0]
    assert alike(ours, m.gradient_of(each.mean() * (1 - tau) ** 2 / 2), 1e-4)


@cell("mip", "defaults", "equal", "acting, f(0) and then f of that; no noise")
def test_mip_acts() -> None:
    m = made("mip")
    acting: Any = m.algorithm.sampler.heldout(None, None, None)
    assert acting.sampler.steps == 2
    seen = m.trace.observed[m.rows, m.events]
    t = m.policy.times(2)[1].float().expand(len(seen))
    first = m.policy.network(seen, torch.zeros(len(seen), *m.policy.latent_shape), torch.ones(len(seen)))
    wanted = m.policy.in_own_units(m.policy.network(seen, first, t))
    assert alike(m.policy.chunk(seen).detach(), wanted.detach(), 1e-5)


@cell(
    "mip",
    "loss",
    "deviation",
    "means over numbers and errors, times (1 - tau)^2",
    reason="there sums over an action's numbers and both errors, times .1: a constant factor",
)
def test_mip_factor() -> None:
    m = made("mip")
    inner, *_ = told(m)
    assert tuple(inner.t[0].tolist()) == (1.0, float(m.policy.times(2)[1]))


@cell("ptp", "loss, gradient", "equal", "the mean error over the actions before and after, all the same")
def test_ptp_gradient() -> None:
    """On a model that remembers: 2 observations, chunks of the action before, the present one and the next."""
    algorithm = small("ptp", 4, past_weight=1.0)
    policy = toy_policy(chunk=3, past=1, history=2)
    disturb(policy)
    it = roll(algorithm, policy)
    rows, events = it.rollout.trace.alive.nonzero(as_tuple=True)  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
    m = Made(algorithm, policy, it, policy, rows, events)
    inner, clean, noise = told(m)
    wide = inner.t[:, 0].float()[:, None, None]
    x = (1 - wide) * clean + wide * noise
    v = policy.velocity(x, inner.t[:, 0], m.seen())
    wanted = (v - (noise - clean)).double().square().mean(dim=(1, 2)).mean()
    assert alike(gradients(algorithm, it)[0], m.gradient_of(wanted), 1e-4)


@cell("ptp", "defaults", "equal", "every action counts the same, one candidate; the first where too little was done")
def test_ptp_settings() -> None:
    a: Any = composition.build("ptp")
    assert (a.estimator.estimator.past_weight, a.sampler.sampler.sampler.candidates) == (1.0, 1)


@cell(
    "ptp",
    "defaults",
    "deviation",
    "a flow of 10 steps",
    reason="kind, history, past and chunk are the model's; there a DDPM of 100 steps, 16 observations, 32 actions",
)
def test_ptp_model() -> None:
    a: Any = composition.build("ptp")
    assert a.sampler.sampler.sampler.sampler.steps == 10 and a.redraw
