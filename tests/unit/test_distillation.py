"""Distillation: expected gradients by enumeration, identities, and divergences of whole distributions in a policy."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flowrl import composition
from flowrl.config import Config
from flowrl.estimators.masked import MaskedViews
from flowrl.estimators.tokens import TokenRows, Tokens
from flowrl.estimators.views import RandomCount
from flowrl.math.divergences import coarse_divergence, jensen_shannon
from flowrl.models.teachers import Panel, Peer
from flowrl.models.tiny_text import TinyText
from flowrl.parts.distillation import ClippedDistance, Distil, Divergence, TeacherReward, discounted
from flowrl.parts.objectives import ScoreFunction
from flowrl.startup.policies import open_policy
from flowrl.types import DATA, IncompatibleError, Likelihood, Prompt, TokenTrace, prompts_of
from tests.contract.toys import disturb, gradients, roll, rollout_of, small, start, table_of
from tests.training import config_of

V, L = 3, 3


class World:
    """A student and a teacher whose every completion of three tokens can be listed."""

    def __init__(self) -> None:
        self.policy = TinyText(V, L, causal=True, scale=1.0, seed=1, dtype=torch.float64)
        with torch.no_grad():
            self.policy.table.add_(torch.randn(self.policy.table.shape, generator=torch.Generator().manual_seed(2)))
        self.policy.weights.keep_frozen("teacher")
        self.teacher = self.policy.table.detach().clone()
        with torch.no_grad():
            self.policy.table.copy_(TinyText(V, L, causal=True, seed=5, dtype=torch.float64).table)
        self.tokens = torch.tensor(list(product(range(V), repeat=L)))
        self.mask = torch.ones_like(self.tokens, dtype=torch.bool)
        self.condition = self.policy.condition(prompts_of([""] * len(self.tokens)))
        self.rows = TokenRows(self.tokens, self.mask, None, 1.0)
        self.estimator = Tokens(divergence=1.0)

    def measured(self) -> Likelihood:
        return self.estimator(self.policy, self.rows, self.condition, ("teacher",))

    def both(self) -> tuple[Tensor, Tensor]:
        """[27, L, V] log-probabilities of the student, with gradient, and of the teacher along every completion."""
        rows, kept = self.policy._rows(self.condition, self.tokens)[0], self.policy.table.data
        self.policy.table.data = self.teacher
        others = self.policy._rows(self.condition, self.tokens)[0].detach()
        self.policy.table.data = kept
        return rows.log_softmax(-1), others.log_softmax(-1)

    def gradient(self, loss: Tensor) -> Tensor:
        return torch.autograd.grad(loss, self.policy.table)[0]

    def expected(self, part: TeacherReward) -> Tensor:
        """The expected gradient of the loss."""
        old = self.measured()
        old = Likelihood(old.logp.detach(), {name: value.detach() for name, value in old.extra.items()})
        table = part(table_of(torch.zeros_like(old.logp), self.mask, old, self.rows))
        live = self.measured()
        batch = table.batch(torch.arange(len(self.tokens)), slice(None), torch.ones_like(old.logp), live)
        chance = old.logp.double().sum(dim=1).exp()
        return self.gradient((chance[:, None] * ScoreFunction()(live, batch)).sum())


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def token_kl(world: World) -> Tensor:
    """The reverse KL at every token, of states that are data: [27, L] weighted by the chance of what came before."""
    student, teacher = world.both()
    kl = (student.exp() * (student - teacher)).sum(-1)
    said = student.detach().gather(-1, world.tokens[..., None])[..., 0].sum(dim=1).exp()
    return (said[:, None] * kl).sum()


def sequence_kl(world: World) -> Tensor:
    student, teacher = (each.gather(-1, world.tokens[..., None])[..., 0].sum(dim=1) for each in world.both())
    return (student.exp() * (student - teacher)).sum()


def test_a_reward_per_token_follows_the_token_wise_kl(world: World) -> None:
    found = world.expected(TeacherReward())
    wanted, whole = world.gradient(token_kl(world)), world.gradient(sequence_kl(world))
    assert torch.allclose(found, wanted, atol=1e-7) and float(wanted.norm()) > 0.1
    assert float((found - whole).norm()) > 0.05 * float(whole.norm())  # another quantity, not another estimate


def test_later_rewards_follow_the_kl_of_completions(world: World) -> None:
    assert torch.allclose(world.expected(TeacherReward(gamma=1.0)), world.gradient(sequence_kl(world)), atol=1e-7)


def test_the_baseline_changes_the_noise_alone(world: World) -> None:
    assert torch.allclose(world.expected(TeacherReward(baseline=True)), world.expected(TeacherReward()), atol=1e-7)


def state(p: Tensor, t: Tensor) -> dict[bool, tuple[Tensor, float]]:
    """Of one state: the expected gradient in the logits and the expected square of a sample's, without and with the
    baseline."""
    ratio, kl = (p / t).log()[:, None], (p * (p / t).log()).sum().expand(len(p), 1)
    old = Likelihood(p.log()[:, None], {"log_ratio/teacher": ratio, "divergence/teacher": kl})
    given = table_of(torch.zeros_like(ratio), torch.ones_like(ratio, dtype=torch.bool), old)
    scores = torch.eye(len(p)).double() - p
    found = {}
    for baseline in (False, True):
        advantage = TeacherReward(baseline=baseline)(given).advantage[:, 0]
        found[baseline] = ((p * advantage) @ scores, float((p * advantage**2) @ scores.square().sum(dim=1)))
    return found


def test_the_baseline_lowers_the_noise_of_most_states() -> None:
    """Of random ones of twenty tokens: not of all, because a state's value is not the best baseline."""
    generator = torch.Generator().manual_seed(0)
    lower = 0
    for _ in range(200):
        p, t = torch.randn(2, 20, generator=generator, dtype=torch.float64).softmax(dim=-1)
        without, found = state(p, t).values()
        assert torch.allclose(without[0], found[0])
        lower += found[1] < without[1]
    assert 120 < lower < 200


