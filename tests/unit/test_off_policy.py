"""Off-policy methods: what critics learn, in closed form where there is one, and how the policy acts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from flowrl.algorithms.fql import fql
from flowrl.composition import build
from flowrl.config import Config
from flowrl.environments.protocol import Array
from flowrl.errors import UserError
from flowrl.estimators.q_learning import OneStepQ
from flowrl.models.control.export import export
from flowrl.models.control.load import load_control, new_network, read_config, save_control
from flowrl.models.control.policy import ControlConfig, ControlPolicy
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.ema import Target
from flowrl.parts.q_learning import FlowQLearning
from flowrl.records.replays import Ring
from flowrl.samplers.demonstrations import BesideDemonstrations, Demonstrations
from flowrl.samplers.episodes import EpisodeSampler
from flowrl.startup.preflight import check_run
from flowrl.step import UpdateSettings, improve
from flowrl.types import DATA, POLICY, Acting, Beside, Draw, Episodes, Prompt, Rollout, Scores
from tests.contract.toy_environment import toy_policy
from tests.contract.toys import disturb, gradients, roll, small, start
from tests.unit.test_control_iterations import lines, session_of

FQL: dict[str, Any] = {"use": "fql", "width": 16, "depth": 2, "steps": 3, "groups": 2}


# --------------------------------------------------------------------------------------- an enumerable decision process
STATES, ACTIONS = 3, 2
NEXT = torch.tensor([[1, 2], [2, 0], [0, 1]])
PAID = torch.tensor([[0.0, 1.0], [2.0, -1.0], [0.5, 0.0]], dtype=torch.float64)
ENDS = torch.tensor([[False, False], [True, False], [False, False]])


class Table(nn.Module):
    """A critic that knows every state, a one-hot observation, and every action, the sign of a number."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(2, *shape))

    def forward(self, features: Tensor, chunk: Tensor | None = None, fixed: bool = False) -> Tensor:
        value = self.value.detach() if fixed else self.value
        state = features.argmax(dim=1)
        if chunk is None:
            return value[:, state]
        return value[:, state, (chunk.flatten(1)[:, 0] > 0).long()] + 0 * chunk.flatten(1)[:, 0]


class Chooses(nn.Module):
    """An actor that takes one action in each state, whatever the noise."""

    def __init__(self, actions: list[float]) -> None:
        super().__init__()
        self.action = nn.Parameter(torch.tensor(actions))

    def forward(self, features: Tensor, chunk: Tensor | None = None, fixed: bool = False) -> Tensor:
        return self.action[features.argmax(dim=1)][:, None, None]


def tabular(algorithm: Algorithm, **modules: nn.Module) -> ControlPolicy:
    config = ControlConfig(
        observation=STATES, action=1, width=8, depth=1, steps=2, beside=algorithm.beside, acting=algorithm.acting
    )
    network = new_network(config)
    for name, module in modules.items():
        network.beside[name] = module
    policy = ControlPolicy(config, network, None, None, torch.device("cpu"))
    for name in algorithm.weight_sets:
        policy.update_ema(name, 0.0)
    return policy


def every_transition(cut: bool = False) -> tuple[Rollout, Scores, Tensor]:
    """One decision of each state and action; those that do not end are cut by a time limit after it. With ``cut`` none
    ends."""
    one = torch.eye(STATES)
    state, action = (grid.flatten() for grid in torch.meshgrid(torch.arange(3), torch.arange(2), indexing="ij"))
    observed = torch.stack([one[state], one[NEXT[state, action]]], dim=1)[:, :, None]
    ends = ENDS[state, action] & (not cut)
    n = len(state)
    trace = Episodes(observed, (2.0 * action - 1)[:, None, None, None], torch.ones(n, 1).bool(), ~ends)
    paid = PAID[state, action][:, None]
    rows = torch.arange(n)
    final = torch.stack([paid[:, 0], *torch.ones(4, n).double()], dim=1)
    condition = tabular(fql(width=4, depth=1)).condition([Prompt("", 0)] * n)
    made = Rollout(condition, final, rows, rows, torch.zeros_like(rows), trace, feedback=paid)
    scores = Scores(paid, torch.ones(1).double(), ("episode_return",), rows, rows, rows >= 0, feedback=paid)
    return made, scores, paid


