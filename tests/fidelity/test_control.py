"""Presets for control against the losses that their authors released, written out here over the decisions that were
made."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flowrl import composition
from flowrl.parts.algorithm import Algorithm
from flowrl.types import Episodes
from tests.contract.toys import Iteration, gradients, roll, small, start
from tests.fidelity import cell, release
from tests.fidelity.bench import alike

release("ppo_gaussian", "vwxyzjn/cleanrl 016ca33, ppo_continuous_action.py")
release("diffusion_policy", "none compared; arXiv:2303.04137")
release("dppo", "irom-princeton/dppo cc7234a, 4 Feb 2025")


class Made(NamedTuple):
    """Episodes of a toy, the policy somewhat moved since."""

    algorithm: Algorithm
    policy: Any
    iteration: Iteration
    old: Any
    """The policy that sampled."""
    rows: Tensor
    events: Tensor

    @property
    def trace(self) -> Episodes:
        trace = self.iteration.rollout.trace
        assert isinstance(trace, Episodes)
        return trace

    def seen(self) -> Any:
        return self.policy.condition([]).seeing(self.trace.observed[self.rows, self.events])

    def gradient_of(self, loss: Tensor) -> Tensor:
        found = torch.autograd.grad(loss, self.policy.parameters(), allow_unused=True)
        pairs = zip(found, self.policy.parameters(), strict=True)
        return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs])

    def credit(self, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
        """Advantages, normalised over all decisions, and returns [L], step by step backwards; with the value of the
        last observation where a time limit cut the episode."""
        trace, feedback = self.trace, self.iteration.rollout.feedback
        assert feedback is not None
        advantage, returns = [], []
        with torch.no_grad():
            value = self.old.value(trace.observed.flatten(0, 1)).view(trace.observed.shape[:2]).double()
        for n in range(len(feedback)):
            made, running, mine = int(trace.alive[n].sum()), 0.0, []
            for t in reversed(range(made)):
                ends = t == made - 1 and not bool(trace.truncated[n])
                delta = float(feedback[n, t]) + gamma * float(value[n, t + 1]) * (not ends) - float(value[n, t])
                running = delta + gamma * lam * running
                mine.append((running, running + float(value[n, t])))
            advantage += [a for a, _ in reversed(mine)]
            returns += [r for _, r in reversed(mine)]
        a = torch.tensor(advantage, dtype=torch.float64)
        return (a - a.mean()) / (a.std(correction=0) + 1e-8), torch.tensor(returns, dtype=torch.float64)


def made(name: str, **spec: Any) -> Made:
    algorithm = small(name, 4, **spec)
    policy, old = start(algorithm), start(algorithm)
    it = roll(algorithm, policy)
    rows, events = it.rollout.trace.alive.nonzero(as_tuple=True)  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
    return Made(algorithm, policy, it, old, rows, events)


def clipped(ratio: Tensor, advantage: Tensor, low: Any, high: Any) -> Tensor:
    return torch.maximum(-advantage * ratio, -advantage * torch.minimum(torch.maximum(ratio, 1 - low), 1 + high))


@cell(
    "ppo_gaussian", "loss, gradient", "equal", "clipped ratio of the unclipped action, clipped value loss; one update"
)
def test_ppo_gaussian_gradient() -> None:
    m = made("ppo_gaussian")
    found = gradients(m.algorithm, m.iteration)[0]
    advantage, returns = m.credit(0.99, 0.95)
    mean, log_std = m.policy.gaussian(m.seen())
    normal = torch.distributions.Normal(mean.double(), log_std.double().exp())
    logp = normal.log_prob(m.trace.actions[m.rows, m.events].double()).flatten(1).sum(dim=1)
    edge = torch.tensor(0.2).double()
    loss = clipped((logp - logp.detach()).exp(), advantage, edge, edge).mean()
    value = m.policy.value(m.seen().observed).double()
    assert alike(found, m.gradient_of(loss + 0.5 * 0.5 * ((value - returns) ** 2).mean()), 1e-4)


@cell("ppo_gaussian", "defaults", "equal", "clip .2, value loss .5, gamma .99, lambda .95, no entropy bonus")
def test_ppo_gaussian_settings() -> None:
    a: Any = composition.build("ppo_gaussian")
    assert (a.objective.low, a.objective.high, a.objective.dual) == (0.2, 0.2, None)
    assert [(r.name, r.weight, r.clip) for r in a.regularizers] == [("value_loss", 0.5, 0.2)]
    assert (a.token_advantage[0].gamma, a.token_advantage[0].lam) == (0.99, 0.95)


@cell(
    "ppo_gaussian",
    "defaults",
    "deviation",
    "a time limit is no end",
    reason="what would have come counts; theirs is token_advantage: [{use: episode_gae, truncation: terminate}]",
)
def test_ppo_gaussian_time_limits() -> None:
    a: Any = composition.build("ppo_gaussian")
    theirs = composition.build(
        {"use": "ppo_gaussian", "token_advantage": [{"use": "episode_gae", "truncation": "terminate"}]}
    )
    assert a.token_advantage[0].truncation == "bootstrap"
    assert theirs.token_advantage == (replace(a.token_advantage[0], truncation="terminate"),)


@cell(
    "dppo", "loss, gradient", "equal", "means over a chunk, advantages discounted by step, per-step clip (least_clip)"
)
def test_dppo_gradient() -> None:
    """Two updates on the same episodes, so that the ratio is not 1 in the second."""
    m = made("dppo", least_clip=0.001, clip=0.01, gamma_denoise=0.9)
    steps = m.trace.steps(m.rows, m.events)
    assert steps is not None
    advantage, returns = m.credit(0.99, 0.95)

    def logp(policy: Any) -> Tensor:
        found = []
        for k in range(4):
            t, t_next = steps.t[:, k], steps.t_next[:, k]
            x, x_next = steps.states[:, k], steps.states[:, k + 1]
            v = policy.velocity(x, t, m.seen())
            a, b, _ = (value[:, None, None] for value in replaced(t, t_next))
            std = replaced(t, t_next)[2].clamp(min=0.1)[:, None, None]
            normal = torch.distributions.Normal(a * x.double() + b * v.double(), std)
            found.append(normal.log_prob(x_next.double()).clamp(-5, 2).mean(dim=(1, 2)))
        return torch.stack(found, dim=1)

    with torch.no_grad():
        old = logp(m.old)
    k = torch.arange(4).double()
    edge = 0.001 + (0.01 - 0.001) * (torch.exp(3 * k / 3) - 1) / (math.exp(3) - 1)
    weight = 0.9 ** (3 - k)
    loss = clipped((logp(m.policy) - old).exp(), advantage[:, None] * weight, edge, edge).mean()
    value = m.policy.value(m.seen().observed).double()
    wanted = m.gradient_of(loss + 0.5 * 0.5 * ((value - returns) ** 2).mean())
    assert alike(gradients(m.algorithm, m.iteration)[0], wanted, 1e-4)


def replaced(t: Tensor, t_next: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A, B, s of the posterior step of a flow: DDPM's ``(1 - t') x0 + sqrt(t'^2 - s^2) e``."""
    odds = t_next * (1 - t) / (t * (1 - t_next))
    s = t_next * (1 - odds**2).clamp(min=0).sqrt()
    noise = (t_next**2 - s**2).clamp(min=0).sqrt()
    return 1 - t_next + noise, -(1 - t_next) * t + noise * (1 - t), s


