"""Presets for control against the losses that their authors released, written out here over the decisions that were
made."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from flowrl import composition
from flowrl.models.control.load import new_network
from flowrl.models.control.new import SIZE, untrained
from flowrl.models.control.policy import ControlConfig, ControlPolicy
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.coefficients import with_coefficients
from flowrl.samplers.episodes import EpisodeSampler
from flowrl.types import Draw, Episodes, Likelihood
from tests.contract.toy_environment import toy_policy
from tests.contract.toys import Iteration, gradients, roll, small, start
from tests.fidelity import cell, release
from tests.fidelity.bench import alike

release("ppo_gaussian", "vwxyzjn/cleanrl 016ca33, ppo_continuous_action.py")
release("ppo_categorical", "vwxyzjn/cleanrl fe8d8a0, 20 Apr 2026, ppo.py")
release("diffusion_policy", "none compared; arXiv:2303.04137")
release("dppo", "irom-princeton/dppo cc7234a, 4 Feb 2025")
release("reinflow", "ReinFlow/ReinFlow aed2819, 23 Jun 2025, model/flow/ft_ppo/ppoflow.py")
release("resip", "ankile/robust-rearrangement 41c99a0, 26 Nov 2024, src/train/residual_ppo.py")
release("policy_flow", "a copy with changes of others, HarriWxy/PolicyFlow_srb 1e20dab; MoreInfoy/PolicyFlow not had")


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

    def credit(self, gamma: float, lam: float, ends: bool = False) -> tuple[Tensor, Tensor]:
        """Advantages, normalised over all decisions, and returns [L], step by step backwards; with the value of the
        last observation where a time limit cut the episode, unless it ``ends`` it."""
        trace, feedback = self.trace, self.iteration.rollout.feedback
        assert feedback is not None
        advantage, returns = [], []
        with torch.no_grad():
            value = self.old.value(trace.observed.flatten(0, 1)).view(trace.observed.shape[:2]).double()
        for n in range(len(feedback)):
            made, running, mine = int(trace.alive[n].sum()), 0.0, []
            for t in reversed(range(made)):
                last = t == made - 1 and (ends or not bool(trace.truncated[n]))
                delta = float(feedback[n, t]) + gamma * float(value[n, t + 1]) * (not last) - float(value[n, t])
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
    "ppo_categorical",
    "loss, gradient",
    "equal",
    "clipped ratio of the choice, entropy bonus, clipped value loss; one update",
)
def test_ppo_categorical_gradient() -> None:
    m = made("ppo_categorical")
    advantage, returns = m.credit(0.99, 0.95)
    logits = m.policy.network(m.seen().observed)[:, 0].double()
    chosen = torch.distributions.Categorical(logits=logits)
    number = m.trace.actions[m.rows, m.events][:, 0].argmax(dim=1)
    logp = chosen.log_prob(number)
    edge = torch.tensor(0.2).double()
    loss = clipped((logp - logp.detach()).exp(), advantage, edge, edge).mean() - 0.01 * chosen.entropy().mean()
    value = m.policy.value(m.seen().observed).double()
    wanted = m.gradient_of(loss + 0.5 * 0.5 * ((value - returns) ** 2).mean())
    assert alike(gradients(m.algorithm, m.iteration)[0], wanted, 1e-4)
    assert set(number.tolist()) == {0, 1}


@cell(
    "ppo_categorical",
    "defaults",
    "equal",
    "clip .2 of ratio and value, value loss .5, entropy bonus .01, gamma .99, lambda .95; network and first weights",
)
def test_ppo_categorical_settings() -> None:
    a: Any = composition.build("ppo_categorical")
    assert (a.objective.low, a.objective.high, a.objective.dual) == (0.2, 0.2, None)
    assert [(r.name, r.weight) for r in a.regularizers] == [("value_loss", 0.5), ("negative_entropy", 0.01)]
    assert (a.regularizers[0].clip, a.token_advantage[0].gamma, a.token_advantage[0].lam) == (0.2, 0.99, 0.95)
    config = ControlConfig(kind="categorical", observation=4, action=2, **SIZE)  # pyright: ignore[reportArgumentType]
    body = untrained(config).body
    assert [type(layer).__name__ for layer in body] == ["Linear", "Tanh", "Linear", "Tanh", "Linear"]
    for layer, (gain, shape) in zip(body[::2], ((2**0.5, (64, 4)), (2**0.5, (64, 64)), (0.01, (2, 64))), strict=True):
        weight, bias = layer.parameters()
        assert tuple(weight.shape) == shape and not bool(bias.any())
        short = weight if shape[0] <= shape[1] else weight.T
        torch.testing.assert_close(short @ short.T, gain**2 * torch.eye(min(shape)), rtol=1e-4, atol=1e-5)


@cell(
    "ppo_categorical",
    "defaults",
    "deviation",
    "a time limit is no end; whole episodes, also in minibatches; a critic of 128 units with its own optimiser group",
    reason="what would have come counts; theirs is token_advantage: [{use: episode_gae, truncation: terminate}]",
)
def test_ppo_categorical_time_limits() -> None:
    a: Any = composition.build("ppo_categorical")
    assert a.token_advantage[0].truncation == "bootstrap" and a.families == ("control",)


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
    "equal",
    "of 20 steps the last 10 are tuned and the base makes the others; noise in -3 to 3, log-probabilities in -5 to 2",
)
def test_dppo_steps() -> None:
    a: Any = composition.build("dppo")
    assert a.tuned == (20, 10) and a.sampler.sampler.noise_bound == 3.0
    assert a.estimator.estimator.bounds == (-5.0, 2.0) and a.estimator.estimator.reduction == "mean"


@cell(
    "dppo",
    "loss",
    "equal",
    "a DDPM's posterior, x0 in -1 to 1, deviation .1 or more, in its coordinates; checkpoints of the release are read",
)
def test_dppo_probability() -> None:
    """Of the last 2 of 5 steps; the whole chain is in `tests/unit/test_control_dppo.py`."""
    config = ControlConfig(kind="ddpm", observation=2, action=2, width=16, depth=2, steps=5, bound=1.0)
    torch.manual_seed(0)
    policy = ControlPolicy(config, new_network(config), None, None, torch.device("cpu"))
    with torch.no_grad():
        for parameter in policy.network.parameters():
            parameter.mul_(3)  # so that some x0 are beyond 1
    algorithm: Any = composition.build({"use": "dppo", "steps": 5, "tuned": 2})
    draw = Draw.of(torch.arange(20), torch.zeros(20, dtype=torch.long), 0, 0)
    seen = policy.condition([]).seeing(torch.randn(20, 1, 2))
    made = algorithm.sampler.sampler(policy, seen, draw)
    estimator = algorithm.estimator.estimator
    found = estimator(policy, estimator.probe(made, policy, draw.seeds), seen).logp
    bar = torch.cos((torch.arange(6).double() / 5 + 0.008) / 1.008 * math.pi / 2) ** 2
    beta = (1 - bar[1:] / bar[:-1]).clamp(max=0.999)
    a, outside = (1 - beta).cumprod(dim=0), 0
    states = made.trace.states.double()
    times = [*made.trace.t[0], torch.zeros(()).double()]
    for number, k in enumerate((1, 0)):
        before = a[k - 1] if k else torch.ones(()).double()
        x, x_next = (states[:, number + i] / ((1 - t) ** 2 + t**2).sqrt() for i, t in enumerate(times[number:][:2]))
        with torch.no_grad():
            noise = policy.network(seen.observed, x.float(), times[number].float().expand(20)).double()
        clean = (x - (1 - a[k]).sqrt() * noise) / a[k].sqrt()
        outside += int((clean.abs() > 1).sum())
        mean = beta[k] * before.sqrt() / (1 - a[k]) * clean.clamp(-1, 1)
        mean = mean + (1 - before) * (1 - beta[k]).sqrt() / (1 - a[k]) * x
        std = (beta[k] * (1 - before) / (1 - a[k])).sqrt().clamp(min=0.1)
        wanted = torch.distributions.Normal(mean, std).log_prob(x_next).clamp(-5, 2).mean(dim=(1, 2))
        torch.testing.assert_close(found[:, number].double(), wanted, atol=1e-3, rtol=1e-3)
    assert outside > 5


@cell(
    "dppo",
    "defaults",
    "deviation",
    "advantages are whitened over an iteration; evaluation without noise",
    reason="there over a minibatch of 50000 of 200000 pairs; its evaluation keeps the noise of all steps but the last",
)
def test_dppo_whitening() -> None:
    a: Any = composition.build("dppo")
    deployed = a.sampler.heldout(None, None, None).sampler
    assert a.token_advantage[0].whiten and deployed.window is None and deployed.steps == 20


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


@cell(
    "fpo_pp",
    "loss, gradient, defaults",
    "option",
    "family: control is the port's: sum / sqrt(d), errors at most 20, log-ratio at most 10 with its gradient, clip .05",
)
def test_fpo_pp_control_gradient() -> None:
    """What `actor_loss_fn` of typoverflow/flow-rl computes, of a policy far enough from the one that sampled that all
    branches act. (Its lines themselves, executed with numpy once: the same loss, and gradients by finite differences.)
    """
    m = made("fpo_pp/control", clip=0.05)
    rows: Any = m.algorithm.estimator.probe(m.iteration.rollout, m.old, m.iteration.rollout.seeds)
    inner = rows.inner
    advantage = m.credit(0.99, 0.95)[0]
    with torch.no_grad():
        for parameter in m.policy.network.parameters():
            parameter.mul_(1.5)

    def errors(policy: Any) -> Tensor:
        wide = inner.t[..., None, None]
        at = ((1 - wide) * inner.clean + wide * inner.noise).float()
        count = inner.t.shape[1]
        seen = m.seen().observed.repeat_interleave(count, dim=0)
        v = policy.velocity(at.flatten(0, 1), inner.t.flatten(), policy.condition([]).seeing(seen)).view_as(at)
        return (v - (inner.noise - inner.clean)).double().square().sum(dim=(2, 3)) / 2**0.5

    a = advantage[:, None]
    with torch.no_grad():
        old_error = errors(m.old).clamp(max=20.0)
    raw = errors(m.policy)
    new_error = raw.clamp(max=20.0)
    log_ratio = old_error - new_error
    log_ratio = log_ratio + (log_ratio.clamp(max=10.0) - log_ratio).detach()
    rho = log_ratio.exp()
    good = torch.minimum(rho * a, rho.clamp(0.95, 1.05) * a)
    bad = rho * a - a.abs() / (2 * 0.05) * (rho - 1) ** 2
    wanted = -torch.where(a >= 0, good, bad).mean()
    assert min(int(((raw > 20) & some).sum()) for some in (a >= 0, a < 0)) > 3
    assert int(((old_error - raw > 10) & (a < 0)).sum()) > 0 and int((rho < 0.5).sum()) > 10
    condition = m.iteration.rollout.condition
    with torch.no_grad():
        old = m.algorithm.estimator(m.old, rows, condition).logp.view(len(rows.slot), -1, 16)[m.rows, m.events]
    live = m.algorithm.estimator(m.policy, rows, condition).logp.view(len(rows.slot), -1, 16)[m.rows, m.events]
    batch: Any = SimpleNamespace(advantage=a.expand_as(live), old=Likelihood(old), weight=torch.ones_like(live))
    found = m.algorithm.objective(Likelihood(live), batch).mean()
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert alike(m.gradient_of(found), m.gradient_of(wanted), 1e-4)
    port: Any = composition.build({"use": "fpo_pp", "family": "control"})
    part, chunks = port.estimator.estimator, port.sampler.sampler
    assert (part.draws, part.reduction, part.most, part.weight) == (16, "sqrt", 20.0, "uniform")
    assert (part.times.low, part.times.high, chunks.noise, chunks.steps) == (0.005, 0.995, 0.02, 64)
    assert (port.objective.clip, port.objective.most, port.token_advantage[0].gamma) == (0.05, 10.0, 0.99)


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
    "a flow of 10 steps",
    reason="kind, history, chunk and steps are the model's; the paper: DDPM, 2 observations, 8 of 16 actions executed",
)
def test_diffusion_policy_settings() -> None:
    a: Any = composition.build("diffusion_policy")
    assert a.sampler.sampler.sampler.steps == 10 and a.redraw and a.estimator.estimator.draws == 1


@cell(
    "reinflow",
    "loss, gradient",
    "equal",
    "one ratio of log-probabilities, means over steps, start and numbers, moved into -1 to 1; entropy rate; value loss",
)
def test_reinflow_gradient() -> None:
    m = made("reinflow")
    steps = m.trace.steps(m.rows, m.events)
    assert steps is not None
    advantage, returns = m.credit(0.99, 0.95)
    states = steps.states.double()

    def measured(policy: Any) -> tuple[Tensor, Tensor]:
        """As `get_logprobs`, its times counted from the action: 1, 3/4, 1/2, 1/4."""
        start = torch.distributions.Normal(torch.zeros_like(states[:, 0]), 1.0)
        logp = start.log_prob(states[:, 0]).sum(dim=(1, 2))
        entropy = start.entropy().sum(dim=(1, 2))
        for k in range(4):
            t = torch.full((len(states),), 1 - k / 4).double()
            raw = policy.noise.body(
                torch.cat([policy.network.features(m.seen().observed), policy.network.time_features(t.float())], dim=1)
            )
            low, high = math.log(0.1**2), math.log(0.24**2)
            std = (0.5 * (low + (high - low) * (raw.tanh() + 1) / 2)).exp().view(-1, 1, 2).double()
            mean = states[:, k] - policy.velocity(steps.states[:, k], t, m.seen()).double() / 4
            step = torch.distributions.Normal(mean, std)
            logp = logp + step.log_prob(states[:, k + 1]).sum(dim=(1, 2))
            entropy = entropy + step.entropy().sum(dim=(1, 2))
        return (logp / 5 / 2).clamp(-1, 1), entropy / 5 / 2

    with torch.no_grad():
        old = measured(m.old)[0]
    logp, entropy = measured(m.policy)
    edge = torch.tensor(0.01).double()
    loss = clipped((logp - old).exp(), advantage, edge, edge).mean() - 0.03 * entropy.mean()
    value = m.policy.value(m.seen().observed).double()
    wanted = m.gradient_of(loss + 0.5 * 0.5 * ((value - returns) ** 2).mean())
    assert alike(gradients(m.algorithm, m.iteration)[0], wanted, 1e-4)


@cell(
    "reinflow",
    "loss, gradient",
    "option",
    "behaviour: squared distance of the flow's action from the base's, from z = 0",
)
def test_reinflow_behaviour_gradient() -> None:
    m, plain = (made("reinflow", behaviour=weight) for weight in (0.1, 0.0))
    assert m.algorithm.references == ("reference",)
    steps = m.trace.steps(m.rows, m.events)
    assert steps is not None

    def acts(policy: Any) -> Tensor:
        """As `sample_action`, its times counted from the action; the grid is that of training."""
        x = torch.zeros_like(steps.states[:, 0])
        for k in range(4):
            x = x - policy.velocity(x, torch.full((len(x),), 1 - k / 4).double(), m.seen()) / 4
        return x

    def gradient(one: Made) -> Tensor:
        with torch.no_grad():  # the policy that sampled moved since the reference was taken
            for parameter in one.policy.network.parameters():
                parameter.add_(0.02)
        return gradients(one.algorithm, one.iteration)[0]

    with m.policy.using("reference") as base:
        wanted = acts(base)
    found = gradient(m) - gradient(plain)
    assert alike(found, m.gradient_of(0.1 * (acts(m.policy) - wanted).square().mean().double()), 1e-3)


@cell(
    "reinflow",
    "defaults",
    "equal",
    "4 steps, deviation .1 to .24, the upper bound lowered in the last .65, clip .01, entropy .03, gamma .99",
)
def test_reinflow_settings() -> None:
    a: Any = composition.build("reinflow")
    noisy, chain = a.sampler.sampler, a.estimator.estimator
    assert (noisy.steps, noisy.least, noisy.most) == (4, 0.1, 0.24)
    assert (chain.reduction, chain.bound, a.objective.low, a.objective.high) == ("mean", 1.0, 0.01, 0.01)
    known = [("value_loss", 0.5), ("negative_entropy", 0.03), ("action_shift/reference", 0.0)]
    assert [(term.name, term.weight) for term in a.regularizers] == known and a.references == ()
    a = with_coefficients(a, {})
    assert a.sampler.sampler.most == 0.24
    for iteration, wanted in ((0, 0.24), (350, 0.24), (675, 0.219), (1000, 0.198), (1200, 0.198)):
        assert a.coefficients[0](0.0, {}, iteration) == pytest.approx(wanted, abs=1e-12)
    assert (a.token_advantage[0].gamma, a.token_advantage[0].lam) == (0.99, 0.95)


@cell(
    "reinflow",
    "defaults",
    "deviation",
    "one grid of times, 1, 3/4, 1/2, 1/4 from the action, in sampling and in the density",
    reason="its rectified flow is sampled at 0, 1/3, 2/3, 1 and measured at 0, 1/4, 1/2, 3/4: the first ratio is not 1",
)
def test_reinflow_times() -> None:
    m = made("reinflow")
    steps = m.trace.steps(m.rows, m.events)
    assert steps is not None and steps.t[0].tolist() == [1, 0.75, 0.5, 0.25]
    rows: Any = m.algorithm.estimator.probe(m.iteration.rollout, m.old, m.iteration.rollout.seeds)
    assert torch.equal(rows.inner.t[:, 0], steps.t)
    x, generator = steps.states[:, 0], torch.Generator().manual_seed(0)
    there = torch.zeros(len(x), dtype=torch.float64)  # log of the first ratio, of four steps as it makes them

    def move(t: float) -> tuple[Tensor, Tensor]:
        at = torch.full((len(x),), t).double()
        return x - 0.25 * m.old.velocity(x, at, m.seen()), 0.1 * 2.4 ** m.old.noise_level(at, m.seen())

    with torch.no_grad():
        for sampled, measured in ((1.0, 1.0), (2 / 3, 0.75), (1 / 3, 0.5), (0.0, 0.25)):
            mean, std = move(sampled)
            other = torch.distributions.Normal(*move(measured))
            x = mean + std * torch.randn(x.shape, generator=generator)
            gap = other.log_prob(x) - torch.distributions.Normal(mean, std).log_prob(x)
            there += gap.double().sum(dim=(1, 2))
    outside = ((there / 10).exp() - 1).abs() > 0.01
    assert float(outside.double().mean()) > 0.8


@cell(
    "reinflow",
    "defaults",
    "deviation",
    "states, noise and actions are not clamped",
    reason="all three are clamped there outside the density, so that the ratio is none of densities",
)
def test_reinflow_unclamped() -> None:
    m = made("reinflow")
    steps: Any = m.trace.steps(m.rows, m.events)
    assert float(steps.states.abs().max()) > 1
    assert (steps.dynamics.least, steps.dynamics.most) == (0.1, 0.24)


@cell(
    "policy_flow",
    "loss, gradient",
    "equal",
    "ratio of the added noise around the velocity's change, entropy, Brownian term, clipped value loss of the fork",
)
def test_policy_flow_gradient() -> None:
    m = made("policy_flow")
    rows: Any = m.algorithm.estimator.probe(m.iteration.rollout, m.old, m.iteration.rollout.seeds)
    steps = m.trace.steps(m.rows, m.events)
    assert steps is not None
    start, end, action = steps.states.unbind(dim=1)
    tau = 1 - rows.inner.t[:, 0]  # its time runs from noise to action, and its velocity points there
    wide = tau[:, None, None].float()
    x = (1 - wide) * start + wide * end
    advantage, returns = m.credit(0.99, 0.95)

    def there(policy: Any) -> Tensor:
        return -policy.velocity(x, 1 - tau, m.seen())

    with torch.no_grad():
        was = there(m.old)
    now, std = there(m.policy), m.policy.network.log_std.double().exp()
    added = (action - end).double()
    old = torch.distributions.Normal(torch.zeros_like(added), m.old.network.log_std.detach().double().exp())
    new = torch.distributions.Normal((now - was).double(), std)
    ratio = (new.log_prob(added).sum(dim=(1, 2)) - old.log_prob(added).sum(dim=(1, 2))).exp()
    edge = torch.tensor(0.2).double()
    heat = ((1 - wide) * now - (x - wide * was)).square().mean()
    loss = clipped(ratio, advantage, edge, edge).mean() - 0.01 * new.entropy().sum(dim=(1, 2)).mean() + 0.01 * heat
    value = m.policy.value(m.seen().observed).double()
    wanted = m.gradient_of(loss + ((value - returns) ** 2).mean())
    assert alike(gradients(m.algorithm, m.iteration)[0], wanted, 1e-4)


@cell("policy_flow", "defaults", "equal", "10 steps, clip .2 of ratio and value, entropy and Brownian .01, gamma .99")
def test_policy_flow_settings() -> None:
    a: Any = composition.build("policy_flow")
    assert (a.sampler.sampler.steps, a.objective.low, a.regularizers[0].clip, a.estimator.estimator.beta) == (
        *(10, 0.2, 0.2),
        1.0,
    )
    weights = {term.name: term.weight for term in a.regularizers}
    assert weights == {"value_loss": 2.0, "negative_entropy": 0.01, "brownian": 0.01}


@cell(
    "policy_flow", "defaults", "equal", "midpoint rule; one of all the times that it visits, drawn anew in each epoch"
)
def test_policy_flow_times() -> None:
    m = made("policy_flow")
    steps = m.trace.steps(m.rows, m.events)
    assert steps is not None and m.algorithm.redraw
    x = steps.states[:, 0]
    with torch.no_grad():  # as `sample`, in our times
        for k in range(4):
            t = torch.full((len(x),), 1 - k / 4).double()
            middle = x - 0.125 * m.old.velocity(x, t, m.seen())
            x = x - 0.25 * m.old.velocity(middle, t - 0.125, m.seen())
    torch.testing.assert_close(steps.states[:, 1], x, atol=1e-5, rtol=1e-5)
    rows: Any = m.algorithm.estimator.probe(m.iteration.rollout, m.old, m.iteration.rollout.seeds)
    assert set((rows.inner.t.flatten() * 8).tolist()) == set(range(9))


@cell(
    "policy_flow",
    "defaults",
    "deviation",
    "the rate stays",
    reason="there it follows a KL of .01 after each epoch; here an algorithm's numbers change over iterations, and the "
    "rate is the optimiser's",
)
def test_policy_flow_rate() -> None:
    assert composition.build("policy_flow").coefficients == ()


@cell(
    "resip",
    "loss, gradient",
    "equal",
    "clipped ratio of what the residual added, before its scale; value loss of observation and action; one update",
)
def test_resip_gradient() -> None:
    m = made("resip", scale=0.5)
    found = gradients(m.algorithm, m.iteration)[0]
    seen, action = m.trace.observed[m.rows, m.events, 0].split(2, dim=1)
    read = torch.cat([m.policy.network.observations(seen).clamp(-3, 3), action], dim=1)
    advantage, returns = m.credit(0.999, 0.95, ends=True)
    normal = torch.distributions.Normal(m.policy.network.residual.body(read).double(), math.exp(-1))
    logp = normal.log_prob(m.trace.actions[m.rows, m.events, 0].double()).sum(dim=1)
    edge = torch.tensor(0.2).double()
    loss = clipped((logp - logp.detach()).exp(), advantage, edge, edge).mean()
    value = m.policy.critic(read).double()
    assert alike(found, m.gradient_of(loss + 0.5 * ((value - returns) ** 2).mean()), 1e-4)


@cell(
    "resip",
    "defaults",
    "equal",
    "scale .1, log_std -1, two layers of 256, the last 0; clip .2, value loss 1, gamma .999, lambda .95, limits end",
)
def test_resip_settings() -> None:
    a: Any = composition.build("resip")
    assert (a.residual.scale, a.residual.log_std, a.objective.low, a.objective.high) == (0.1, -1.0, 0.2, 0.2)
    credit = a.token_advantage[0]
    assert (credit.gamma, credit.lam, credit.truncation) == (0.999, 0.95, "terminate")
    assert [(r.name, r.weight, r.clip) for r in a.regularizers] == [("value_loss", 1.0, math.inf)]
    residual = toy_policy(residual=a.residual).network.residual
    assert residual is not None
    sizes = [tuple(p.shape) for name, p in residual.named_parameters() if name.endswith("weight")]
    assert sizes == [(256, 4), (256, 256), (2, 256)] and not residual.body[-1].weight.any()
    assert residual.body[-1].bias is None and residual.log_std.tolist() == [-1.0, -1.0]


@cell(
    "resip",
    "defaults",
    "deviation",
    "no epochs are left out at a KL; whole chunks of 10 Euler steps",
    reason="the release ends the 50 epochs of an iteration at a KL of .1, and executes 8 of 32 actions of 4 DDIM steps",
)
def test_resip_steps() -> None:
    a: Any = composition.build("resip")
    deployed = a.sampler.heldout(None, None, None)
    assert a.sampler.sampler.steps == 10 and type(deployed) is EpisodeSampler and deployed.decisions == 40
