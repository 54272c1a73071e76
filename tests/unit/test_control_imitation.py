"""Control policies that imitate: guidance between labels, two evaluations, chunks that remember, demonstrations."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flowrl.composition import build
from flowrl.data import load_prompts
from flowrl.errors import UserError
from flowrl.estimators.episodes import PerDecision
from flowrl.estimators.imitation import ChunkMatching, LabelledMatching
from flowrl.estimators.matching import Matching
from flowrl.math.random import each, normal, seeds
from flowrl.models.control import new, untrained
from flowrl.models.control.condition import ControlCondition
from flowrl.models.control.load import load_control, read_config, save_control
from flowrl.models.control.policy import ControlConfig, ControlPolicy
from flowrl.parts.episodes import Improved
from flowrl.samplers.chunks import sample
from flowrl.samplers.demonstrations import Demonstrations
from flowrl.samplers.episodes import EpisodeSampler
from flowrl.samplers.flow import FlowSampler
from flowrl.samplers.verified import PastVerified
from flowrl.step import UpdateSettings, improve
from flowrl.types import Draw, Episodes, IncompatibleError, Prompt, Rollout, Scores
from tests.contract.toy_environment import toy_policy
from tests.contract.toys import disturb, roll, small, start, table_of

TOY = "tests.contract.toy_environment:make"
PLAIN = ControlConfig(observation=1, action=1)


class Analytic(ControlPolicy):
    """Whose velocity is a function of state, time and label [n] instead of a network's."""

    def __init__(self, config: ControlConfig, answer: Any) -> None:
        network = new.untrained(config)
        super().__init__(config, network, None, None, torch.device("cpu"))
        self.answer = answer

    def _asked(self, x: Tensor, t: Tensor, condition: Any, label: Tensor | None) -> Tensor:
        label = torch.zeros(len(x)) if label is None else label
        return self.answer(x, t.to(x)[:, None, None], label[:, None, None].to(x))


def made(policy: ControlPolicy, count: int, sampler: Any, seed: int = 0) -> Tensor:
    """Chunks [count, h, d] for observations of zeros."""
    config, draw = policy.config, Draw.of(seeds(seed, count=count), torch.zeros(count).long(), 0, 0)
    seen = torch.zeros(count, config.history, config.observation)
    return sampler(policy, ControlCondition(count).seeing(seen), draw).final


def learned(policy: ControlPolicy, algorithm: Any, rows: list[Prompt], updates: int, lr: float) -> None:
    """Learn of demonstrations, all of them in every update; the critic stays."""
    optimizer = torch.optim.Adam(policy.network.parameters(), lr=lr)
    count = len(rows)
    for number in range(updates):
        draw = Draw.of(seeds(0, number, count=count), torch.arange(count), number, 0, rows)
        rollout = algorithm.sampler(policy, policy.condition(rows), draw)
        told = {"source": rollout.source, "feedback": rollout.feedback}
        one, index = torch.ones(1).double(), torch.arange(count)
        scores = Scores(rollout.final[:, :1], one, ("episode_return",), index, index, torch.ones(count).bool(), **told)
        improve(policy, optimizer, algorithm, rollout, scores, algorithm.advantage(scores, {}), UpdateSettings())