def exact(chosen: list[int], gamma: float, cut: bool = False) -> Tensor:
    """[3, 2] the values of every action, and of ``chosen`` ones from then on: a linear system."""
    a = torch.eye(6, dtype=torch.float64)
    for s in range(STATES):
        for u in range(ACTIONS):
            if cut or not ENDS[s, u]:
                then = int(NEXT[s, u])
                a[2 * s + u, 2 * then + chosen[then]] -= gamma
    return torch.linalg.solve(a, PAID.flatten()).view(STATES, ACTIONS)


@pytest.mark.parametrize("cut", [False, True])
def test_critics_come_to_the_exact_values_and_time_limits_are_no_ends(cut: bool) -> None:
    """Of a process of 3 states and 2 actions: each step of rate 3 sets a number to its target."""
    algorithm = fql(gamma=0.8, tau=1.0, width=4, depth=1)
    policy = tabular(algorithm, q=Table((3, 2)), actor=Chooses([-1.0, 1.0, 1.0]))
    made, scores, paid = every_transition(cut)
    judging = policy.critic_parameters()
    assert [len(p) for p in judging] == [2]
    optimizer = torch.optim.SGD(judging, lr=6.0)  # of the mean over 2 critics and 6 decisions
    for _ in range(80):
        improve(policy, optimizer, algorithm, made, scores, paid, UpdateSettings(max_grad_norm=1e9))
    wanted = exact([0, 1, 1], 0.8, cut)
    assert torch.allclose(judging[0].detach().double(), wanted.expand(2, 3, 2), atol=1e-5)
    assert float((exact([0, 1, 1], 0.8) - exact([0, 1, 1], 0.8, True)).abs().max()) > 0.5


def test_the_next_value_is_the_targets_and_by_mean_or_least_of_the_critics() -> None:
    made, *_ = every_transition()
    found = {}
    for how in ("mean", "min"):
        algorithm = fql(width=4, depth=1, aggregate=how)
        table = Table((3, 2))
        policy = tabular(algorithm, q=table, actor=Chooses([-1.0, 1.0, 1.0]))
        with torch.no_grad():
            table.value.copy_(torch.arange(12.0).view(2, 3, 2) * torch.tensor([1.0, -1.0])[:, None, None])
        policy.update_ema("target", 0.0)
        with torch.no_grad():
            table.value.fill_(100.0)  # the live ones are not asked for targets
        rows = algorithm.estimator.probe(made, policy, made.seeds)
        found[how] = algorithm.estimator(policy, rows, made.condition).extra["next_value"][:, 0]
    then = NEXT.flatten()
    chosen = 2 * then + torch.tensor([0, 1, 1])[then]
    first, second = chosen.float(), -(chosen + 6.0)
    going = ~ENDS.flatten()
    assert torch.equal(found["mean"], torch.where(going, (first + second) / 2, 0.0))
    assert torch.equal(found["min"], torch.where(going, torch.minimum(first, second), 0.0))


def test_targets_follow_after_every_step() -> None:
    algorithm = small("fql", tau=0.3)
    policy = start(algorithm)
    it = roll(algorithm, policy)
    wanted = {key: value.clone() for key, value in policy.weights.state().items() if key.startswith("target/")}
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.01)
    for _ in range(3):  # one step each, the recursion written out
        improve(policy, optimizer, algorithm, it.rollout, it.scores, it.advantage, UpdateSettings())
        live = policy.weights.state()
        wanted = {key: 0.7 * old + 0.3 * live[key.replace("target/", "live/")] for key, old in wanted.items()}
    found = policy.weights.state()
    assert all(torch.allclose(found[key], value, atol=1e-6) for key, value in wanted.items())
    again = start(algorithm)
    settings = UpdateSettings(updates=1, epochs=3)
    redrawn = replace(algorithm, redraw=False)
    improve(
        again, torch.optim.Adam(again.parameters(), lr=0.01), redrawn, it.rollout, it.scores, it.advantage, settings
    )
    assert all(torch.allclose(again.weights.state()[key], value, atol=1e-6) for key, value in wanted.items())
    before = {key: value.clone() for key, value in again.weights.state().items()}
    again.update_ema("target", algorithm.ema_weights[0].decay(9, 6))  # at the end of an iteration nothing moves
    assert all(torch.equal(before[key], value) for key, value in again.weights.state().items())
    with pytest.raises(ValueError, match="tau=0"):
        Target(tau=0)


