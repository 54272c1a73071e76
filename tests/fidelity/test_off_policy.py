"""Off-policy presets for control against the losses that their authors released, written out here over the decisions
that were made."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from flowrl import composition
from tests.contract.toys import gradients, start
from tests.fidelity import cell, release
from tests.fidelity.bench import alike
from tests.fidelity.test_control import Made, made

release("fql", "seohongpark/fql 719d044, 11 Mar 2025, agents/fql.py")


def multilayer(net: Any, x: Tensor, norm: bool) -> Tensor:
    """[K, n, out] of `MLP` there: Dense, GELU in its tanh form, LayerNorm; nothing after the last Dense."""
    found = []
    for k in range(len(net.weights[0])):
        h = x
        for number, (weight, bias) in enumerate(zip(net.weights, net.biases, strict=True)):
            h = h @ weight[k] + bias[k]
            if number < len(net.weights) - 1:
                h = functional.gelu(h, approximate="tanh")
                if norm:
                    h = (h - h.mean(dim=1, keepdim=True)) / (h.var(dim=1, correction=0, keepdim=True) + 1e-6).sqrt()
                    h = h * net.gains[number][k] + net.shifts[number][k]
        found.append(h)
    return torch.stack(found)


def asked(policy: Any, name: str, observed: Tensor, chunk: Tensor) -> Tensor:
    """[K, n, out]"""
    seen = policy.network.observations(observed).flatten(1)
    return multilayer(policy.network.beside[name].body, torch.cat([seen, chunk.flatten(1)], dim=1), name != "actor")


def euler(policy: Any, condition: Any, noise: Tensor, steps: int) -> Tensor:
    """`compute_flow_actions` before its clip; time runs from noise to action there, and the velocity points there."""
    x = noise
    for i in range(steps):
        x = x - policy.velocity(x, torch.full((len(x),), 1 - i / steps), condition) / steps
    return x


def one_step(policy: Any, observed: Tensor, z: Tensor) -> Tensor:
    return asked(policy, "actor", observed, z)[0][:, None]


def drawn(m: Made) -> tuple[Any, Tensor, Tensor, Tensor, Tensor]:
    """``(probe, observations, those that followed, rewards [L], whether the episode went on [L])`` of all decisions."""
    rows: Any = m.algorithm.estimator.probe(m.iteration.rollout, m.policy, m.iteration.rollout.seeds)
    feedback, trace = m.iteration.rollout.feedback, m.trace
    assert feedback is not None
    last = m.events == trace.alive.sum(dim=1)[m.rows] - 1
    goes_on = ~last | trace.truncated[m.rows]
    return (
        rows,
        trace.observed[m.rows, m.events],
        trace.observed[m.rows, m.events + 1],
        feedback[m.rows, m.events],
        goes_on,
    )


@cell(
    "fql", "loss, gradient", "equal", "flow matching, distillation, Q of the one-step action, TD error of both critics"
)
def test_fql_gradient() -> None:
    for aggregate, normalize in (("mean", False), ("min", True)):
        m = made("fql", aggregate=aggregate, normalize=normalize)
        rows, seen, following, reward, goes_on = drawn(m)
        noise, own, later = rows.noise[m.rows, m.events].unbind(dim=1)
        t, action = rows.at[m.rows, m.events], m.trace.actions[m.rows, m.events]
        wide = t[:, None, None]
        velocity = m.policy.velocity((1 - wide) * action + wide * noise, t, m.seen())
        flow = (velocity - (noise - action)).square().mean()
        with torch.no_grad():
            then = one_step(m.policy, following, later).clamp(-3, 3)
            target_q = asked(m.old, "q", following, then)[..., 0]  # the target is where live weights were
            target_q = target_q.mean(dim=0) if aggregate == "mean" else target_q.amin(dim=0)
            target = reward + 0.99 * goes_on * target_q
            taught = euler(m.policy, m.seen(), own, 10).clamp(-3, 3)
        critic = (asked(m.policy, "q", seen, action)[..., 0] - target).square().mean()
        mu = one_step(m.policy, seen, own)
        distill = (mu - taught).square().mean()
        q = asked(m.policy, "q", seen, mu.clamp(-3, 3))[..., 0].mean(dim=0)
        gain = -q.mean() / (q.abs().mean().detach() if normalize else 1)
        actors = m.gradient_of(flow + 10 * distill + gain)
        critics = m.gradient_of(critic)
        judging = torch.cat([torch.full((p.numel(),), i) for i, p in enumerate(m.policy.parameters())])
        count = len(m.policy.critic_parameters())
        theirs = judging >= len(m.policy.parameters()) - count
        found = gradients(m.algorithm, m.iteration)[0]
        assert alike(found, torch.where(theirs, critics, actors), 1e-4)


@cell("fql", "defaults", "equal", "alpha 10, tau .005 after every step, gamma .99, 10 flow steps, 2 critics of 4 x 512")
def test_fql_settings() -> None:
    a: Any = composition.build("fql")
    assert (a.objective.alpha, a.objective.gamma, a.objective.coupled) == (10.0, 0.99, False)
    assert (a.ema_weights[0].tau, a.estimator.steps, a.estimator.aggregate) == (0.005, 10, "mean")
    q, actor = a.estimator.beside["q"], a.estimator.beside["actor"]
    assert (q.copies, q.width, q.depth, actor.width, actor.depth) == (2, 512, 4, 512, 4)


@cell(
    "fql",
    "defaults",
    "deviation",
    "standardised actions within 3 deviations; a flow with the model's own width; batches of whole episodes",
    reason="actions are those of the demonstrations there, in -1 to 1; a sample is an episode here",
)
def test_fql_bounds() -> None:
    a: Any = composition.build("fql")
    assert a.estimator.bound == 3.0 and a.acting.bound == 3.0 and "flow" not in a.estimator.beside


def weighted(logit: Tensor, target: Tensor, kappa: float, by: str) -> Tensor:
    """The expectile and quantile losses of `action_critic_loss`."""
    weight = torch.where(target >= torch.sigmoid(logit), kappa, 1 - kappa)
    if by == "expectile":
        return weight * functional.binary_cross_entropy_with_logits(logit, target, reduction="none")
    clipped = target.clamp(1e-5, 1 - 1e-5)
    return weight * (logit - (clipped.log() - (1 - clipped).log())).abs()


release("dqc", "ColinQiyangLi/dqc df89825, 9 Jan 2026, agents/dqc.py")


@cell(
    "dqc", "loss, gradient", "equal", "cross-entropy of chunk critics, distilled critics, implicit value, flow matching"
)
def test_dqc_gradient() -> None:
    for aggregate, distill_by, backup_by in (("mean", "expectile", "quantile"), ("min", "quantile", "expectile")):
        m = made("dqc", gamma=0.9, kappa_d=0.8, aggregate=aggregate, distill_by=distill_by, backup_by=backup_by)
        rows, seen, _, _, _ = drawn(m)
        trace, feedback = m.trace, m.iteration.rollout.feedback
        assert feedback is not None
        count = trace.alive.sum(dim=1)[m.rows]
        then = torch.minimum(m.events + 2, count)
        paid = feedback.nan_to_num(0.0)[m.rows, m.events]
        second = m.events + 1 < count
        paid = paid + 0.9 * second * feedback.nan_to_num(0.0)[m.rows, (m.events + 1).clamp(max=2)]
        goes_on = (then < count) | trace.truncated[m.rows]
        action = trace.actions[m.rows, m.events]
        chunk = torch.cat([action, trace.actions[m.rows, torch.minimum(m.events + 1, count - 1)]], dim=1)

        def said(policy: Any, name: str, at: Tensor, given: Tensor, seen: Tensor = seen) -> Tensor:
            features = policy.network.observations(at).flatten(1)
            x = features if given is None else torch.cat([features, given.flatten(1)], dim=1)
            return multilayer(policy.network.beside[name].body, x, True)[..., 0].double()

        with torch.no_grad():
            later = said(m.policy, "value", trace.observed[m.rows, then], torch.zeros(len(then), 0))[0].sigmoid()
            target = (paid + 0.9 ** (then - m.events) * goes_on * later).clamp(0, 1)
            liked = said(m.old, "partial", seen, action).sigmoid()
            liked = liked.mean(dim=0) if aggregate == "mean" else liked.amin(dim=0)
        q = said(m.policy, "q", seen, chunk)
        loss = functional.binary_cross_entropy_with_logits(q, target.expand_as(q))
        loss = loss + weighted(said(m.policy, "partial", seen, action), q.detach().sigmoid(), 0.8, distill_by).mean()
        value = said(m.policy, "value", seen, torch.zeros(len(then), 0))[0]
        loss = loss + weighted(value, liked, 0.9, backup_by).mean()
        noise, t = rows.noise[m.rows, m.events, 0], rows.at[m.rows, m.events]
        wide = t[:, None, None]
        velocity = m.policy.velocity((1 - wide) * action + wide * noise, t, m.seen())
        loss = loss + (velocity - (noise - action)).square().mean()
        assert alike(gradients(m.algorithm, m.iteration)[0], m.gradient_of(loss), 1e-4)


@cell("dqc", "defaults", "equal", "expectile .5, quantile .9, tau .005, gamma .999, best of 32, 2 critics of 4 x 1024")
def test_dqc_settings() -> None:
    a: Any = composition.build("dqc")
    assert (a.objective.distill, a.objective.backup, a.objective.gamma) == (0.5, 0.9, 0.999)
    assert (a.objective.distill_by, a.objective.backup_by, a.advantage.gamma) == ("expectile", "quantile", 0.999)
    assert (a.acting.candidates, a.acting.critic, a.ema_weights[0].tau) == (32, "partial", 0.005)
    forms = [a.estimator.beside[name] for name in ("q", "partial", "value")]
    assert [(f.copies, f.width, f.depth) for f in forms] == [(2, 1024, 4), (2, 1024, 4), (1, 1024, 4)]


@cell(
    "dqc",
    "defaults",
    "deviation",
    "rewards of an environment; 5 decisions; the last decisions of an episode count, their chunk filled up",
    reason="goals are drawn anew for steps of a data set there, and only steps with 25 more after them are taken",
)
def test_dqc_ends() -> None:
    a: Any = composition.build("dqc")
    assert (a.estimator.backup, a.advantage.backup, a.estimator.beside["q"].decisions) == (5, 5, 5)


release("qam", "ColinQiyangLi/qam f93efd2, 30 Jan 2026, agents/qam.py")


@cell(
    "qam", "loss, gradient", "equal", "adjoint matching along the fast flow's SDE, flow matching, pessimistic TD error"
)
def test_qam_gradient() -> None:
    m = made("qam", inverse_temperature=2.0)
    rows, seen, following, reward, goes_on = drawn(m)
    noise, action = rows.noise[m.rows, m.events], m.trace.actions[m.rows, m.events]
    h, n = 1 / 10, len(action)

    def u(policy: Any, name: str, x: Tensor, t: float, at: Any) -> Tensor:
        """Their velocity, at their time."""
        clock = torch.full((n,), 1 - t)
        found = policy.velocity(x, clock, at) if name == "fast" else policy.velocity_beside(name, x, clock, at)
        return -found

    def sigma(t: float) -> float:
        return (2 * (1 - t + h) / (t + h)) ** 0.5

    with torch.no_grad():
        x, xs = noise[:, 2], []
        for i in range(10):
            xs.append(x)
            t = i / 10
            if i < 9:
                v = u(m.policy, "fast", x, t, m.seen())
                x = x + h * (2 * v - x / (t + h)) + h**0.5 * sigma(t) * noise[:, 3 + i]
            else:
                x = x + h * u(m.old, "slow", x, t, m.seen())
        acting = m.policy.config.steps  # the steps that the model acts in; there those of the path
        then = euler(m.policy, m.policy.condition([]).seeing(following), noise[:, 1], acting).clamp(-3, 3)
        next_q = asked(m.old, "q", following, then)[..., 0]
        target = reward + 0.99 * goes_on * (next_q.mean(dim=0) - 0.5 * next_q.std(dim=0, correction=0))
    end = x.clone().requires_grad_()
    adj = -2.0 * torch.autograd.grad(asked(m.old, "q", seen, end.clamp(-3, 3))[..., 0].mean(dim=0).sum(), end)[0]
    loss = torch.zeros((), dtype=torch.float64)
    for i in reversed(range(10)):
        t, xi = i / 10, xs[i].clone().requires_grad_()
        drift = 2 * u(m.old, "slow", xi, t + h, m.seen()) - xi / (t + h)
        adj = adj + h * torch.autograd.grad(drift, xi, adj)[0]
        base = u(m.old, "slow", xs[i], t, m.seen()).detach()
        fine = u(m.policy, "fast", xs[i], t, m.seen())
        loss = loss + ((fine - base) * 2 / sigma(t) + sigma(t) * adj).double().square().flatten(1).sum(dim=1).mean()
    t = rows.at[m.rows, m.events]
    wide = t[:, None, None]
    velocity = m.policy.velocity_beside("slow", (1 - wide) * action + wide * noise[:, 0], t, m.seen())
    flow = (velocity - (noise[:, 0] - action)).square().mean()
    critic = (asked(m.policy, "q", seen, action)[..., 0] - target).square().mean()
    assert alike(gradients(m.algorithm, m.iteration)[0], m.gradient_of(loss + flow + critic), 1e-4)


@cell(
    "qam", "defaults", "equal", "inverse temperature .3, 10 critics of 4 x 512, half a deviation of pessimism, 10 steps"
)
def test_qam_settings() -> None:
    a: Any = composition.build("qam")
    assert (a.estimator.inverse_temperature, a.estimator.pessimism, a.estimator.steps) == (0.3, 0.5, 10)
    q = a.estimator.beside["q"]
    assert (q.copies, q.width, q.depth, a.objective.gamma, a.ema_weights[0].tau) == (10, 512, 4, 0.99, 0.005)


@cell(
    "qam",
    "defaults",
    "deviation",
    "both flows begin as the model's own; standardised actions within 3 deviations; one candidate",
    reason="a model comes with a flow that was pretrained; the variants FQL and EDIT of the release are not here",
)
def test_qam_begins_with_the_model() -> None:
    m = made("qam")
    own = {key: value for key, value in m.policy.network.state_dict().items() if not key.startswith("beside.")}
    policy = start(m.algorithm, disturbed=False)
    slow = policy.network.beside["slow"].state_dict()
    assert set(slow) == set(own) and all(torch.equal(policy.network.state_dict()[key], slow[key]) for key in own)
    assert m.algorithm.acting is not None and m.algorithm.acting.candidates == 1