def test_vopd_on_one_state() -> None:
    """Golden numbers of a policy softmax(.3, -.2, .5, 0) and a teacher (.1, .2, .3, .4)."""
    p, t = torch.tensor([0.3, -0.2, 0.5, 0.0]).double().softmax(0), torch.tensor([0.1, 0.2, 0.3, 0.4]).double()
    kl = (p * (p / t).log()).sum()
    without, found = state(p, t).values()
    for expected, _ in (without, found):
        assert torch.allclose(expected, -p * ((p / t).log() - kl))  # minus the gradient of the KL
    assert float(-kl) == pytest.approx(-0.169988, abs=1e-6)
    assert found[1] == pytest.approx(0.285154, abs=1e-6) and without[1] == pytest.approx(0.294162, abs=1e-6)


def test_the_exact_forms_agree(world: World) -> None:
    """GKD's reverse end is the expectation of the policy-gradient form, token by token; at the teacher all is 0."""
    live = world.measured()
    chance = live.logp.detach().double().sum(dim=1).exp()
    assert torch.allclose(
        world.gradient((chance[:, None] * Distil()(live, None)).sum()),  # pyright: ignore[reportArgumentType]
        world.expected(TeacherReward()),
        atol=1e-7,
    )
    same = World()
    with torch.no_grad():
        same.policy.table.copy_(same.teacher)
    for beta in (0.0, 0.3, 1.0):
        same.estimator = Tokens(divergence=beta)
        live = same.measured()
        assert float(live.extra["divergence/teacher"].detach().abs().max()) < 1e-12
        assert float(same.gradient(Divergence()(live, None).sum()).abs().max()) < 1e-12  # pyright: ignore


def test_few_tokens_of_the_teacher_and_the_rest(world: World) -> None:
    """The divergence of the teacher's likeliest token and any other one, by enumeration; all tokens are all."""
    other, before = World(), world.measured().extra["divergence/teacher"].detach()
    other.estimator = Tokens(divergence=1.0, top=V)
    assert torch.equal(other.measured().extra["divergence/teacher"].detach(), before)
    other.estimator = Tokens(divergence=1.0, top=1)
    found = other.measured().extra["divergence/teacher"]
    mine, theirs = (each.exp() for each in other.both())
    best = theirs.argmax(dim=-1, keepdim=True)
    p, q = mine.gather(-1, best)[..., 0], theirs.gather(-1, best)[..., 0]
    wanted = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    assert torch.allclose(found.double(), wanted, atol=1e-6) and bool((wanted <= before + 1e-9).all())


def table(ratio: Tensor, mask: Tensor, task: float = 0.0) -> Any:
    old = Likelihood(torch.zeros_like(ratio), {"log_ratio/teacher": ratio})
    return table_of(torch.full_like(ratio, task), mask, old)