def two_arms(count: int, **columns: Any) -> list[Prompt]:
    """Episodes of one step: half of them do 1, half -1."""
    arms = [1.0, -1.0] * (count // 2)
    paid = [{key: [pay(arm)] for key, pay in columns.items()} for arm in arms]
    return [Prompt("p", i, {"observed": [[0.0]], "action": [[arm]], **paid[i]}) for i, arm in enumerate(arms)]


# ----------------------------------------------------------------------------------------------------------- guidance
def unit(x: Tensor, t: Tensor, mean: Tensor) -> Tensor:
    """The velocity of N(mean, 1): ``E[e - a | x]``."""
    return -mean + (2 * t - 1) / ((1 - t) ** 2 + t**2) * (x - (1 - t) * mean)


@pytest.mark.parametrize("w", [0.0, 1.0, 3.0])
def test_guidance_between_gaussians_of_one_variance_moves_the_mean_by_w(w: float) -> None:
    """Of N(0, 1) without the label and N(1, 1) with it the guided flow is that of N(w, 1), whatever w."""
    policy = Analytic(replace(PLAIN, conditions=1), unit)
    chunks = made(policy, 20000, FlowSampler(steps=50, guidance=w))[:, 0, 0].double()
    error = 1 / math.sqrt(len(chunks))
    assert float(chunks.mean()) == pytest.approx(w, abs=3 * error)
    euler = made(Analytic(PLAIN, unit), 20000, FlowSampler(steps=50, guidance=1.0))[:, 0, 0].double()
    assert float(chunks.std()) == pytest.approx(float(euler.std()), rel=1e-4)
    assert float(chunks.std()) == pytest.approx(1, abs=0.03)


def labelled(scale: float = 0.5, **config: Any) -> ControlPolicy:
    policy = toy_policy(conditions=1, **config)
    disturb(policy)
    with torch.no_grad():
        policy.network.labels.copy_(scale * torch.randn(1, 32, generator=torch.Generator().manual_seed(3)))
    return policy


def test_w_of_one_is_the_label_alone_and_of_zero_the_network_without_it() -> None:
    policy, plain = labelled(), toy_policy()
    state = {name: value for name, value in policy.network.state_dict().items() if name != "labels"}
    plain.network.load_state_dict(state)
    x, t, seen = normal(torch.arange(9), (1, 2), stream=0), torch.rand(9), normal(torch.arange(9), (1, 2), stream=1)
    condition = ControlCondition(9).seeing(seen)
    zero, one, three = (policy.velocity(x, t, condition, guidance=w) for w in (0.0, 1.0, 3.0))
    assert torch.equal(zero, plain.velocity(x, t, condition))
    assert torch.equal(one, policy.network(seen, x, t, torch.ones(9).long()))
    assert float((one - zero).detach().abs().max()) > 0.01
    assert torch.allclose(three, zero + 3 * (one - zero), atol=1e-6)
    told = torch.arange(9) % 2
    mixed = policy.velocity(x, t, condition.hearing(told), guidance=7.0)
    assert torch.allclose(mixed, torch.where(told[:, None, None] == 1, one, zero), atol=1e-6)
    draws = {w: made(policy, 9, FlowSampler(steps=4, guidance=w)) for w in (0.0, 1.0)}
    assert torch.equal(draws[0.0], made(plain, 9, FlowSampler(steps=4, guidance=1.0)))
    assert not torch.allclose(draws[0.0], draws[1.0])


def test_gradients_of_a_guided_velocity_go_where_they_are_asked_to() -> None:
    policy = labelled()
    x, t, seen = torch.randn(5, 1, 2), torch.rand(5), torch.randn(5, 1, 2)
    condition = ControlCondition(5).seeing(seen)

    def gradient(value: Tensor) -> Tensor:
        return torch.autograd.grad(value.square().sum(), policy.network.body[0].weight)[0]

    plain = policy.velocity(x, t, condition, guidance=0.0).detach()
    through = plain + 2 * (policy.velocity(x, t, condition, guidance=1.0) - plain)
    one = gradient(through)
    assert torch.allclose(gradient(policy.velocity(x, t, condition, guidance=2.0)), one, rtol=1e-5)
    both = gradient(policy.velocity(x, t, condition, guidance=2.0, cfg_grad="both"))
    assert float((both - one).norm() / one.norm()) > 0.1


def test_a_model_without_labels_begins_to_hear_them_without_effect(tmp_path: Path) -> None:
    plain, hearing = load_control("avoid"), load_control("avoid", conditions=1, guidance=2.0)
    seen = torch.zeros(3, 1, 8)
    condition = ControlCondition(3).seeing(seen)
    x, t = torch.randn(3, 4, 2), torch.rand(3)
    for w in (None, 0.0, 1.0):
        assert torch.equal(hearing.velocity(x, t, condition, guidance=w), plain.velocity(x, t, condition))
    with pytest.raises(IncompatibleError, match="hears no label"):
        plain.velocity(x, t, condition, guidance=2.0)
    assert torch.equal(hearing.velocity(x, t, condition.hearing(torch.ones(3).long())), plain.velocity(x, t, condition))
    with torch.no_grad():
        hearing.network.labels.add_(1)
    save_control(hearing.config, hearing.network, tmp_path)
    again = load_control(tmp_path)
    assert again.config.guidance == 2 and again.config.conditions == 1
    step = 1 / 10
    position = torch.zeros(3, 4, 2)
    for k in range(10):  # as it acts by itself: Euler steps from 0 along the guided velocity
        now = torch.full((3,), 1 - k * step)
        v0, v1 = (again.velocity(position, now, condition, guidance=w) for w in (0.0, 1.0))
        position = position - step * (v0 + 2 * (v1 - v0))
    assert torch.allclose(again.select_action(torch.zeros(3, 8)), again.in_own_units(position)[:, 0], atol=1e-5)


@pytest.mark.slow
def test_a_label_is_learned_of_what_is_better_and_guidance_improves_on_it() -> None:
    """Data of two arms in equal shares, of which one pays: without the label both, with it the one that pays, and the
    share of the better one rises with w. Values are those of the data, so that the advantage is half a reward."""
    torch.manual_seed(0)
    algorithm = build(
        {"use": "cfgrl", "sampler": {"use": "demonstrations", "length": 1, "executed": True}, "draws": 16}
    )
    config = replace(PLAIN, width=64, depth=2, conditions=1)
    policy = load_with(config)
    rows = two_arms(32, reward=lambda arm: float(arm > 0))
    assert policy.critic is not None
    with torch.no_grad():
        for parameter in policy.critic_parameters():
            parameter.zero_()
        policy.critic.body[-1].bias.fill_(0.5)
    learned(policy, algorithm, rows, 250, 5e-3)
    share = [float((made(policy, 1000, FlowSampler(steps=16, guidance=w)) > 0).double().mean()) for w in (0, 0.5, 1, 2)]
    assert share[0] == pytest.approx(0.5, abs=0.1) and share[2] > 0.97 and share[3] > 0.97
    assert share[0] < share[1] < share[2] + 0.01


def load_with(config: ControlConfig) -> ControlPolicy:
    from flowrl.models.control.network import CriticNetwork

    network = new.untrained(config)
    return ControlPolicy(config, network, CriticNetwork(config.observation, 8, 1), None, torch.device("cpu"))


def test_what_is_learned_with_and_without_a_label() -> None:
    algorithm = small("cfgrl", 3)
    policy = start(algorithm)
    it = roll(algorithm, policy)
    rows: Any = algorithm.estimator.probe(it.rollout, policy, it.rollout.seeds)
    assert rows.per == 2 and torch.equal(rows.inner.t[:, 0], rows.inner.t[:, 1])
    advantage = torch.randn(rows.alive.shape, dtype=torch.float64)
    table = Improved(null=0.1)(replace(table_of(advantage, rows.alive), rows=rows))
    assert torch.equal(table.advantage[:, 0::2], torch.full_like(advantage[:, 0::2], 0.2))
    assert torch.equal(table.advantage[:, 1::2], 2 * (advantage[:, 1::2] > 0).double())
    with pytest.raises(ValueError, match="null"):
        Improved(null=0.0)


def test_both_halves_of_a_decision_are_asked_at_one_point() -> None:
    """Where the label has no effect, the errors with and without it are equal, and those of `Matching`."""
    policy = toy_policy(conditions=1)
    clean = normal(torch.arange(4), (1, 2), stream=2)
    condition = policy.condition([]).seeing(torch.zeros(4, 1, 2))
    draw = Draw.of(torch.arange(4), torch.arange(4), 0, 0)
    rollout = Rollout.of(draw, condition, clean, times=policy.times(4))
    ours, plain = LabelledMatching(draws=3), Matching(draws=3)
    found = ours(policy, ours.probe(rollout, policy, draw.seeds), condition).logp
    wanted = plain(policy, plain.probe(rollout, policy, draw.seeds), condition).logp
    assert torch.equal(found, torch.cat([wanted, wanted], dim=1)) and ours.decisions(1) == (6, 6)


def test_labels_are_of_flows_and_guidance_a_number(tmp_path: Path) -> None:
    config = replace(PLAIN, kind="gaussian")
    save_control(config, new.untrained(config), tmp_path)
    with pytest.raises(UserError, match="of kind gaussian; guidance between labels"):
        load_control(tmp_path, conditions=1)
    with pytest.raises(UserError, match="trains one of kind mip"):
        load_control(tmp_path, kind="mip")
    for key, value, words in (
        ("guidance", "much", "give a number"),
        ("past", 1, "no room for past=1"),
        ("execute", -1, "0 or more"),
        ("steps", 3, "acts in 2; set 2"),
    ):
        given = {"observation": 1, "action": 1, key: value, "kind": "mip" if key == "steps" else "flow"}
        (tmp_path / "config.json").write_text(json.dumps(given))
        with pytest.raises(UserError, match=words):
            read_config(tmp_path)


# ----------------------------------------------------------------------------------------------------------- two modes
def of_two_modes(x: Tensor, t: Tensor, _: Tensor) -> Tensor:
    """The velocity of a mixture of the points 1 and -1: ``(x - E[a | x]) / t``."""
    return (x - torch.tanh((1 - t) * x / t**2)) / t


@pytest.mark.parametrize(("steps", "share"), [(2, 0.1410), (5, 0.963), (10, 0.9998), (20, 1.0)])
def test_a_flow_keeps_both_modes_and_few_steps_end_between_them(steps: int, share: float) -> None:
    """The share of samples within .1 of a mode; of two steps ``P(|tanh z| > .9)``."""
    chunks = made(Analytic(PLAIN, of_two_modes), 40000, FlowSampler(steps=steps, guidance=1.0))[:, 0, 0].double()
    near = ((chunks.abs() - 1).abs() < 0.1).double().mean()
    assert float(near) == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / 40000) + 3e-4)
    assert float((chunks > 0).double().mean()) == pytest.approx(0.5, abs=0.01)
    if steps == 2:
        assert share == pytest.approx(math.erfc(math.atanh(0.9) / math.sqrt(2)), abs=1e-4)


