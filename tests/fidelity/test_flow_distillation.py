"""Flows that learn from a teacher, against the losses of the releases written out here."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flowrl import composition
from tests.contract.toys import disturb
from tests.fidelity import cell, release
from tests.fidelity.bench import Trial, alike, trial
from tests.fidelity.test_flow_grpo_family import released_advantage, replay, sde

release("flow_opd", "CostaliyA/Flow-OPD 434ab16, 24 Jun 2026")


def taught(name: str, **spec: Any) -> Trial:
    """A trial whose teacher is further away than its reference."""
    it = trial(name, off=0.02, **spec)
    before = [parameter.detach().clone() for parameter in it.policy.parameters()]
    disturb(it.policy, 0.3)
    it.policy.update_ema("teacher", 0.0)
    with torch.no_grad():
        for parameter, value in zip(it.policy.parameters(), before, strict=True):
            parameter.copy_(value)
    return it


def steps_of(it: Trial, reward: Tensor | None, *, gkd: bool = False, clip: float = 0.002) -> Tensor:
    """The release's loop over steps: ``kl_only`` and ``mixed`` (with the samples' advantage), or ``gkd``."""
    every, terms = torch.arange(len(it.rollout.group)), []
    for j in range(it.rollout.trace.t.shape[1]):
        arguments = (it, sde, 0.7, every, j, 4.5)
        means = {}
        for held in ("teacher", "reference", "sampled"):
            with it.policy.using(held):
                before, means[held], _ = replay(*arguments)
        log_prob, mean, std = replay(*arguments)
        apart = {held: ((mean - other) ** 2 / (2 * std**2)).mean(dim=1) for held, other in means.items()}
        if gkd:
            loss = apart["teacher"]
        else:
            advantage = (-apart["teacher"] + (0.0 if reward is None else reward)).clamp(-5, 5)
            ratio = (log_prob - before).exp()
            loss = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + clip))
        terms.append((loss + 0.04 * apart["reference"]).mean())
    return torch.stack(terms).mean()


@cell(
    "flow_opd",
    "loss, gradient",
    "equal",
    "minus a step's KL per unit of time as its advantage, within 5, its gradient not stopped; clipped ratio; .04 KL",
)
def test_flow_opd_gradient() -> None:
    it = taught("flow_opd", clip=0.002)
    assert alike(it.gradient(), it.gradient_of(steps_of(it, None)))
    assert it.metrics["kl/reference"] > 0


@cell("flow_opd", "defaults", "equal", "clip 1e-4, noise .7, 10 steps without the last, KL .04, bound 5")
def test_flow_opd_settings() -> None:
    made = composition.build("flow_opd")
    assert made.objective.clip_range == (1e-4, 1e-4) and made.objective.bound == 5.0
    assert (made.sampler.steps, made.sampler.dynamics.noise_level, made.sampler.recorded) == (10, 0.7, 9)
    assert made.regularizers[0].weight == 0.04 and not made.objective.detach


@cell("flow_opd", "loss", "option", "the KL itself `mode: gkd`; added to the rewards' advantage `mode: mixed`")
def test_flow_opd_modes() -> None:
    it = taught("flow_opd", mode="gkd")
    assert alike(it.gradient(), it.gradient_of(steps_of(it, None, gkd=True)))
    it = taught("flow_opd", mode="mixed", clip=0.002, flat=False)
    a = released_advantage(it.scores.total, it.scores.group, whole=True)
    assert alike(it.gradient(), it.gradient_of(steps_of(it, a)))


@cell(
    "flow_opd",
    "loss",
    "deviation",
    "all samples are learned from",
    reason="the release leaves out those whose reward has no advantage, of which it uses nothing else",
)
def test_flow_opd_keeps_flat_groups() -> None:
    it = taught("flow_opd")
    assert bool(it.algorithm.selection(it.scores, it.advantage).all())


release("diffusion_opd", "verl-project/verl-omni a1139ba (a port); the authors' code was not to be had")


def distilled(it: Trial, form: str) -> Tensor:
    """verl-omni's ``distill_kl``: the KL of the kernels, or, without noise, half the square of the means' distance."""
    steps: Any = it.rollout.trace
    terms, every = [], torch.arange(len(it.rollout.group))
    for j in range(9):
        x, (t, t_next) = steps.x[:, j], (steps.t[:, j], steps.t_next[:, j])
        if form == "sde":
            with it.policy.using("teacher"):
                _, other, _ = replay(it, sde, 0.7, every, j, 4.5)
            _, mean, std = replay(it, sde, 0.7, every, j, 4.5)
            square = (mean - other) ** 2 / (std**2 * (t - t_next)[:, None])
        else:
            with it.policy.using("teacher"):
                other = it.policy.guided(x, t, it.rollout.condition.index, 4.5)
            mean = it.policy.guided(x, t, it.rollout.condition.index, 4.5)
            square = ((t_next - t)[:, None] * (mean - other).double()) ** 2
        terms.append(square.mean(dim=1).mean() / 2)
    return torch.stack(terms).mean()


@cell(
    "diffusion_opd",
    "loss, gradient",
    "equal",
    "half the squared distance of the next states at own ones; with noise, the KL of the kernels (`form: sde`)",
)
def test_diffusion_opd_gradient() -> None:
    for form in ("ode", "sde"):
        it = taught("diffusion_opd", form=form)
        assert alike(it.gradient(), it.gradient_of(distilled(it, form)))


@cell("diffusion_opd", "defaults", "equal", "ten deterministic steps, the last not trained (mopd's configuration)")
def test_diffusion_opd_settings() -> None:
    made = composition.build("diffusion_opd")
    assert (made.sampler.steps, made.estimator.drop, made.estimator.of) == (10, 1, "next")
    assert made.regularizers == () and made.min_group == 1
