"""A residual beside a frozen policy: nothing added is the policy bit for bit, it acts in closed loop when deployed,
and what is learned of it is a Gaussian policy's PPO."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from flowrl.composition import build
from flowrl.environments import open_environment
from flowrl.errors import UserError
from flowrl.estimators.episodes import PerDecision
from flowrl.estimators.gaussian import GaussianActions
from flowrl.math.random import each, normal, seeds
from flowrl.models.control.export import export
from flowrl.models.control.load import load_control, new_network
from flowrl.models.control.network import Statistics
from flowrl.models.control.policy import ControlConfig, ControlPolicy
from flowrl.samplers.episodes import EpisodeSampler, TemperedStart
from flowrl.samplers.flow import FlowSampler
from flowrl.samplers.residual import CORRECTION, ResidualEpisodes
from flowrl.types import Draw, Episodes, IncompatibleError, Prompt, Residual, Rollout
from flowrl.worlds.avoid.prompts import prompts
from tests.contract.toy_environment import toy_policy
from tests.contract.toys import gradients, roll, small, start

FEW = FlowSampler(steps=3, guidance=1.0)
SOME = Residual(scale=0.3, log_std=-0.5)


def taught(policy: ControlPolicy) -> ControlPolicy:
    """With a residual that answers something."""
    assert policy.network.residual is not None
    with torch.no_grad():
        last = policy.network.residual.body[-1]
        assert isinstance(last, nn.Linear)
        last.weight.normal_(generator=torch.Generator().manual_seed(0), std=0.1)
    return policy


def drawn(count: int = 5) -> Draw:
    asked = [Prompt("p", i, {"way": prompts("test")[i % 6]["way"]}) for i in range(count)]
    return Draw.of(seeds(1, "episodes", count=count), torch.zeros(count, dtype=torch.long), 0, 0, asked)


def rolled(sampler: Any, policy: ControlPolicy) -> tuple[Rollout, Episodes]:
    draw = drawn()
    rollout = sampler(policy, policy.condition(draw.prompts), draw)
    assert isinstance(rollout.trace, Episodes)
    return rollout, rollout.trace


def test_a_residual_of_zero_is_the_policy_bit_for_bit() -> None:
    """As it is deployed, and while it is trained where its deviation is 0: an event every step, the same episodes."""
    plain, base = rolled(EpisodeSampler(sampler=FEW), load_control("avoid", device="cpu"))
    policy = load_control("avoid", device="cpu", residual=Residual(log_std=-1e4))
    deployed, _ = rolled(EpisodeSampler(sampler=FEW), policy)
    assert torch.equal(deployed.final, plain.final) and plain.final[:, 1].unique().numel() > 1
    learned, trace = rolled(ResidualEpisodes(sampler=FEW), policy)
    assert trace.observed.shape == (5, 161, 1, 10) and trace.beside == 2
    for row in range(5):
        made = int(base.alive[row].sum())
        steps = int(trace.alive[row].sum())
        assert 4 * (made - 1) < steps <= 4 * made
        assert torch.equal(trace.observed[row, : 4 * made : 4, 0, :8], base.observed[row, :made, 0])
        assert torch.equal(trace.observed[row, :steps, 0, 8:], base.actions[row, :made].flatten(0, 1)[:steps])
    assert torch.equal(learned.final[:, [0, 2, 3, 4]], plain.final[:, [0, 2, 3, 4]])
    assert learned.forwards == plain.forwards + int(trace.alive.sum())


def test_a_deployed_residual_sees_every_observation_of_a_chunk() -> None:
    """The episode sampler, `select_action` from z = 0, and the loop written out end with the same."""
    policy = taught(load_control("avoid", device="cpu", residual=SOME))
    zero = replace(FEW, steps=policy.config.steps)
    still = TemperedStart(steps=zero.steps, guidance=1.0, temperature=0.0)
    found, _ = rolled(EpisodeSampler(sampler=still), policy)
    quiet = taught(load_control("avoid", device="cpu", residual=replace(SOME, log_std=-1e4)))
    learned, _ = rolled(ResidualEpisodes(sampler=still), quiet)
    assert torch.equal(learned.final[:, [0, 2, 3, 4]], found.final[:, [0, 2, 3, 4]])
    without, _ = rolled(EpisodeSampler(sampler=still), load_control("avoid", device="cpu"))
    assert not torch.equal(without.final, found.final)
    for row in range(5):
        draw = drawn()
        world = open_environment("avoid", 1)
        observed, _ = world.reset(draw.seeds[row : row + 1], [draw.prompts[row]])
        policy.reset()
        chunk, total, time = torch.zeros(0), 0.0, 0
        while True:
            if time % 4 == 0:
                chunk = policy.network.actions(policy.chunk(observed[:, None]))
            action = chunk[:, time % 4]
            features = torch.cat([policy.network.observations(observed).clamp(-3, 3), action], dim=1)
            assert policy.network.residual is not None
            with torch.no_grad():
                mine = policy.network.actions.undo(action + 0.3 * policy.network.residual.body(features))
            torch.testing.assert_close(policy.select_action(observed), mine)
            step = world.step(mine, torch.zeros(1, dtype=torch.long))
            observed, total, time = step.observed, total + float(step.reward), time + 1
            if bool(step.terminated | step.truncated):
                break
        assert total == float(found.final[row, 0]) and -(-time // 4) == int(found.final[row, 1])


def test_what_is_added_is_drawn_from_its_gaussian_and_independent_of_the_chunks_noise() -> None:
    policy = taught(load_control("avoid", device="cpu", residual=SOME))
    made, trace = rolled(ResidualEpisodes(sampler=FEW), policy)
    rows, events = trace.alive.nonzero(as_tuple=True)
    seen = policy.condition([]).seeing(trace.observed[rows, events])
    mean, log_std = policy.residual_gaussian(seen)
    drew = (trace.actions[rows, events] - mean) / log_std.exp()
    own = torch.cat([each(drawn().seeds[r : r + 1], "decision", int(e)) for r, e in zip(rows, events, strict=True)])
    torch.testing.assert_close(drew, normal(own, (1, 2), stream=CORRECTION), atol=1e-5, rtol=0)
    starts = normal(own, (4, 2), stream=0)[:, 0]
    assert abs(float((drew[:, 0] * starts).mean().detach())) < 3 * len(rows) ** -0.5
    estimator: Any = build("resip").estimator
    logp = estimator(policy, estimator.probe(made, policy, drawn().seeds), made.condition).logp[rows, events]
    wanted = torch.distributions.Normal(mean[:, 0].double(), log_std.double().exp()).log_prob(
        trace.actions[rows, events, 0].double()
    )
    torch.testing.assert_close(logp, wanted.sum(dim=1))


def as_gaussian(policy: ControlPolicy) -> ControlPolicy:
    """A Gaussian policy of single actions, whose observations are what the residual reads."""
    assert policy.network.residual is not None
    network = new_network(ControlConfig(kind="gaussian", observation=4, action=2))
    network.observations, network.body = Statistics(4), policy.network.residual.body
    network.log_std = nn.Parameter(policy.network.residual.log_std.clone()[None], requires_grad=False)
    return ControlPolicy(
        ControlConfig(kind="gaussian", observation=4, action=2), network, policy.critic, None, torch.device("cpu")
    )


def test_ppo_of_a_residual_is_ppo_of_a_gaussian_policy() -> None:
    """The gradient of resip's loss is that of `ppo_gaussian`'s parts for the same network over the same record."""
    algorithm = small("resip", 3, scale=0.5)
    policy = start(algorithm)
    it = roll(algorithm, policy)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    found = gradients(algorithm, it)[0]
    trace = it.rollout.trace
    assert isinstance(trace, Episodes)
    with torch.no_grad():
        read = policy._beside(trace.observed.flatten(0, 1)).view(*trace.observed.shape)
    mine = as_gaussian(policy)
    plain = replace(algorithm, estimator=PerDecision(estimator=GaussianActions()))
    record = replace(it.rollout, trace=replace(trace, observed=read, beside=0))
    wanted = gradients(plain, replace(it, policy=mine, rollout=record))[0]
    assert len(found) == len(wanted) and float(found.norm()) > 0
    torch.testing.assert_close(found, wanted)


def test_a_time_limit_leaves_the_next_action_beside_the_last_observation() -> None:
    """Whose value counts with ``truncation: bootstrap``: what the policy would have decided there."""
    policy: Any = toy_policy(residual=SOME)
    draw = Draw.of(seeds(1, "episodes", count=8), torch.zeros(8, dtype=torch.long), 0, 0, [Prompt("p", 0, {})] * 8)
    sampler = ResidualEpisodes(sampler=FEW, environment="tests.contract.toy_environment:make", decisions=3)
    trace: Any = sampler(policy, policy.condition(draw.prompts), draw).trace
    cut = trace.truncated.nonzero()[:, 0]
    assert len(cut) > 2
    own = Draw.of(each(draw.seeds[cut], "decision", 2), cut, 0, 0)
    wanted = FEW(policy, policy.condition([]).seeing(trace.observed[cut, 2, :, :2]), own).final[:, 0]
    torch.testing.assert_close(trace.observed[cut, 2, 0, 2:], wanted)
    assert build("resip").token_advantage[0].truncation == "terminate"  # pyright: ignore[reportAttributeAccessIssue]


def test_the_policy_itself_does_not_learn_and_is_the_reference() -> None:
    algorithm = small("resip", 3)
    policy = start(algorithm)
    it = roll(algorithm, policy)
    assert policy.trains_residual and set(policy.adaptation.parameters) == {
        name for name, _ in policy.network.named_parameters() if name.startswith("residual.")
    }
    loss = gradients(algorithm, it)[0]
    assert float(loss.abs().sum()) > 0 and all(p.grad is None for p in policy.network.body.parameters())
    fresh = load_control("avoid", device="cpu", residual=SOME)
    taught(fresh)
    seen = torch.randn(3, 1, 8, generator=torch.Generator().manual_seed(0))
    action = torch.zeros(3, 2)
    with fresh.using("reference"):
        assert torch.equal(fresh.executed(seen, action), fresh.in_own_units(action))
    assert not torch.equal(fresh.executed(seen, action), fresh.in_own_units(action))


def test_an_export_has_the_residual_and_goes_on(tmp_path: Path) -> None:
    policy = taught(load_control("avoid", device="cpu", critic="network", residual=SOME))
    assert export(policy, tmp_path / "out", "merged") == 0
    facts = json.loads((tmp_path / "out" / "config.json").read_text())
    assert facts["residual"] == 0.3
    again = load_control(tmp_path / "out", device="cpu")
    seen = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    assert not again.trains_residual and set(again.adaptation.parameters) == {
        name for name, _ in policy.network.named_parameters() if not name.startswith("residual.")
    }
    for _ in range(5):
        assert torch.equal(again.select_action(seen), policy.select_action(seen))
    assert np.array_equal(again.predict(seen)[0], policy.predict(seen)[0])
    further = load_control(tmp_path / "out", device="cpu", residual=replace(SOME, log_std=0.25))
    assert further.trains_residual and np.array_equal(further.predict(seen)[0], policy.predict(seen)[0])
    assert further.network.residual is not None and further.network.residual.log_std.tolist() == [0.25, 0.25]


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    export(load_control("avoid", device="cpu", residual=SOME), tmp_path / "out", "merged")
    with pytest.raises(UserError, match=r"algorithm.scale=0.1: the residual of model .* was trained at 0.3; set that"):
        load_control(tmp_path / "out", device="cpu", residual=Residual())
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "config.json").write_text(json.dumps({"observation": 2, "action": 2, "residual": -1}))
    with pytest.raises(UserError, match="residual is -1; give how much of it is added"):
        load_control(tmp_path / "bad", device="cpu")
    with pytest.raises(UserError, match=r"scale=0\.0 leaves every action as it is"):
        build({"use": "resip", "scale": 0})
    policy = toy_policy()
    with pytest.raises(IncompatibleError, match="this policy has no residual; use algorithm resip"):
        policy.residual_gaussian(policy.condition([]).seeing(torch.zeros(1, 1, 4)))
    with pytest.raises(IncompatibleError, match="reads the policy's action beside an observation"):
        toy_policy(residual=SOME).residual_gaussian(policy.condition([]).seeing(torch.zeros(1, 1, 2)))