def parts_of(policy: Any, gradient: Tensor) -> dict[str, Tensor]:
    """A gradient by network: ``flow``, ``actor`` and ``q``."""
    names = {id(p): name for name, p in policy.network.named_parameters()}
    found: dict[str, list[Tensor]] = {}
    for parameter, part in zip(
        policy.parameters(), gradient.split([p.numel() for p in policy.parameters()]), strict=True
    ):
        name = names.get(id(parameter), "value")
        kind = name.split(".")[1] if name.startswith("beside.") else ("flow" if name.startswith("body.") else "rest")
        found.setdefault(kind, []).append(part)
    return {kind: torch.cat(each) for kind, each in found.items()}


def test_every_term_trains_its_own_network() -> None:
    """alpha -> infinity is the distilled flow; of a constant critic the rest is imitation and distillation alone."""
    policy = start(small("fql"))
    it = roll(small("fql"), policy)
    disturb(policy, 0.05)  # critics and their targets differ
    found = {alpha: parts_of(policy, gradients(small("fql", alpha=alpha), it)[0]) for alpha in (0.0, 1.0, 1e6)}
    for kind in ("flow", "q"):
        assert float(found[0.0][kind].norm()) > 0
        assert torch.allclose(found[0.0][kind], found[1.0][kind], rtol=1e-4, atol=1e-6)
    distilled = found[1.0]["actor"] - found[0.0]["actor"]
    assert torch.allclose(found[1e6]["actor"] / 1e6, distilled, rtol=1e-3, atol=1e-5)
    assert float(found[0.0]["actor"].norm()) > 0 and float(found[1.0]["rest"].norm()) == 0
    with torch.no_grad():
        for parameter in policy.network.beside["q"].body.weights[-1:]:
            parameter.zero_()
    constant = parts_of(policy, gradients(small("fql"), it)[0])
    assert torch.allclose(constant["actor"], 10 * distilled, rtol=1e-3, atol=1e-5)
    assert torch.allclose(constant["flow"], found[0.0]["flow"], rtol=1e-4, atol=1e-6)


def test_normalised_gains_are_those_of_the_whole_batch() -> None:
    algorithm = small("fql", alpha=0.0, normalize=True)
    policy = start(algorithm)
    it = roll(algorithm, policy)
    assert algorithm.coupled and not small("fql").coupled
    plain = parts_of(policy, gradients(small("fql", alpha=0.0), it)[0])
    for micro_batch in (1, 1000):
        found = parts_of(policy, gradients(algorithm, it, micro_batch=micro_batch)[0])
        rows: Any = algorithm.estimator.probe(it.rollout, policy, it.rollout.seeds)
        with torch.no_grad():
            own = algorithm.estimator(policy, rows, it.rollout.condition).extra["q_own"][rows.alive]
        assert torch.allclose(found["actor"], plain["actor"] / own.abs().mean(), rtol=1e-3, atol=1e-5)
        assert torch.allclose(found["q"], plain["q"], rtol=1e-3, atol=1e-5)


# --------------------------------------------------------------------------------------------------------------- acting
def acting_policy(**acting: Any) -> ControlPolicy:
    beside = {"actor": Beside("actor", 16, 2), "q": Beside("q", 16, 2, copies=2)}
    policy = toy_policy(beside=beside, acting=Acting(**acting))
    disturb(policy, 0.3)
    return policy


def test_it_is_deployed_as_it_acts_in_training(tmp_path: Path) -> None:
    policy = acting_policy(actor="actor", bound=1.0)
    seen = torch.randn(4, 2)
    chunk = policy.chunk(seen[:, None], seed=3)
    features = policy.network.features(seen[:, None])
    from flowrl.math.random import normal

    z = normal(torch.arange(4) + 3, (1, 1, 2), stream=0)[:, 0]
    wanted = policy.in_own_units(policy.network.beside["actor"](features, z).clamp(-1, 1))
    assert torch.equal(chunk, wanted) and bool((policy.network.actions(chunk).abs() <= 1 + 1e-6).all())
    export(policy, tmp_path / "p", "merged")
    again = load_control(tmp_path / "p")
    assert torch.equal(again.chunk(seen[:, None], seed=3), chunk) and list(again.network.beside) == ["actor"]
    assert torch.equal(again.select_action(seen), policy.chunk(seen[:, None])[:, 0])
    plain = load_control(tmp_path / "p", beside={})  # another method goes on with the flow
    assert not plain.network.beside and plain.config.acting is None
    wider = load_control(tmp_path / "p", beside={"actor": Beside("actor", 32, 2)}, acting=Acting(actor="actor"))
    assert wider.config.beside["actor"].width == 32 and wider.chunk(seen[:, None]).shape == (4, 1, 2)
    save_control(plain.config, plain.network, tmp_path / "q")
    assert {"beside", "acting"}.isdisjoint(json.loads((tmp_path / "q" / "config.json").read_text()))