@cell(
    "dppo", "defaults", "equal", "std floor .1, clip .01, denoising discount .99, gamma .99, lambda .95, value loss .5"
)
def test_dppo_settings() -> None:
    a: Any = composition.build("dppo")
    assert a.sampler.sampler.dynamics.least == 0.1 and a.objective.low == 0.01 and len(a.token_advantage) == 1
    credit = a.token_advantage[0]
    assert (credit.gamma_denoise, credit.gamma, credit.lam) == (0.99, 0.99, 0.95)
    assert (a.regularizers[0].weight, a.regularizers[0].clip) == (0.5, math.inf)


@cell(
    "dppo",
    "defaults",
    "deviation",
    "all 10 steps are tuned",
    reason="the release keeps the base for the first 10 of 20; its chain is a DDPM's, with noise and actions clamped",
)
def test_dppo_steps() -> None:
    a: Any = composition.build("dppo")
    assert a.sampler.sampler.steps == a.sampler.sampler.recorded == 10


@cell(
    "fpo",
    "loss, gradient, defaults",
    "option",
    "family: control is the release's use; mean of draws, clip .05, value .25",
)
def test_fpo_control_gradient() -> None:
    m = made("fpo/control")
    rows: Any = m.algorithm.estimator.probe(m.iteration.rollout, m.old, m.iteration.rollout.seeds)
    inner = rows.inner
    advantage, returns = m.credit(0.995, 0.95)

    def errors(policy: Any) -> Tensor:
        clean, noise, t = inner.clean, inner.noise, inner.t
        wide = t[..., None, None]
        x = ((1 - wide) * clean + wide * noise).float()
        count = t.shape[1]
        seen = m.seen().observed.repeat_interleave(count, dim=0)
        v = policy.velocity(x.flatten(0, 1), t.flatten(), policy.condition([]).seeing(seen)).view_as(clean)
        predicted = x + (1 - wide) * v  # of the noise
        return (predicted - noise).double().square().mean(dim=(2, 3))

    with torch.no_grad():
        old = errors(m.old).mean(dim=1)
    edge = torch.tensor(0.05).double()
    loss = clipped((old - errors(m.policy).mean(dim=1)).exp(), advantage, edge, edge).mean()
    value = m.policy.value(m.seen().observed).double()
    wanted = m.gradient_of(loss + 0.25 * ((value - returns) ** 2).mean())
    assert alike(gradients(m.algorithm, m.iteration)[0], wanted, 1e-4)
    a: Any = composition.build({"use": "fpo", "family": "control"})
    assert a.estimator.average and a.estimator.estimator.draws == 8 and a.sampler.sampler.steps == 10
    assert (a.token_advantage[0].gamma, a.objective.low, a.regularizers[0].weight) == (0.995, 0.05, 0.5)


@cell("diffusion_policy", "loss, gradient", "equal", "mean squared error of the prediction, over all steps of the data")
def test_diffusion_policy_gradient() -> None:
    m = made("diffusion_policy")
    rows: Any = m.algorithm.estimator.probe(m.iteration.rollout, m.policy, m.iteration.rollout.seeds)
    clean, noise, t = rows.inner.clean[:, 0], rows.inner.noise[:, 0], rows.inner.t[:, 0]
    wide = t[:, None, None]
    v = m.policy.velocity(((1 - wide) * clean + wide * noise).float(), t, m.seen())
    wanted = m.gradient_of((v - (noise - clean)).double().square().mean())
    assert alike(gradients(m.algorithm, m.iteration)[0], wanted, 1e-4)


@cell(
    "diffusion_policy",
    "defaults",
    "deviation",
    "a flow, chunks executed whole, 10 steps",
    reason="kind, history, chunk and steps are the model's; the paper: 2 observations, 16 actions, 8 of them executed",
)
def test_diffusion_policy_settings() -> None:
    a: Any = composition.build("diffusion_policy")
    assert a.sampler.sampler.sampler.steps == 10 and a.redraw and a.estimator.estimator.draws == 1
