"""Off-policy presets that choose among several chunks against the losses of their authors, written out here."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from flowrl import composition
from tests.contract.toys import gradients
from tests.fidelity import cell, release
from tests.fidelity.bench import alike
from tests.fidelity.test_control import Made, made
from tests.fidelity.test_off_policy import asked, drawn, euler, multilayer

release("pa_rl", "MaxSobolMark/PolicyAgnosticRL a26a192, 3 Aug 2025, action_optimization.py, train.py")
release("expo", "pd-perry/EXPO, 2025: the learner in a stored copy, expo_learner.py")


def worth(policy: Any, observed: Tensor, chunks: Tensor) -> Tensor:
    """[K, L, m] of chunks [L, m, h, d]."""
    said = [asked(policy, "q", observed, chunks[:, k])[..., 0] for k in range(chunks.shape[1])]
    return torch.stack(said, dim=-1)


def samples(m: Made, observed: Tensor, noise: Tensor) -> Tensor:
    """[L, c, h, d]: what the flow makes of noise, within the action space."""
    seen = m.iteration.rollout.condition.seeing(observed)
    made_of = [euler(m.policy, seen, noise[:, k], m.policy.config.steps) for k in range(noise.shape[1])]
    return torch.stack(made_of, dim=1).clamp(-3, 3)


def local_optimization(policy: Any, observed: Tensor, chunks: Tensor, steps: int, rate: float) -> Tensor:
    """`local_optimization_steps` there, with the mean of the ensemble: the best on the way counts, the end too."""
    now, best, highest = chunks, chunks, torch.full(chunks.shape[:2], -math.inf)
    for step in range(steps + 1):
        now = now.detach().requires_grad_()
        value = worth(policy, observed, now).mean(dim=0)
        highest = torch.maximum(highest, value.detach())
        best = torch.where((value.detach() == highest)[:, :, None, None], now.detach(), best)
        if step < steps:
            now = (now + rate * torch.autograd.grad(value.sum(), now)[0]).clamp(-3, 3)
    return best


def flow_error(m: Made, action: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    wide = t[:, None, None]
    velocity = m.policy.velocity((1 - wide) * action + wide * noise, t, m.seen())
    return (velocity - (noise - action)).square().mean()


def by_group(m: Made, actors: Tensor, critics: Tensor) -> Tensor:
    """One gradient of two losses, which train different networks."""
    judging = torch.cat([torch.full((p.numel(),), i) for i, p in enumerate(m.policy.parameters())])
    count = len(m.policy.parameters()) - len(m.policy.critic_parameters())
    return torch.where(judging >= count, critics, actors)


@cell("pa_rl", "loss, gradient", "equal", "kept, improved and recorded actions, the imitated one, the TD error")
def test_pa_rl_gradient() -> None:
    m = made("pa_rl", candidates=5, keep=3, climb=2, rate=0.05, distill="argmax")
    rows, seen, following, reward, goes_on = drawn(m)
    noise = rows.noise[m.rows, m.events]
    own, later = noise[:, 2:].split(5, dim=1)
    t, action = rows.at[m.rows, m.events], m.trace.actions[m.rows, m.events]

    def improved(observed: Tensor, drawn_noise: Tensor, recorded: Tensor | None) -> tuple[Tensor, Tensor]:
        every = samples(m, observed, drawn_noise)
        q = worth(m.policy, observed, every).mean(dim=0)
        best = every[torch.arange(len(q))[:, None], q.argsort(dim=1)[:, -3:]]  # ascending
        if recorded is not None:
            best = torch.cat([best[:, 1:], recorded[:, None]], dim=1)
        best = local_optimization(m.policy, observed, best, 2, 0.05)
        return best, worth(m.policy, observed, best).mean(dim=0)

    chunks, q = improved(seen, own, action)
    taught = chunks[torch.arange(len(q)), q.argmax(dim=1)].detach()
    chunks, q = improved(following, later, None)
    then = chunks[torch.arange(len(q)), q.argmax(dim=1)].detach()
    with torch.no_grad():
        target = reward + 0.99 * goes_on * asked(m.old, "q", following, then)[..., 0].amin(dim=0)
    critic = (asked(m.policy, "q", seen, action)[..., 0] - target).square().mean()
    actors = m.gradient_of(flow_error(m, taught, noise[:, 0], t))
    wanted = by_group(m, actors, m.gradient_of(critic))
    assert alike(gradients(m.algorithm, m.iteration)[0], wanted, 1e-4)


@cell("expo", "loss, gradient", "equal", "editor, its density and temperature, choice of the target, TD error")
def test_expo_gradient() -> None:
    m = made("expo", candidates=3, edits=2, scale=0.4)
    rows, seen, following, reward, goes_on = drawn(m)
    noise = rows.noise[m.rows, m.events]
    t, action = rows.at[m.rows, m.events], m.trace.actions[m.rows, m.events]
    shape = action.shape[1:]

    def raw(observed: Tensor, chunk: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        features = torch.cat([m.policy.network.observations(observed).flatten(1), chunk.flatten(1)], dim=1)
        head = multilayer(m.policy.network.beside["editor"].body, features, False)[0].unflatten(1, (2, *shape))
        mean, log_std = head[:, 0], head[:, 1].clamp(-20, 2)
        x = mean + log_std.exp() * z
        log = -0.5 * ((x - mean) / log_std.exp()) ** 2 - log_std - 0.5 * math.log(2 * math.pi)
        return x.tanh(), (log - (1 - x.tanh() ** 2).log()).flatten(1).sum(dim=1)

    with torch.no_grad():
        base = samples(m, following, noise[:, 2:5])
        edits = [base[:, k] + 0.4 * raw(following, base[:, k], noise[:, 5 + k])[0] for k in range(2)]
        every = torch.cat([base, torch.stack(edits, dim=1).clamp(-3, 3)], dim=1)
        q = worth(m.old, following, every).amin(dim=0)
        target = reward + 0.99 * goes_on * q.amax(dim=1)
    critic = (asked(m.policy, "q", seen, action)[..., 0] - target).square().mean()
    squashed, log = raw(seen, action, noise[:, 1])
    log = log - action[0].numel() * math.log(0.4)
    temperature = m.policy.network.beside["temperature"].log.exp()
    edited = asked(m.policy, "q", seen, action + 0.4 * squashed)[..., 0].mean(dim=0)
    editor = (log * temperature.detach() - edited).mean()
    learned = temperature * (-log.detach() + action[0].numel() / 2).mean()
    actors = m.gradient_of(flow_error(m, action, noise[:, 0], t) + editor + learned)
    wanted = by_group(m, actors, m.gradient_of(critic))
    assert alike(gradients(m.algorithm, m.iteration)[0], wanted, 1e-4)


@cell("pa_rl", "defaults", "equal", "32 samples, 10 kept, 10 steps of 3e-4, drawn by the softmax; 2 x 256, tau .005")
def test_pa_rl_settings() -> None:
    a: Any = composition.build("pa_rl")
    e = a.estimator
    assert (e.candidates, e.keep, e.climb, e.rate, e.distill) == (32, 10, 10, 3e-4, "sample")
    assert (e.width, e.depth, a.ema_weights[0].tau, a.objective.gamma) == (256, 2, 0.005, 0.99)


@cell(
    "pa_rl",
    "loss",
    "deviation",
    "squared error, the least of 2; there Cal-QL on 128 bins, 10 critics of which 2 are drawn",
    reason="the method is what it does to actions; its critic is another paper's",
)
def test_pa_rl_critic() -> None:
    a: Any = composition.build("pa_rl")
    assert (a.estimator.critics, a.estimator.aggregate) == (2, "min")


@cell("expo", "defaults", "equal", "8 samples and 8 edits of scale .05, 3 x 256, tau .005, entropy of -1/2 a number")
def test_expo_settings() -> None:
    a: Any = composition.build("expo")
    e = a.estimator
    assert (e.candidates, e.edits, e.scale, e.width, e.depth) == (8, 8, 0.05, 256, 3)
    assert (a.ema_weights[0].tau, a.objective.gamma) == (0.005, 0.99)


@cell(
    "expo",
    "data",
    "deviation",
    "live weights and critics act; there averages of both, and 2 drawn of 10 critics compare",
    reason="an average that acts is train.ema's and the evaluation's; targets average here too",
)
def test_expo_acts_with_live_weights() -> None:
    a: Any = composition.build("expo")
    assert (a.estimator.critics, a.estimator.aggregate, a.acting.critic, a.acting.aggregate) == (2, "min", "q", "min")