@pytest.mark.slow
def test_mip_answers_the_mean_of_two_modes() -> None:
    config = replace(PLAIN, kind="mip", steps=2, width=64, depth=2)
    policy = load_with(config)
    learned(policy, build({"use": "mip", "length": 1}), two_arms(64), 250, 5e-3)
    assert float(made(policy, 50, FlowSampler(steps=2, guidance=1.0)).abs().max()) < 0.25
    seen, t = torch.zeros(2, 1, 1), torch.full((2,), 0.1 / 1.1)
    answer = policy.network(seen, torch.tensor([[[0.95]], [[-0.95]]]), t)[:, 0, 0]
    assert torch.allclose(answer, torch.tensor([1.0, -1.0]), atol=0.1)  # E[a | a + .1 e] = tanh(100 y)


def test_mip_acts_by_two_evaluations_and_is_a_flow_of_two_fixed_times() -> None:
    """``a_1 = f(s, 0)``, ``a_2 = f(s, a_1)``; and Euler steps of the flow whose prediction of the data that is."""
    policy = toy_policy(kind="mip")
    disturb(policy, 0.3)
    seen, count = normal(torch.arange(7), (1, 2), stream=5), 7
    times = policy.times(2)
    first = policy.network(seen, torch.zeros(count, 1, 2), torch.ones(count))
    second = policy.network(seen, first, times[1].float().expand(count))
    condition = ControlCondition(count).seeing(seen)
    draw = Draw.of(seeds(0, count=count), torch.zeros(count).long(), 0, 0)
    found = FlowSampler(steps=2, guidance=1.0)(policy, condition, draw).final
    assert torch.allclose(found, second, atol=1e-5)
    assert torch.allclose(policy.gaussian(condition)[0], first)
    assert torch.allclose(policy.chunk(seen), policy.in_own_units(second), atol=1e-5)
    assert float(times[1] / (1 - times[1])) == pytest.approx(0.1) and float(times[0]) == 1 and float(times[2]) == 0
    with pytest.raises(UserError, match="acts in 2 steps"):
        policy.times(10)


