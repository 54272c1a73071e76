"""Actions moved by the score of the data: no steps change nothing, Gaussian data contract as the closed form says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from flowrl.errors import UserError
from flowrl.math.random import seeds
from flowrl.models.control.composed import compose
from flowrl.models.control.export import export
from flowrl.models.control.form import Ascent, ControlConfig
from flowrl.models.control.load import load_control, new_network, save_control
from flowrl.models.control.policy import ControlPolicy
from flowrl.models.control.scoring import fit, main
from flowrl.samplers.episodes import EpisodeSampler
from flowrl.samplers.flow import FlowSampler
from flowrl.samplers.residual import ResidualEpisodes
from flowrl.types import Draw, Prompt, Residual
from flowrl.worlds.avoid.prompts import prompts

FEW = FlowSampler(steps=3, guidance=1.0)


def scored(folder: Path, **ascent: Any) -> Path:
    """The base of avoid with a score that has learned nothing."""
    base = load_control("avoid", device="cpu")
    config = replace(base.config, score=Ascent(**ascent))
    torch.manual_seed(3)
    network = new_network(config)
    network.load_state_dict(base.network.state_dict(), strict=False)
    save_control(config, network, folder)
    return folder


def rolled(policy: ControlPolicy, sampler: Any = None) -> Any:
    asked = [Prompt("p", i, {"way": prompts("test")[i]["way"]}) for i in range(5)]
    draw = Draw.of(seeds(1, "scored", count=5), torch.zeros(5, dtype=torch.long), 0, 0, asked)
    return (sampler or EpisodeSampler(sampler=FEW))(policy, policy.condition(asked), draw)


def test_no_steps_are_the_policy_bit_for_bit(tmp_path: Path) -> None:
    wanted = rolled(load_control("avoid", device="cpu"))
    still = rolled(load_control(scored(tmp_path / "still", steps=0), device="cpu"))
    assert torch.equal(still.trace.observed, wanted.trace.observed) and torch.equal(still.final, wanted.final)
    moved = rolled(load_control(scored(tmp_path / "moved", rate=0.1, steps=1), device="cpu"))
    assert not torch.equal(moved.trace.observed, wanted.trace.observed)


@pytest.mark.parametrize("steps", [1, 4])
def test_gaussian_data_are_contracted_by_one_minus_rate_over_variance(steps: int, tmp_path: Path) -> None:
    """Of N(m, c^2) an action's distance from m is ``(1 - rate / c^2)^steps`` of what it was, m depends on the state."""
    policy = load_control(scored(tmp_path / "exact", rate=0.05, steps=steps), device="cpu")
    assert policy.network.score is not None
    policy.network.score.forward = lambda observed, action: -(action - observed[:, :2]) / 0.4**2
    observed, action = torch.randn(50, 8), torch.randn(50, 2)
    mean = policy.network.observations(observed)[:, :2]
    found = policy.ascended(observed, action) - mean
    torch.testing.assert_close(found, (1 - 0.05 / 0.4**2) ** steps * (action - mean), atol=1e-6, rtol=1e-5)
    wanted = policy.network.actions.undo(mean + found)
    torch.testing.assert_close(policy.executed(observed[:, None], action), wanted)


@pytest.mark.slow
def test_the_score_of_gaussian_data_is_learned() -> None:
    """Actions are ``N(s_1 / 2, v)`` at a state: the score is ``-(a - m) / (v + c^2)``, where the state's noise adds
    ``c^2 / 4 / (1 + c^2)`` and pulls the mean by ``1 / (1 + c^2)``."""
    generator = torch.Generator().manual_seed(0)
    observed = torch.randn(20000, 2, generator=generator)
    action = 0.5 * observed[:, :1] + 0.6 * torch.randn(20000, 1, generator=generator)
    config = ControlConfig(observation=2, action=1, width=8, depth=1)
    network = new_network(config)
    policy = ControlPolicy(config, network, None, None, torch.device("cpu"))
    found, learned = fit(policy, observed, action, Ascent(), noise=0.3, steps=1500, batch=512)
    assert found.score == Ascent() and learned.score is not None
    seen, at = torch.randn(400, 2, generator=generator), torch.randn(400, 1, generator=generator)
    with torch.no_grad():
        score = learned.score(seen, at)[:, 0]
    shrink = 1 / (1 + 0.09)
    variance = 0.36 + 0.09 + 0.25 * 0.09 * shrink
    wanted = -(at[:, 0] - 0.5 * shrink * seen[:, 0]) / variance
    slope = float((score * wanted).sum() / wanted.square().sum())
    assert slope == pytest.approx(1.0, abs=0.05)
    assert float((score - wanted).square().mean() / wanted.square().mean()) < 0.02


def test_it_is_part_of_the_model_and_stays_as_it_is(tmp_path: Path) -> None:
    policy = load_control(scored(tmp_path / "one", rate=0.1, steps=2), device="cpu", critic="network")
    assert not any(name.startswith("score.") for name in policy.adaptation.parameters)
    assert export(policy, tmp_path / "out", "merged") == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["score"] == {"rate": 0.1, "steps": 2}
    again, seen = load_control(tmp_path / "out", device="cpu"), torch.randn(4, 8)
    for _ in range(5):
        assert torch.equal(again.select_action(seen), policy.select_action(seen))
    plain = load_control("avoid", device="cpu")
    assert not torch.equal(plain.select_action(seen), load_control(tmp_path / "out", device="cpu").select_action(seen))


def test_a_residual_reads_the_moved_action(tmp_path: Path) -> None:
    """And adds to it: with nothing added, training's episodes are those of the deployed policy."""
    folder = scored(tmp_path / "one", rate=0.1, steps=2)
    wanted = rolled(load_control(folder, device="cpu"))
    policy = load_control(folder, device="cpu", residual=Residual(log_std=-1e4))
    found = rolled(policy, ResidualEpisodes(sampler=FEW))
    assert torch.equal(found.final[:, [0, 2, 3, 4]], wanted.final[:, [0, 2, 3, 4]])
    first = wanted.trace
    torch.testing.assert_close(
        found.trace.observed[:, 0, 0, 8:], policy.ascended(first.observed[:, 0, 0], first.actions[:, 0, 0])
    )


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    for given, message in (
        ({"rate": 1}, "score has a rate and steps"),
        ({"rate": -1, "steps": 1}, "rate of 0 or more"),
    ):
        (tmp_path / "bad" / "config.json").write_text(json.dumps({"observation": 8, "action": 2, "score": given}))
        with pytest.raises(UserError, match=message):
            load_control(tmp_path / "bad", device="cpu")
    with pytest.raises(UserError, match="has a score; compose single policies without one"):
        compose(["avoid", scored(tmp_path / "one")], (0.5, 0.5))
    with pytest.raises(UserError, match=r"rate=0\.1 moves actions past .* less than 2 noise\^2, 0\.02, or more noise"):
        main(["avoid", "--out", str(tmp_path / "two"), "--noise", "0.1"])
    with pytest.raises(UserError, match="two_walls has no demonstrations"):
        main(["avoid", "--out", str(tmp_path / "two"), "--world", "two_walls"])
    with pytest.raises(UserError, match="the data's actions have 3 numbers, and the model's 2"):
        fit(load_control("avoid", device="cpu"), torch.zeros(4, 8), torch.zeros(4, 3), Ascent())
    with pytest.raises(UserError, match="exists; name a new folder"):
        main(["avoid", "--out", str(tmp_path / "one")])