def test_sums_and_weights_of_rewards() -> None:
    ratio = torch.tensor([[0.4, -0.2, 0.1, 7.0], [1.0, 1.0, 1.0, 1.0]]).double()
    mask = torch.tensor([[True, True, True, False], [True] * 4])
    half = TeacherReward(gamma=0.5)(table(ratio, mask)).advantage
    assert torch.allclose(half[0, :3], -torch.tensor([0.4 - 0.1 + 0.025, -0.2 + 0.05, 0.1]).double())
    assert torch.allclose(half[1], -torch.tensor([1.875, 1.75, 1.5, 1.0]).double())  # not gamma^t times too small
    even = TeacherReward(gamma=0.5, normalised=True)(table(ratio, mask)).advantage
    assert torch.allclose(even[1], -torch.ones(4).double())
    weighted = TeacherReward(decay=0.5)(table(ratio, mask)).advantage
    shares = torch.tensor([0.0, 0.4 / 0.7, 0.6 / 0.7]).double()
    assert torch.allclose(weighted[0, :3], -ratio[0, :3] * (1 + 0.5 * (1 - shares)))
    assert weighted[1].tolist() == pytest.approx([-1.5, -1.375, -1.25, -1.125])
    both = TeacherReward(task=2.0, weight=0.5, clip=5.5)(table(ratio, mask, task=3.0)).advantage
    assert both[0].tolist() == pytest.approx([5.5, 5.5, 5.5, 5.5])
    assert TeacherReward(task=1.0)(table(ratio, mask, task=3.0)).advantage[0, 0] == pytest.approx(2.6)
    assert torch.equal(discounted(ratio, 0.0), ratio)


WRONG = {
    "discounts later rewards": lambda: TeacherReward(gamma=1.5),
    "set gamma=0": lambda: TeacherReward(gamma=0.5, baseline=True),
    "weigh late decisions more": lambda: TeacherReward(decay=-0.5),
    "give more than 0": lambda: Distil(scale=0.0),
    "would be rewarded": lambda: Divergence(weight=-1.0),
    "mixes two distributions": lambda: Tokens(divergence=1.5),
    "counts the tokens of a divergence": lambda: Tokens(top=3),
}


@pytest.mark.parametrize("said", WRONG)
def test_options_that_mean_nothing(said: str) -> None:
    with pytest.raises(ValueError, match=said):
        WRONG[said]()


def test_a_baseline_needs_the_divergence() -> None:
    ratio = torch.zeros(1, 2).double()
    with pytest.raises(IncompatibleError, match=r"estimator\.divergence=1"):
        TeacherReward(baseline=True)(table(ratio, ratio == 0))