def test_of_several_candidates_the_critic_chooses() -> None:
    policy = acting_policy(candidates=5, critic="q", bound=2.0)
    one = replace(policy.config, acting=Acting(bound=2.0))
    condition = policy.condition([Prompt("", 0)] * 3).seeing(torch.randn(3, 1, 2))
    z = torch.randn(3, 5, 1, 2)
    chosen = policy.act(condition, z)
    policy.config = one
    each = torch.stack([policy.act(condition, z[:, k : k + 1]) for k in range(5)], dim=1)
    liked = torch.stack([policy.ask("q", condition, each[:, k]).mean(dim=0) for k in range(5)], dim=1)
    assert torch.allclose(chosen, each[torch.arange(3), liked.argmax(dim=1)], atol=1e-6)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"acting": {"actor": "mu"}}, "asks a network 'mu'"),
        ({"acting": {"bound": -1}}, "bound=-1"),
        ({"acting": {"candidates": 3}}, "candidates=3"),
        ({"beside": {"mu": {"kind": "net"}}}, "kind='net'"),
        ({"beside": {"mu": {"kind": "q", "wide": 3}}}, "wide"),
        ({"beside": {"mu": {"kind": "q", "width": 0}}}, "width=0"),
    ],
)
def test_a_config_that_acts_by_nothing_is_refused(tmp_path: Path, facts: dict[str, Any], message: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"observation": 2, "action": 2, **facts}))
    with pytest.raises(UserError, match=message):
        read_config(tmp_path)


# ----------------------------------------------------------------------------------------------------------- data, runs
def recorded(**changes: Any) -> Prompt:
    """Five steps of one number, paid by their number."""
    columns = {
        "observed": [[float(k)] for k in range(6)],
        "action": [[float(k)] for k in range(5)],
        "reward": [0.0, 1.0, 2.0, 3.0, 4.0],
        "terminated": False,
    }
    return Prompt("p", 0, {**columns, **changes})


def of_one_number(chunk: int = 2) -> ControlPolicy:
    config = ControlConfig(observation=1, action=1, chunk=chunk, width=8, depth=1)
    return ControlPolicy(config, new_network(config), None, None, torch.device("cpu"))


def test_recorded_chunks_are_executed_whole_and_paid_together() -> None:
    policy, sampler = of_one_number(), Demonstrations(length=4, executed=True)
    seeds = torch.arange(20)
    draw = Draw.of(seeds, torch.zeros(20).long(), 0, 0, [recorded()] * 20)
    assert sampler.prepared(draw.prompts, "data")
    made = sampler(policy, policy.condition(draw.prompts), draw)
    trace, paid = made.trace, made.feedback
    assert isinstance(trace, Episodes) and paid is not None and bool(trace.truncated.all())
    first = trace.observed[:, 0, 0, 0]
    assert set(first.tolist()) == {0.0, 1.0}  # the seed draws where chunks begin
    even, odd = int((first == 0).nonzero()[0]), int((first == 1).nonzero()[0])
    assert trace.observed[even, :4, 0, 0].tolist() == [0, 2, 4, 5] and trace.alive[even].tolist() == [1, 1, 1, 0]
    assert paid[even, :3].tolist() == [1, 5, 4] and trace.actions[even, 2, :, 0].tolist() == [4, 4]
    assert trace.observed[odd, :3, 0, 0].tolist() == [1, 3, 5] and paid[odd, :2].tolist() == [3, 7]
    assert made.final[even, 0] == 10 and made.final[odd, 0] == 10 and bool(paid[odd, 2:].isnan().all())
    cut = Demonstrations(length=2, executed=True)  # read in part: what follows counts
    ended = Draw.of(seeds[:2], torch.zeros(2).long(), 0, 0, [recorded(terminated=True)] * 2)
    assert bool(cut(policy, policy.condition(ended.prompts), ended).trace.truncated[even])  # pyright: ignore
    whole = sampler(policy, policy.condition(ended.prompts), ended).trace
    assert isinstance(whole, Episodes) and not bool(whole.truncated.any())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reward": [1.0]}, "a list of 5 numbers"),
        ({"reward": [0.0, 1.0, 2.0, 3.0, float("nan")]}, "a list of 5 numbers"),
        ({"terminated": "no"}, "give true or false"),
        ({"observed": [[0.0]] * 5}, "give 6 observations, not 5"),
    ],
)
def test_rewards_that_do_not_fit_an_episode_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match="data, prompt 1: .*" + message):
        Demonstrations(executed=True).prepared([recorded(**changes)], "data")


