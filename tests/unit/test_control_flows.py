"""Control by flows whose noise is learned or added: densities written out, one step as a Gaussian, what a shift of the
velocity is worth; and identities of FPO's ratio and credit that the family rests on."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from flowrl.composition import build
from flowrl.estimators.actions import ActionRows
from flowrl.estimators.gaussian import GaussianActions
from flowrl.estimators.matching import Matching
from flowrl.estimators.noisy import ChainRows, NoisyChain
from flowrl.estimators.perturbed import Perturbation, PerturbedRows
from flowrl.estimators.transitions import Transitions
from flowrl.math.flow import DDIM, Floored
from flowrl.math.learned_noise import LearnedNoise
from flowrl.math.random import normal, seeds
from flowrl.models.control.load import new_network
from flowrl.models.control.policy import ControlConfig, ControlPolicy
from flowrl.parts.episodes import gae
from flowrl.parts.objectives import AsymmetricClip, Clipped, ClippedMean
from flowrl.samplers.episodes import EpisodeSampler, TemperedStart
from flowrl.samplers.flow import FlowSampler
from flowrl.samplers.noisy import NoisyFlowSampler
from flowrl.samplers.perturbed import NoisyActionSampler, PerturbedFlowSampler
from flowrl.samplers.windows import EveryStep, LastSteps
from flowrl.step import UpdateSettings, improve
from flowrl.types import Draw, IncompatibleError, Likelihood, Steps
from tests.contract.toy_environment import toy_policy
from tests.contract.toys import SIZES, Recorder, gradients, matching_rows, roll, rollout_of, small, start

NOTHING: Any = SimpleNamespace()
"""A condition that nobody reads."""
MIDDLE = math.sqrt(0.1 * 0.24)
"""The deviation where the network of the noise answers 0."""


def even_noise(policy: ControlPolicy) -> ControlPolicy:
    """With the same deviation everywhere."""
    assert policy.noise is not None
    with torch.no_grad():
        for parameter in policy.noise.parameters():
            parameter.zero_()
    return policy


def normal_logp(x: Tensor, mean: Tensor, std: Any) -> Tensor:
    found = torch.distributions.Normal(mean.double(), torch.as_tensor(std).double())
    return found.log_prob(x.double()).flatten(1).sum(dim=1)


def of_policy(policy: ControlPolicy, count: int) -> Any:
    generator = torch.Generator().manual_seed(0)
    return policy.condition([]).seeing(torch.randn(count, 1, 2, generator=generator))


def drawn(count: int) -> Draw:
    return Draw.of(seeds(5, "chunks", count=count), torch.arange(count), 0, 0)


# ------------------------------------------------------------------------------------------------------------ reinflow
def test_reinflow_samples_and_measures_one_chain() -> None:
    """Its noise divided by the deviation is the standard normal that was drawn: the same times and deviations in both,
    and each log-probability is a mean over 4 steps, the start and the numbers of a chunk."""
    policy = toy_policy(noise=True)
    seen, sampler = of_policy(policy, 7), NoisyFlowSampler()
    rollout = sampler(policy, seen, drawn(7))
    trace = rollout.trace
    assert isinstance(trace, Steps) and torch.equal(trace.states[:, -1], rollout.final)
    estimator = NoisyChain(bound=None)
    rows = estimator.probe(rollout, policy, rollout.seeds)
    found = estimator(policy, rows, seen)
    total, entropy = normal_logp(trace.states[:, 0], torch.zeros(7, 1, 2), 1.0), 0.0
    for k in range(4):
        t, x = torch.full((7,), 1 - k / 4).double(), trace.states[:, k]
        mean = x - 0.25 * policy.velocity(x, t, seen)
        std = 0.1 * 2.4 ** policy.noise_level(t, seen)
        assert float(std.detach().min()) > 0.1 and float(std.detach().max()) < 0.24
        drew = (trace.states[:, k + 1] - mean) / std
        torch.testing.assert_close(drew, normal(rollout.seeds, (1, 2), stream=k + 1), atol=1e-5, rtol=0)
        total = total + normal_logp(trace.states[:, k + 1], mean, std)
        entropy = entropy + std.double().log().flatten(1).sum(dim=1)
    torch.testing.assert_close(found.logp[:, 0], total / 10)
    wanted = (entropy + 10 * 0.5 * math.log(2 * math.pi * math.e)) / 10
    torch.testing.assert_close(found.need("entropy")[:, 0], wanted)


def test_reinflow_bounds_log_probabilities_without_gradient() -> None:
    policy = toy_policy(noise=True)
    seen = of_policy(policy, 3)
    rows = NoisyChain().probe(NoisyFlowSampler()(policy, seen, drawn(3)), policy, torch.arange(3))
    far = replace(rows, states=rows.states + 3 * torch.arange(5)[:, None, None])
    logp = NoisyChain()(policy, far, seen).logp
    assert logp.tolist() == [[-1.0]] * 3
    found = torch.autograd.grad(logp.sum(), list(policy.network.body.parameters()))
    assert all(not gradient.any() for gradient in found)
    with pytest.raises(ValueError, match="bound=0"):
        NoisyChain(bound=0)
    with pytest.raises(ValueError, match=r"least=0.3 and most=0.24"):
        NoisyFlowSampler(least=0.3)
    plain = rollout_of(seen, rows.states[:, 0, -1])
    with pytest.raises(IncompatibleError, match="sample with NoisyFlowSampler"):
        NoisyChain().probe(plain, policy, plain.seeds)


class Moving(Recorder):
    """Notes the gradients, and moves every weight by the same."""

    @torch.no_grad()
    def step(self, closure=None):
        super().step()
        for parameter in self.param_groups[0]["params"]:
            parameter.add_(0.02)


@pytest.mark.parametrize("gamma_denoise", [1.0, 0.5])
def test_dppo_of_one_step_from_zero_is_cleanrls_ppo(gamma_denoise: float) -> None:
    """T1: K = 1 with a fixed deviation. The gradient after a first update is that of CleanRL's ppo_continuous_action
    for the mean ``-v(0, 1)``, to rounding in float64, whatever the discount of steps."""
    std = 0.3
    at_zero = TemperedStart(steps=1, dynamics=Floored(DDIM(1.0), std), window=EveryStep(drop=0), guidance=1.0)
    spec = {"use": "dppo", "steps": 1, "clip": 0.2, "gamma_denoise": gamma_denoise}
    spec["estimator"] = {"use": "per_decision", "estimator": {"use": "transitions", "reduction": "sum"}}
    algorithm = replace(build(spec), sampler=EpisodeSampler(sampler=at_zero, **SIZES["control"]))
    policy = start(algorithm)
    policy.network.double()
    policy.critic.double()
    it = roll(algorithm, policy)
    trace: Any = it.rollout.trace
    assert it.rollout.feedback is not None
    rows, events = trace.alive.nonzero(as_tuple=True)
    seen = policy.condition([]).seeing(trace.observed[rows, events])
    action = trace.steps(rows, events).states[:, 1].double()

    def logp() -> Tensor:
        return torch.distributions.Normal(policy.gaussian(seen)[0], std).log_prob(action).sum(dim=(1, 2))

    with torch.no_grad():
        old, value = logp(), policy.value(trace.observed.flatten(0, 1)).view(trace.observed.shape[:2])
    advantage = gae(it.rollout.feedback.nan_to_num(0), value, trace.alive, trace.truncated, 0.99, 0.95)
    returns = (advantage + value[:, :-1])[rows, events]
    advantage = advantage[rows, events]
    advantage = (advantage - advantage.mean()) / (advantage.std(correction=0) + 1e-8)
    recorder = Moving(policy.parameters())
    settings = UpdateSettings(max_grad_norm=1e9, epochs=2)
    improve(policy, recorder, algorithm, it.rollout, it.scores, it.advantage, settings)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.sub_(0.02)  # as in the second update
    ratio = (logp() - old).exp()
    clipped = (ratio.detach() - 1).abs() > 0.2
    assert 0.1 < float(clipped.double().mean()) < 0.9
    loss = torch.max(-advantage * ratio, -advantage * ratio.clamp(0.8, 1.2)).mean()
    loss = loss + 0.5 * 0.5 * (policy.value(seen.observed) - returns).square().mean()
    wanted = torch.autograd.grad(loss, policy.parameters(), allow_unused=True)
    pairs = zip(wanted, policy.parameters(), strict=True)
    flat = torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs])
    torch.testing.assert_close(recorder.gradients[1], flat, rtol=1e-9, atol=1e-12)


def test_reinflow_of_one_step_from_zero_is_gaussian_ppo() -> None:
    """The likelihood of an action, but for a constant, and its gradient (T1)."""
    policy = even_noise(toy_policy(noise=True))
    seen, action = of_policy(policy, 6), torch.randn(6, 1, 2)
    with torch.no_grad():
        policy.network.log_std.fill_(math.log(MIDDLE))
    states = torch.stack([torch.zeros_like(action), action], dim=1)[:, None]
    one, none = torch.ones(6, 1, 1).double(), torch.zeros(6, 1, 1).double()
    chain = NoisyChain(reduction="sum", bound=None)
    mine = chain(policy, ChainRows(states, one, none, LearnedNoise(0.1, 0.24)), seen).logp
    theirs = GaussianActions()(policy, ActionRows(action[:, None]), seen).logp
    torch.testing.assert_close(mine, theirs - math.log(2 * math.pi), rtol=1e-6, atol=1e-5)
    body = list(policy.network.body.parameters())
    weight = torch.arange(6).double()[:, None]
    for a, b in zip(*(torch.autograd.grad((weight * logp).sum(), body) for logp in (mine, theirs)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(b.norm()))


def test_reinflow_learns_its_noise_with_the_policys_rate_and_leaves_it_out_of_sets() -> None:
    algorithm = build({"use": "reinflow"})
    assert algorithm.explores and not build({"use": "dppo"}).explores
    policy = toy_policy(noise=True)
    noise = list(policy.noise.parameters()) if policy.noise is not None else []
    critic = len(policy.critic_parameters())
    assert all(a is b for a, b in zip(policy.parameters()[-critic - len(noise) : -critic], noise, strict=True))
    assert not any(key.startswith("noise.") for key in policy.weights._tensors("reference"))
    it = roll(small("reinflow", 4), policy)
    found = gradients(small("reinflow", 4), it)[0]
    first = sum(p.numel() for p in policy.adaptation.parameters.values())
    assert float(found[first : first + sum(p.numel() for p in noise)].norm()) > 0
    with pytest.raises(IncompatibleError, match="no network for the noise of its steps; use algorithm reinflow"):
        toy_policy().noise_level(torch.ones(1), of_policy(policy, 1))


# --------------------------------------------------------------------------------------------------------- policy_flow
class Field:
    """A velocity that a test writes, with a learned deviation."""

    device = torch.device("cpu")
    latent_shape = (1, 2)

    def __init__(self, velocity: Any, log_std: float = -1.0) -> None:
        self._velocity = velocity
        self.network = SimpleNamespace(log_std=torch.full((1, 2), log_std))

    def velocity(self, x: Tensor, t: Tensor, condition: Any, **_: Any) -> Tensor:
        return self._velocity(x, t).float()

    def times(self, steps: int) -> Tensor:
        return torch.linspace(1, 0, steps + 1, dtype=torch.float64)

    def initial(self, noise: Tensor, times: Tensor) -> Tensor:
        return noise

    def snap(self, t: Tensor) -> Tensor:
        return t


def test_policy_flows_ratio_of_a_constant_shift_is_the_gaussian_one() -> None:
    """The old velocity does not depend on x, the new one is it plus (.3, -.1): the flow ends that much lower, and the
    ratio is that of the actions' densities given the flow's end, also with another deviation (T8)."""
    shift = torch.tensor([0.3, -0.1])
    old = Field(lambda x, t: torch.ones_like(x) * t[:, None, None])
    new = Field(lambda x, t: torch.ones_like(x) * t[:, None, None] + shift, log_std=-0.8)
    draw, estimator = drawn(9), Perturbation()
    rollout = PerturbedFlowSampler(steps=10, solver="euler")(old, NOTHING, draw)
    moved = PerturbedFlowSampler(steps=10, solver="euler")(new, NOTHING, draw)
    assert isinstance(rollout.trace, Steps) and isinstance(moved.trace, Steps)
    rows = estimator.probe(rollout, old, draw.seeds)
    found = estimator(new, rows, None).logp - estimator(old, rows, None).logp
    end, moved_end = rollout.trace.states[:, 1], moved.trace.states[:, 1]
    torch.testing.assert_close(moved_end, end - shift, atol=1e-5, rtol=0)
    wanted = normal_logp(rollout.final, moved_end, math.exp(-0.8)) - normal_logp(rollout.final, end, math.exp(-1))
    torch.testing.assert_close(found[:, 0], wanted, atol=1e-5, rtol=1e-5)


def test_policy_flows_ratio_is_a_surrogate_where_the_velocity_depends_on_x() -> None:
    """With v_old = .8 x the end moves by .707 of what the ratio assumes, in 10 steps (T8)."""
    shift = torch.tensor([0.3, -0.1])
    old, new = Field(lambda x, t: 0.8 * x), Field(lambda x, t: 0.8 * x + shift)
    ends = [PerturbedFlowSampler(steps=10, solver="euler")(field, NOTHING, drawn(4)).trace for field in (old, new)]
    assert isinstance(ends[0], Steps) and isinstance(ends[1], Steps)
    share = (ends[0].states[:, 1] - ends[1].states[:, 1]) / shift
    torch.testing.assert_close(share, torch.full_like(share, (1 - 0.92**10) / 0.8), atol=1e-5, rtol=0)
    assert round((1 - 0.92**10) / 0.8, 3) == 0.707


def test_policy_flow_of_one_step_from_zero_is_gaussian_ppo() -> None:
    policy, moved = toy_policy(), toy_policy()
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter.add_(0.02)
    seen = of_policy(policy, 6)
    with torch.no_grad():
        end, _ = policy.gaussian(seen)
        old = policy.velocity(torch.zeros_like(end), torch.ones(6).double(), seen)
    action = end + torch.randn(end.shape)
    rows = PerturbedRows(
        torch.ones(6, 1).double(), torch.zeros_like(end)[:, None], old[:, None], (action - end)[:, None]
    )
    for mine in (policy, moved):
        theirs = GaussianActions()(mine, ActionRows(action[:, None]), seen)
        found = Perturbation()(mine, rows, seen)
        torch.testing.assert_close(found.logp, theirs.logp, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found.need("entropy"), theirs.need("entropy"))


def test_the_brownian_penalty_is_zero_where_the_velocity_spreads_as_heat() -> None:
    """``v = -beta e / t`` of the old prediction of the noise; the loss of v = 0 is that of the noise itself."""
    beta, draw = 0.7, drawn(5)
    old = Field(lambda x, t: 0.2 * x)

    def heat(x: Tensor, t: Tensor) -> Tensor:
        wide = t[:, None, None]
        return -beta * (x + (1 - wide) * 0.2 * x) / wide

    rollout = PerturbedFlowSampler(steps=4, solver="euler")(old, NOTHING, draw)
    estimator = Perturbation(beta=beta)
    rows = estimator.probe(rollout, old, draw.seeds)
    assert set(rows.t.flatten().tolist()) <= {1.0, 0.75, 0.5, 0.25}
    found = estimator(Field(heat), rows, None).need("brownian")
    assert float(found.max()) < 1e-12
    still = estimator(Field(lambda x, t: 0 * x), rows, None).need("brownian")
    x = rows.x[:, 0]
    torch.testing.assert_close(
        still[:, 0], (beta * x * (1 + 0.2 * (1 - rows.t[:, 0, None, None]))).square().mean(dim=(1, 2)).float()
    )


def test_policy_flow_compares_with_the_policy_that_sampled_in_every_epoch() -> None:
    """Its velocity is kept where the rows are drawn, and each epoch has times of its own."""
    algorithm = small("policy_flow", 4)
    policy = start(algorithm)
    it = roll(algorithm, policy)
    assert algorithm.redraw
    estimator: Any = algorithm.estimator
    first, second = (estimator.probe(it.rollout, policy, it.rollout.seeds + k) for k in range(2))
    assert not torch.equal(first.inner.t, second.inner.t)
    with torch.no_grad():
        velocity = policy.velocity(
            first.inner.x[:, 0],
            first.inner.t[:, 0],
            policy.condition([]).seeing(first.observed[tuple((first.slot >= 0).nonzero().T)]),
        )
    torch.testing.assert_close(velocity[:, None], first.inner.velocity)


# --------------------------------------------------------------------------------------------------------- FPO's ratio
def test_fpos_error_weighted_by_time_is_the_gaussian_log_ratio() -> None:
    """Of point masses at m and m', ``v = (x - m) / t``, the errors weighted by ``t^2 / (2 s^2)`` and summed differ by
    ``log N(a; m', s^2) - log N(a; m, s^2)`` at every time and noise (T4)."""
    m, moved, s = torch.tensor([[0.4, -0.2]]), torch.tensor([[0.5, 0.1]]), 0.3
    generator = torch.Generator().manual_seed(0)
    action, noise = torch.randn(5, 1, 2, generator=generator), torch.randn(5, 7, 1, 2, generator=generator)
    t = 0.02 + 0.98 * torch.rand(5, 7, generator=generator).double()
    rows = matching_rows(action[:, None].expand_as(noise), noise, t)
    condition = toy_policy().condition([]).seeing(torch.zeros(5, 1, 2))
    logp = {}
    for name, at in (("old", m), ("new", moved)):
        field = Field(lambda x, t, at=at: (x - at) / t.to(x)[:, None, None])
        logp[name] = Matching(weight="t2", guidance=1.0)(field, rows, condition).logp  # pyright: ignore[reportArgumentType]
    numbers = 2  # the estimator's error is a mean over them
    found = (logp["new"] - logp["old"]) * numbers / (2 * s**2)
    wanted = normal_logp(action, moved.expand(5, 1, 2), s) - normal_logp(action, m.expand(5, 1, 2), s)
    torch.testing.assert_close(found.double(), wanted[:, None].expand(5, 7), rtol=2e-3, atol=2e-3)


def test_asymmetric_clip_pulls_bad_decisions_back() -> None:
    """The derivative for A = -1 and eps .05: 1 at ratio 1, 0 at .95, -1 at .9, 5 at 1.2; of A = 1 as PPO's (T11)."""
    objective: Any = build({"use": "fpo_pp", "family": "control", "clip": 0.05}).objective
    assert isinstance(objective, AsymmetricClip)

    def slope(ratio: float, advantage: float) -> float:
        logp = torch.tensor([[math.log(ratio)]], dtype=torch.float64, requires_grad=True)
        one = torch.ones(1, 1).double()
        batch: Any = SimpleNamespace(advantage=advantage * one, old=Likelihood(torch.zeros(1, 1).double()), weight=one)
        loss = objective(Likelihood(logp), batch)
        return float(torch.autograd.grad(loss.sum(), logp)[0]) / ratio  # by the ratio, not its logarithm

    for ratio, wanted in ((1.0, 1.0), (0.95, 0.0), (0.9, -1.0), (1.2, 5.0)):
        assert slope(ratio, -1.0) == pytest.approx(wanted, abs=1e-9)
    assert [round(slope(ratio, 1.0), 9) for ratio in (0.9, 1.0, 1.2)] == [-1.0, -1.0, 0.0]


# -------------------------------------------------------------------------------------------------------------- credit
REWARD, VALUE, LAST, BEYOND, GAMMA, LAMBDA = (1.0, 1.0, 1.0), (1.0, 2.0, 3.0), 5.0, 4.0, 0.9, 0.5
"""Three decisions in a row; a time limit cuts after the second, whose last observation has value 5. The next episode
begins with a value of 3, goes on after its first decision, and has value 4 there."""


def backwards(delta: list[float], goes_on: list[bool], fade: float = GAMMA * LAMBDA) -> list[float]:
    found, running = [], 0.0
    for each, on in reversed(list(zip(delta, goes_on, strict=True))):
        running = each + (fade * running if on else 0.0)
        found.append(running)
    return found[::-1]


def test_five_ways_to_treat_a_time_limit_and_which_two_are_ours() -> None:
    """What others compute from the same numbers differs from what is offered here (T6)."""
    two = torch.tensor([[REWARD[0], REWARD[1]], [REWARD[2], 0.0]]).double()
    value = torch.tensor([[VALUE[0], VALUE[1], LAST], [VALUE[2], BEYOND, 0.0]]).double()
    alive, cut = torch.tensor([[True, True], [True, False]]), torch.tensor([True, True])

    def ours(bootstrap: Tensor) -> list[float]:
        found = gae(two, value, alive, bootstrap, GAMMA, LAMBDA)
        return [*found[0].tolist(), float(found[1, 0])]

    r, v = REWARD, VALUE
    first, third = r[0] + GAMMA * v[1] - v[0], r[2] + GAMMA * BEYOND - v[2]
    apart = [True, False, False]
    found = {
        "right": ours(cut),
        "as an end": ours(torch.tensor([False, True])),
        "the next episode": backwards([first, r[1] + GAMMA * v[2] - v[1], third], [True, True, False]),
        "its own value": backwards([first, r[1] + GAMMA * v[1] - v[1], third], apart),
        "left out": backwards([first, 0.0, third], apart),
    }
    wanted = {
        "right": [3.375, 3.5, 1.6],
        "as an end": [1.35, -1.0, 1.6],  # CleanRL
        "the next episode": [2.889, 2.42, 1.6],  # DPPO and ReinFlow
        "its own value": [2.16, 0.8, 1.6],  # rsl_rl
        "left out": [1.8, 0.0, 1.6],  # Brax, FPO's playground
    }
    for name, numbers in wanted.items():
        assert found[name] == pytest.approx(numbers, abs=1e-9), name
    assert len({tuple(round(x, 6) for x in each) for each in found.values()}) == 5
    part: Any = build({"use": "dppo"}).token_advantage[0]
    assert part.truncation == "bootstrap" and replace(part, truncation="terminate") != part


def test_noise_on_actions_is_part_of_what_is_measured() -> None:
    """The chunk is the flow's and .02 of a stream of its own; evaluation has none of it (FPO++)."""
    policy, count = toy_policy(), 400
    condition, draw = of_policy(policy, count), drawn(count)
    plain = FlowSampler(steps=3, guidance=1.0)(policy, condition, draw)
    noisy = NoisyActionSampler(steps=3, guidance=1.0, noise=0.02)
    added = noisy(policy, condition, draw).final - plain.final
    assert float(added.mean()) == pytest.approx(0, abs=0.003) and float(added.std()) == pytest.approx(0.02, rel=0.1)
    deployed = noisy.heldout(None, None, None)
    assert torch.equal(deployed(policy, condition, draw).final, plain.final)
    for wrong, message in (
        ({"noise": -1.0}, r"noise=-1\.0 is a deviation"),
        ({"window": LastSteps(1)}, r"in no density of steps"),
    ):
        with pytest.raises(ValueError, match=message):
            NoisyActionSampler(**wrong)
    with pytest.raises(ValueError, match=r"most=0 is the largest error"):
        Matching(most=0)


def gaussian_field(m: Any, c: Any) -> Any:
    """The velocity of N(m, c^2): what matching its samples makes it, ``E[e - a | x_t]``."""

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        t = t[:, None, None].to(x)
        rest = (x - (1 - t) * m) / ((1 - t) ** 2 * c**2 + t**2)
        return t * rest - m - (1 - t) * c**2 * rest

    return velocity


def test_ratios_of_draws_and_of_their_mean_are_one_gradient_and_two_numbers() -> None:
    """Two draws of log-ratio -.00158 +- .0303: exp of the mean .99842, mean of exp .99888 (Jensen, T2b). At ratio 1
    both forms have the gradient -A / M in every draw."""
    old = Likelihood(torch.zeros(1, 2).double())

    def loss(part: Any, d: list[float]) -> tuple[float, list[float]]:
        logp = torch.tensor([d], dtype=torch.float64, requires_grad=True)
        ones = torch.ones(1, 2).double()
        batch: Any = SimpleNamespace(advantage=ones, old=old, weight=ones)
        found = part(Likelihood(logp), batch).mean()
        return float(found.detach()), torch.autograd.grad(found, logp)[0][0].tolist()

    apart = [-0.00158 - 0.0303, -0.00158 + 0.0303]
    assert -loss(ClippedMean(0.05, 0.05), apart)[0] == pytest.approx(0.99842, abs=5e-6)
    assert -loss(Clipped(0.05, 0.05), apart)[0] == pytest.approx(0.99888, abs=5e-6)
    for part in (ClippedMean(0.05, 0.05), Clipped(0.05, 0.05)):
        assert loss(part, [0.0, 0.0]) == (-1.0, [-0.5, -0.5])


@pytest.mark.parametrize("steps", [1, 3, 7])
def test_the_steps_of_a_point_mass_end_at_it(steps: int) -> None:
    """With ``v = (x - m) / t`` the last step goes to m wherever it starts (T5)."""
    m = torch.tensor([[0.4, -1.3]]).double()

    class Exact(Field):
        def velocity(self, x: Tensor, t: Tensor, condition: Any, **_: Any) -> Tensor:
            return self._velocity(x, t)

        def initial(self, noise: Tensor, times: Tensor) -> Tensor:
            return noise.double()

    field: Any = Exact(lambda x, t: (x - m) / t[:, None, None])
    found = FlowSampler(steps=steps, guidance=1.0)(field, NOTHING, drawn(20)).final
    assert float((found - m).abs().max()) <= 5e-16


def test_what_a_clip_of_fpo_means_depends_on_the_scale_of_the_actions() -> None:
    """The exact field of N(0, c^2), its mean moved by c, 10 times of a grid of 10: the log-ratio has the deviation
    1.70, .836, .336, .167 and .063 for c = 1, .5, .2, .1 and .05, where that of the densities has 1 (T15)."""
    count = 20_000
    generator = torch.Generator().manual_seed(0)
    z, noise = (torch.randn(count, size, 1, 1, generator=generator) for size in (1, 10))
    t = (torch.arange(1, 11).double() / 10).expand(count, 10)
    nothing = toy_policy().condition([]).seeing(torch.zeros(count, 1, 2))
    for c, wanted in ((1.0, 1.70), (0.5, 0.836), (0.2, 0.336), (0.1, 0.167), (0.05, 0.063)):
        rows = matching_rows((c * z).expand_as(noise), noise, t)
        found = {m: Matching()(field_of(m, c), rows, nothing).logp.mean(dim=1) for m in (0.0, c)}
        ratio = found[c] - found[0.0]
        assert float(ratio.std()) == pytest.approx(wanted, rel=0.04)
        exact = z.flatten() - 0.5  # of N(c, c^2) to N(0, c^2)
        correlation = float(torch.corrcoef(torch.stack([ratio.double(), exact.double()]))[0, 1])
        assert 0.92 < correlation < 0.985 and float(exact.std()) == pytest.approx(1, abs=0.03)


def field_of(m: Any, c: Any) -> Any:
    field = Field(gaussian_field(m, c))
    field.latent_shape = (1, 1)
    return field


def test_equal_advantages_move_fpo_where_its_sampler_is_coarse_and_do_not_move_a_density() -> None:
    """The gradient of the mean log-probability of own samples, by the width c of the exact field of N(0, c^2), c = .5:
    in closed form for samples of the width f that the Euler solver makes, gone where f = c (T14)."""
    count, c = 40_000, torch.tensor(0.5, requires_grad=True)
    nothing = toy_policy().condition([]).seeing(torch.zeros(count, 1, 2))
    draw, found = drawn(count), {}
    for steps in (2, 5, 50):
        grid = torch.linspace(1, 0, steps + 1).double()
        f = 1.0
        for t, t_next in pairwise(grid.tolist()):
            f *= 1 + (t_next - t) * (t - (1 - t) * 0.25) / ((1 - t) ** 2 * 0.25 + t**2)
        made = FlowSampler(steps=steps, guidance=1.0)(field_of(0.0, 0.5), nothing, draw)
        assert float(made.final.std()) == pytest.approx(abs(f), rel=0.02)
        t = torch.linspace(0.1, 1, 10).double()
        noise = torch.randn(count, 10, 1, 1, generator=torch.Generator().manual_seed(1))
        rows = matching_rows(made.final[:, None].expand_as(noise), noise, t.expand(count, 10))
        logp = Matching()(field_of(0.0, c), rows, nothing).logp.mean()
        found[steps] = float(torch.autograd.grad(logp, c)[0])
        wide = (1 - t) ** 2 * 0.25 + t**2
        k, slope = (t - (1 - t) * 0.25) / wide, -(1 - t) * t * 2 * 0.5 / wide**2
        wanted = -2 * slope * (k * ((1 - t) ** 2 * f**2 + t**2) - (t - (1 - t) * f**2))
        assert found[steps] == pytest.approx(float(wanted.mean()), abs=0.03)
    assert abs(found[2]) > 1.5 * abs(found[5]) > 0.4 and abs(found[50]) < 0.06  # .66, .36 and a tenth of that
    chain = FlowSampler(
        steps=5, dynamics=Floored(DDIM(1.0), 0.1), window=LastSteps(noise=True, densities=True), guidance=1.0
    )
    made = chain(field_of(0.0, 0.5), nothing, draw)
    part = Transitions(reduction="sum")
    rows = part.probe(made, field_of(0.0, 0.5), draw.seeds)
    logp = part(field_of(0.0, c), rows, nothing).logp.sum(dim=1)
    whole = torch.autograd.grad(logp.mean(), c, retain_graph=True)[0]
    tenths = torch.stack([torch.autograd.grad(each.mean(), c, retain_graph=True)[0] for each in logp.chunk(20)])
    assert float(whole.abs()) < 3 * float(tenths.std()) / 20**0.5


def test_the_midpoint_rule_is_of_second_order() -> None:
    """Of ``dx/dt = x`` a step of h multiplies by ``1 + h + h^2 / 2``; two forwards each, also in evaluation."""
    sampler = FlowSampler(steps=4, guidance=1.0, solver="midpoint")
    field, draw = Field(lambda x, t: x), drawn(5)
    made, start = sampler(field, NOTHING, draw), normal(draw.seeds, (1, 2), stream=0)
    torch.testing.assert_close(made.final, start * (1 - 0.25 + 0.25**2 / 2) ** 4)
    assert made.forwards == 5 * sampler.forwards == 40
    assert sampler.heldout(2, None, None).solver == "midpoint" and sampler.heldout(2, None, None).steps == 2
    one = PerturbedFlowSampler(steps=4)
    assert one.heldout(None, None, None).solver == "midpoint" and one(field, NOTHING, draw).times.tolist() == [
        k / 8 for k in range(8, -1, -1)
    ]
    tempered = EpisodeSampler(sampler=one).heldout(None, None, 0.0).sampler
    assert tempered.solver == "midpoint" and tempered.heldout(None, None, None).solver == "midpoint"
    with pytest.raises(IncompatibleError, match=r"solver=midpoint needs a model of any time; use euler"):
        config = ControlConfig(kind="ddpm", observation=2, action=2, width=8, depth=1, steps=4)
        policy = ControlPolicy(config, new_network(config), None, None, torch.device("cpu"))
        sampler(policy, of_policy(policy, 5), draw)