@pytest.mark.parametrize("route", ["states", "whole"])
def test_a_policy_measures_the_divergence_of_its_own_logits(route: str, tmp_path: Path) -> None:
    """A language model of transformers and its own adapter, a peer's place taken by a panel of both."""
    policy = open_policy(Config.of({**config_of("grpo", "countdown"), "out": str(tmp_path)}))
    policy.network.head = replace(policy.network.head, route=route)
    disturb(policy, 0.05)
    policy.weights.keep_frozen("teacher")
    disturb(policy, 0.03)
    policy.weights.keep_frozen("other")
    disturb(policy, 0.02)
    prompts = [Prompt("2 3 5 = 10", 0, {"task": "a"}), Prompt("7 1 1 = 9", 1, {"task": "b"})]
    policy.teachers = {"panel": Panel("task", {"a": "teacher", "b": "other"})}
    condition = policy.condition(prompts)
    assert condition.origin is not None and condition.origin.prompts == tuple(prompts)
    tokens = torch.randint(5, 15, (2, 6), generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    shown, logits = {}, {}
    for name in ("teacher", "other", "panel"):
        with policy.using(name) as asked:
            shown[name] = asked.score(condition, tokens, mask, tokens, show=True).shown
            if name != "panel":
                logits[name] = asked.logits(condition, tokens, mask)
    first = mask.nonzero()[:, 0] == 0
    logits["panel"] = torch.where(first[:, None], logits["teacher"], logits["other"])
    live = policy.score(condition, tokens, mask, tokens, beside=shown, beta=0.3, temperature=0.7)
    mine = policy.logits(condition, tokens, mask)
    for name, theirs in logits.items():
        wanted = jensen_shannon(mine / 0.7, theirs / 0.7, 0.3).value
        found = live.divergence[name]
        assert torch.allclose(found[mask], wanted, rtol=1e-3, atol=1e-7) and bool((found[~mask] == 0).all())
        pair = [torch.autograd.grad(v.sum(), policy.parameters(), retain_graph=True)[1] for v in (found, wanted)]
        assert torch.allclose(*pair, rtol=1e-2, atol=1e-6) and float(pair[0].abs().max()) > 1e-5
    how = {"beside": shown, "beta": 0.3, "top": 3, "temperature": 0.7, "collision": True}
    few = policy.score(condition, tokens, mask, tokens, **how)
    for name, theirs in logits.items():
        wanted = coarse_divergence(mine / 0.7, theirs / 0.7, 0.3, 3).value
        assert torch.allclose(few.divergence[name][mask], wanted, rtol=1e-3, atol=1e-7)
    assert few.collision is not None and few.entropy is not None
    again = -(mine / 0.7).softmax(dim=-1).square().sum(dim=-1).log()
    assert torch.allclose(few.collision[mask], again, rtol=1e-4) and bool((few.collision[~mask] == 0).all())


def test_samples_may_be_cooler_than_the_loss() -> None:
    made = composition.build("gkd")
    assert (made.sampler.temperature, made.estimator.tempered, made.estimator.divergence) == (0.9, False, 0.5)
    policy, tokens = TinyText(3, 3, causal=True), torch.zeros(1, 3, dtype=torch.int64)
    trace = TokenTrace(tokens, tokens == 0, 0.9, logp=torch.zeros(1, 3))
    rollout = rollout_of(policy.condition(prompts_of([""])), tokens, trace)
    found = [Tokens(tempered=each).probe(rollout, policy, torch.zeros(1)).temperature for each in (True, False)]
    assert found == [0.9, 1.0]
    with pytest.raises(IncompatibleError, match=r"estimator\.tempered=false"):
        Tokens(tempered=False, trust_rollout=True).probe(rollout, policy, torch.zeros(1))


# ------------------------------------------------------------------------------------------------------ flows
def normal_step(objective: Any, rewards: Any = None) -> tuple[float, float]:
    """``(expected gradient, exact gradient of the KL)`` in the mean of a step of one number, by quadrature over what is
    drawn: student N(.4, .3), teacher N(-.6, .3)."""
    from numpy.polynomial.hermite_e import hermegauss

    nodes, chances = (torch.as_tensor(each, dtype=torch.float64) for each in hermegauss(40))
    mean, taught, variance = torch.tensor(0.4, dtype=torch.float64, requires_grad=True), -0.6, 0.3
    drawn = mean.detach() + variance**0.5 * nodes
    logp = -((drawn - mean) ** 2) / (2 * variance)
    kl = ((mean - taught) ** 2 / (2 * variance)).expand(len(nodes))
    ratio = (logp + (drawn - taught) ** 2 / (2 * variance)).detach()
    live = Likelihood(logp[:, None], {"kl/teacher": kl[:, None]})
    mask = torch.ones(len(nodes), 1, dtype=torch.bool)
    old = Likelihood(logp.detach()[:, None], {"log_ratio/teacher": ratio[:, None]})
    table = table_of(torch.zeros(len(nodes), 1).double(), mask, old)
    table = table if rewards is None else rewards(table)
    batch = table.batch(torch.arange(len(nodes)), slice(None), torch.ones(len(nodes), 1), live)
    loss = (chances / chances.sum()) @ objective(live, batch)[:, 0]
    found = torch.autograd.grad(loss, mean, retain_graph=True)[0]
    return float(found), float(torch.autograd.grad(kl[0], mean)[0])


def test_a_steps_own_kl_teaches_only_by_its_gradient() -> None:
    """Flow-OPD: with the KL as a constant advantage nothing is expected of the gradient; the release does not stop it;
    the log-ratio of what was drawn works as an advantage."""
    wide = {"low": 0.5, "high": 0.5}
    found, exact = normal_step(ClippedDistance(**wide))
    assert exact == pytest.approx(10 / 3) and found == pytest.approx(exact, rel=1e-6)
    assert normal_step(ClippedDistance(**wide, detach=True))[0] == pytest.approx(0, abs=1e-9)
    assert normal_step(ClippedDistance(**wide, bound=1.0))[0] == pytest.approx(0, abs=1e-9)  # beyond the bound
    assert normal_step(ScoreFunction(), TeacherReward())[0] == pytest.approx(exact, rel=1e-6)
    assert normal_step(Distil(of="kl"))[0] == pytest.approx(exact)


def test_options_of_flow_opd() -> None:
    made = {mode: composition.build({"use": "flow_opd", "mode": mode}) for mode in ("mixed", "gkd", "sampled")}
    assert made["mixed"].objective.task == 1.0 and made["mixed"].min_group == 2
    assert made["gkd"].objective == Distil(of="kl") and made["gkd"].regularizers[0].to == "reference"
    assert made["sampled"].token_advantage == (TeacherReward(clip=5.0),)


def test_iterations_of_own_samples_and_others() -> None:
    """A coin for every iteration, the same for all of its samples; the teacher's own samples instead of recorded."""
    algorithm = small("gkd", on_policy=0.5)
    sampler: Any = algorithm.sampler
    policy = start(algorithm)
    sources = [set(roll(algorithm, policy, iteration).rollout.source.tolist()) for iteration in range(30)]
    assert all(len(each) == 1 for each in sources) and 5 < sum(each == {DATA} for each in sources) < 25
    told = replace(sampler, share=0.0, to="teacher")
    made = roll(replace(algorithm, sampler=told), policy).rollout
    plain = roll(replace(algorithm, sampler=sampler.sampler), policy).rollout
    assert made.source.unique().tolist() == [DATA] and made.trace.logp is None and told.weight_sets == ("teacher",)
    assert (made.final == 1).double().mean() > (plain.final == 1).double().mean() + 0.2  # what the toy's teacher says
    own = roll(replace(algorithm, sampler=replace(sampler, share=1.0)), policy).rollout
    assert torch.equal(own.final, plain.final)
    with pytest.raises(ValueError, match="is a probability"):
        replace(sampler, share=1.5)


def test_masked_models_are_compared_at_the_positions_asked_for() -> None:
    """Per cell: the divergence of the two tables' distributions there, 0 elsewhere, also with views of nothing."""
    policy = TinyText(V, L, seed=3)
    policy.weights.keep_frozen("teacher")
    kept = policy.table.detach().clone()
    disturb(policy, 0.5)
    tokens = torch.tensor([[0, 1, 2], [2, 2, 1]])
    trace = TokenTrace(tokens, torch.ones_like(tokens, dtype=torch.bool), 1.0)
    rollout = rollout_of(policy.condition(prompts_of(["", ""])), tokens, trace)
    estimator = MaskedViews(views=RandomCount(draws=3), per="cell", divergence=0.3)
    rows = estimator.probe(rollout, policy, torch.tensor([5, 6]))
    live = estimator(policy, rows, rollout.condition, ("teacher",))
    states, place = policy.state(rows.inputs)[..., None].expand(rows.inputs.shape), torch.arange(L)
    tables = [each[0, states, place].double() for each in (policy.table.detach(), kept)]
    wanted = torch.where(rows.targets, jensen_shannon(*tables, 0.3).value, 0.0).flatten(1)
    found = live.extra["divergence/teacher"]
    assert torch.allclose(found.detach().double(), wanted, atol=1e-6) and float(wanted.max()) > 1e-3
    assert found.requires_grad
    empty = replace(rows, targets=torch.zeros_like(rows.targets))
    nothing = estimator(policy, empty, rollout.condition, ("teacher",)).extra["divergence/teacher"]
    assert nothing.requires_grad and float(nothing.detach().abs().max()) == 0


def test_a_peer_samples_as_it_does_alone() -> None:
    """Another model in the teacher's place: its samples, its divergences, no gradient of its own."""
    algorithm = small("gkd")
    sampler: Any = algorithm.sampler
    student, peer = start(algorithm), start(algorithm)
    disturb(peer, 1.0)
    student.teachers = {"teacher": Peer(peer)}
    told = replace(algorithm, sampler=replace(sampler, share=0.0, to="teacher"))
    alone = roll(replace(algorithm, sampler=sampler.sampler), peer).rollout
    assert torch.equal(roll(told, student).rollout.final, alone.final)
    found = gradients(told, roll(told, student))[0]
    assert all(parameter.grad is None for parameter in peer.parameters())
    twin = start(algorithm)
    with torch.no_grad():
        for key, value in zip(("table", "critic"), peer.parameters(), strict=True):
            twin.weights._sets["teacher"][key].copy_(value)
    assert torch.allclose(gradients(told, roll(told, twin))[0], found) and float(found.norm()) > 0