def test_data_stand_first_in_their_groups_and_alone_while_offline() -> None:
    acting = small("fql").sampler
    assert isinstance(acting, EpisodeSampler)
    sampler = BesideDemonstrations(sampler=acting, shown=2, offline=1)
    policy = start(small("fql"))
    columns = {"observed": [[0.1, 0.0], [0.1, 1.0]], "action": [[2.0, 0.0]] * 2, "reward": [0.2, 0.3]}
    prompts = [Prompt("a", 0, columns)] * 4 + [Prompt("b", 1, columns)] * 4
    for iteration, wanted in ((0, [DATA] * 8), (1, [DATA, DATA, POLICY, POLICY] * 2)):
        draw = Draw.of(torch.arange(8), torch.arange(8) // 4, iteration, 0, prompts)
        made = sampler(policy, policy.condition(prompts), draw)
        assert made.source.tolist() == wanted and made.feedback is not None
        assert torch.allclose(made.feedback[0, :2], torch.tensor([0.2, 0.3]).double())
    alone = acting(policy, policy.condition(prompts), draw)
    own = torch.tensor(wanted) == POLICY
    assert torch.equal(made.final[own], alone.final[own]) and isinstance(made.trace, Episodes)


def test_the_world_shows_its_demonstrations_with_rewards() -> None:
    from flowrl.worlds.avoid.prompts import HELD_OUT, prompts

    rows = prompts("demonstrations")
    assert len(rows) == 54 and {row["way"] for row in rows}.isdisjoint(HELD_OUT)
    assert {row["way"] for row in rows} == {row["way"] for row in prompts("train")}
    assert all(sum(row["reward"]) == 1 == row["reward"][-1] for row in rows)
    ends: Array = np.array([row["observed"][-1][1] for row in rows])
    assert float(ends.min()) > 2  # the line is at the upper end of the board


def test_a_run_with_a_buffer_goes_on_bit_for_bit(tmp_path: Path) -> None:
    def fresh(name: str) -> Any:
        session = session_of(FQL)
        session.ring = Ring(tmp_path / name)
        return session

    whole = fresh("a")
    wanted = lines(whole, 3)
    assert wanted[2]["replay/samples"] == 8 and wanted[0]["replay/samples"] == 0
    first = fresh("b")
    begun = lines(first, 1)
    tensors, values = first.state()
    again = fresh("b")
    again.restore({key: value.clone() for key, value in tensors.items()}, json.loads(json.dumps(values)))
    assert [*begun, *lines(again, 2)] == wanted
    state = again.policy.weights.state()
    assert all(torch.equal(value, state[key]) for key, value in whole.policy.weights.state().items())
    assert any(key.startswith("target/beside.q") for key in state)


def test_a_config_needs_no_ratio_for_its_buffer_and_knows_its_critics() -> None:
    values: dict[str, Any] = {
        "name": "off",
        "model": {"path": "avoid"},
        "algorithm": {**FQL, "shown": 1},
        "data": {"train": "avoid:demonstrations", "test": "avoid:test", "prompts": 2, "group": 2},
        "rewards": [{"use": "episode_return"}],
        "optimizer": {"critic_lr": 0.001, "critic_warmup": 1},
        "train": {"iterations": 2},
    }
    run = check_run(Config.of(values))
    assert isinstance(run.algorithm.sampler, BesideDemonstrations) and run.algorithm.judges
    with pytest.raises(UserError, match="nothing in this algorithm corrects"):
        check_run(Config.of({**values, "algorithm": {"use": "ppo_gaussian", "replay": "old_groups"}}))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FlowQLearning(gamma=1.5), "gamma=1.5"),
        (lambda: FlowQLearning(alpha=-1), "alpha=-1"),
        (lambda: BesideDemonstrations(shown=-1), "shown=-1"),
    ],
)
def test_options_without_sense_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_gaussian_is_no_flow() -> None:
    algorithm = build(FQL)
    config = ControlConfig(
        kind="gaussian", observation=3, action=1, width=8, depth=1, beside=algorithm.beside, acting=algorithm.acting
    )
    policy = ControlPolicy(config, new_network(config), None, None, torch.device("cpu"))
    policy.update_ema("target", 0.0)
    made, *_ = every_transition()
    rows = OneStepQ().probe(made, policy, made.seeds)
    with pytest.raises(ValueError, match="train a flow, and this model is of kind gaussian"):
        algorithm.estimator(policy, rows, made.condition)