# --------------------------------------------------------------------------------------------------------------- past
def rolled(policy: ControlPolicy, sampler: Any, count: int = 6, rows: int = 100) -> Episodes:
    prompts = [Prompt("p", 0, {})] * count
    draw = Draw.of(seeds(1, "episodes", count=count), torch.zeros(count).long(), 0, 0, prompts)
    episodes = EpisodeSampler(sampler=sampler, environment=TOY, decisions=3)
    trace = sample(episodes, policy, policy.condition(prompts), draw, rows).trace
    assert isinstance(trace, Episodes)
    return trace


FLOW = FlowSampler(steps=3, guidance=1.0)


def remembering(past: int = 1) -> ControlPolicy:
    policy = toy_policy(chunk=past + 1, past=past, history=2)
    disturb(policy, 0.3)
    return policy


def test_one_candidate_without_a_past_is_diffusion_policy() -> None:
    plain, ours = build("diffusion_policy"), build("ptp")
    policy = toy_policy()
    assert torch.equal(rolled(policy, FLOW).actions, rolled(policy, PastVerified(sampler=FLOW)).actions)
    assert torch.equal(rolled(policy, FLOW).actions, rolled(policy, PastVerified(sampler=FLOW, candidates=5)).actions)
    mine = remembering()
    assert torch.equal(rolled(mine, FLOW).actions, rolled(mine, PastVerified(sampler=FLOW)).actions)
    found = []
    for algorithm in (plain, ours, build({"use": "ptp", "past_weight": 0.0})):
        net, rows = toy_policy(critic=False), two_steps(6)
        learned(net, algorithm, rows, 3, 1e-3)
        found.append(torch.cat([p.flatten() for p in net.network.parameters()]))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def two_steps(count: int) -> list[Prompt]:
    made = normal(torch.arange(count), (2, 4), stream=9).tolist()
    columns = [{"observed": [s[:2] for s in row], "action": [s[2:] for s in row]} for row in made]
    return [Prompt("p", i, each) for i, each in enumerate(columns)]


def test_the_candidate_is_taken_whose_past_is_nearest_to_what_was_done() -> None:
    """Decision by decision against a choice by hand among the same candidates."""
    policy, count = remembering(), 6
    trace = rolled(policy, PastVerified(sampler=FLOW, candidates=4), count)
    first = rolled(policy, FLOW, count)
    assert torch.equal(trace.actions[:, 0], first.actions[:, 0])  # nothing was done before
    assert not torch.equal(trace.actions[:, 1], first.actions[:, 1])
    own = each(seeds(1, "episodes", count=count), "decision", 1)
    for row in range(count):
        if not trace.alive[row, 1]:
            continue
        seen = ControlCondition(1).seeing(trace.observed[row, 1][None])
        streams = [own[row][None], *(each(own[row][None], "candidate", k) for k in (1, 2, 3))]
        candidates = torch.cat([FLOW(policy, seen, Draw.of(s, torch.zeros(1).long(), 0, 0)).final for s in streams])
        done = trace.actions[row, 0, 1]  # the one that was executed
        nearest = candidates[(candidates[:, 0] - done).square().sum(dim=1).argmin()]
        assert torch.allclose(trace.actions[row, 1], nearest, atol=1e-6)


def test_an_episode_with_candidates_follows_from_its_seed_whatever_the_batch() -> None:
    policy, sampler = remembering(), PastVerified(sampler=FLOW, candidates=3)
    whole, single = rolled(policy, sampler), rolled(policy, sampler, rows=1)
    assert torch.allclose(whole.actions, single.actions, atol=1e-5) and torch.equal(whole.alive, single.alive)
    with pytest.raises(ValueError, match="candidates=0"):
        PastVerified(candidates=0)
    assert sampler.forwards == 9 and sampler.heldout(5, None, None).sampler == FlowSampler(steps=5, guidance=1.0)
    episodes: Any = EpisodeSampler(sampler=sampler).heldout(None, None, 0.0)
    assert episodes.sampler.candidates == 3 and episodes.sampler.sampler.temperature == 0


def test_weights_of_the_past_are_of_squared_errors() -> None:
    policy = remembering(past=2)
    clean, condition = torch.randn(5, 3, 2), policy.condition([]).seeing(torch.randn(5, 2, 2))
    draw = Draw.of(torch.arange(5), torch.arange(5), 0, 0)
    rollout = Rollout.of(draw, condition, clean, times=policy.times(4))

    def logp(weight: float) -> Tensor:
        estimator = ChunkMatching(draws=1, past_weight=weight)
        return estimator(policy, estimator.probe(rollout, policy, draw.seeds), condition).logp[:, 0]

    rows = Matching(draws=1).probe(rollout, policy, draw.seeds)
    noise, t = rows.noise[:, 0], rows.t[:, 0].float()
    wide = t[:, None, None]
    v = policy.velocity((1 - wide) * clean + wide * noise, t, condition)
    error = (v - (noise - clean)).square().mean(dim=2)  # [5, 3]
    assert torch.allclose(logp(0.0).float(), -error[:, 2], rtol=1e-4)
    assert torch.allclose(logp(1.0).float(), -error.mean(dim=1), rtol=1e-4)
    assert torch.allclose(logp(0.5).float(), -(error * torch.tensor([0.5, 0.5, 1.0])).sum(dim=1) / 2, rtol=1e-4)
    grad = torch.autograd.grad(logp(0.0).sum(), policy.network.body[-1].bias)[0].view(3, 2)
    assert float(grad[:2].abs().max()) == 0 < float(grad[2].abs().min())
    with pytest.raises(ValueError, match="past_weight"):
        ChunkMatching(past_weight=-1.0)


def test_only_what_is_of_the_present_is_executed() -> None:
    """Of five actions, one of the past, the two after it; `select_action` and `predict` likewise."""
    policy = toy_policy(chunk=5, past=1, execute=2)
    disturb(policy, 0.3)
    trace = rolled(policy, FLOW)
    assert int(trace.alive.sum(dim=1).max()) == 1  # its two steps of the environment are one decision
    seen = torch.randn(3, 2)
    chunk = policy.chunk(seen[:, None])
    for number in (1, 2):
        assert torch.equal(policy.select_action(seen), chunk[:, number])
    assert torch.equal(torch.from_numpy(policy.predict(seen)[0]), chunk[:, 1])


# ------------------------------------------------------------------------------------------------------ demonstrations
def test_demonstrations_of_the_past() -> None:
    policy = toy_policy(chunk=3, past=1)
    actions = [[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]]
    columns = {"observed": [[0.0, 0.0]] * 3, "action": actions, "reward": [0, 0.5, 1.0]}
    rows = Demonstrations(length=4).prepared([Prompt("p", 0, columns)], "here")
    draw = Draw.of(torch.zeros(1).long(), torch.zeros(1).long(), 0, 0, rows)
    found = Demonstrations(length=4)(policy, policy.condition(rows), draw)
    assert isinstance(found.trace, Episodes) and found.feedback is not None
    chunks = policy.in_own_units(found.trace.actions[0])[..., 0]
    wanted = torch.tensor([[1.0, 1, 2], [1, 2, 3], [2, 3, 3]])
    assert torch.allclose(chunks[:3], wanted, atol=1e-5)
    told = Demonstrations(length=4, executed=True)(policy, policy.condition(rows), draw)
    assert isinstance(told.trace, Episodes) and told.feedback is not None
    count = int(told.trace.alive[0].sum())
    assert count in (1, 2)  # two actions are executed at once, from the first or the second on
    first = int(count == 1)
    assert float(told.feedback[0, 0]) == (1.5 if first else 0.5)
    chunks = policy.in_own_units(told.trace.actions[0])[..., 0]
    assert torch.allclose(chunks[:count], wanted[first::2], atol=1e-5)


def test_the_demonstrations_of_avoid_are_prompts() -> None:
    rows = load_prompts("avoid:demonstrations").prompts
    assert len(rows) == 54 and len({row.columns["way"] for row in rows}) == 18
    assert len(Demonstrations().prepared(rows, "avoid")) == 54
    with pytest.raises(UserError, match="no split 'demonstration'"):
        load_prompts("avoid:demonstration")


def test_an_untrained_model_has_the_statistics_of_its_data(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    file = tmp_path / "episodes.jsonl"
    file.write_text("".join(json.dumps(row.columns | {"prompt": "p"}) + "\n" for row in two_steps(5)))
    shape = ["--kind", "ddpm", "--chunk", "6", "--past", "2"]
    arguments = ["untrained", TOY, "--data", str(file), "--out", str(tmp_path / "m"), *shape]
    monkeypatch.setattr("sys.argv", arguments)
    untrained.main()
    policy = load_control(tmp_path / "m")
    actions = torch.tensor([step for row in two_steps(5) for step in row.columns["action"]])
    assert torch.allclose(policy.network.actions.mean, actions.mean(dim=0), atol=1e-6)
    assert (policy.config.kind, policy.config.chunk, policy.config.past) == ("ddpm", 6, 2)
    for key, value, words in (("--past", "6", "no room for past=6"), ("--data", "shapes", "no world with demonstra")):
        monkeypatch.setattr("sys.argv", [*arguments, key, value])
        with pytest.raises(SystemExit):
            untrained.main()
        assert words in capsys.readouterr().err


def test_parts_say_what_the_network_has_to_be() -> None:
    assert dict(build("cfgrl").network) == {"conditions": 1} and dict(build("mip").network) == {"kind": "mip"}
    assert not build("diffusion_policy").network and not PerDecision().network
