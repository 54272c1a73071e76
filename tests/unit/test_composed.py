"""Several policies as one, by weights: corners of the simplex bit for bit, Gaussians at the weighted mean, a search."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flowrl.errors import UserError
from flowrl.evaluation.composition import best_of, main, search, simplex
from flowrl.math.random import seeds
from flowrl.models.control.composed import compose
from flowrl.models.control.export import export
from flowrl.models.control.form import ControlConfig, Share
from flowrl.models.control.load import load_control, new_network, save_control
from flowrl.models.control.network import ComposedNetwork
from flowrl.models.control.policy import ControlPolicy
from flowrl.samplers.episodes import EpisodeSampler
from flowrl.samplers.flow import FlowSampler
from flowrl.types import Draw, Prompt, Residual
from flowrl.worlds.avoid.prompts import prompts

AVOID = ControlConfig(observation=8, action=2, chunk=4)


def another(folder: Path, **changed: Any) -> Path:
    """A policy of chunks of avoid that has learned nothing."""
    config = replace(AVOID, **{"width": 32, "depth": 2, **changed})
    torch.manual_seed(5)
    network = new_network(config)
    network.actions.load_state_dict(load_control("avoid", device="cpu").network.actions.state_dict())
    network.observations.mean.fill_(0.1)
    save_control(config, network, folder)
    return folder


def policy_of(config: ControlConfig, network: Any) -> ControlPolicy:
    return ControlPolicy(config, network, None, None, torch.device("cpu"))


def rolled(policy: ControlPolicy, count: int = 6) -> Tensor:
    asked = [Prompt("p", i, {"way": prompts("test")[i % 6]["way"]}) for i in range(count)]
    draw = Draw.of(seeds(1, "composed", count=count), torch.zeros(count, dtype=torch.long), 0, 0, asked)
    return EpisodeSampler(sampler=FlowSampler(steps=4, guidance=1.0))(
        policy, policy.condition(asked), draw
    ).trace.actions  # pyright: ignore


@pytest.mark.parametrize(("weights", "alone"), [((1.0, 0.0), "avoid"), ((0.0, 1.0), "other")])
def test_all_the_weight_on_one_policy_is_that_policy_bit_for_bit(weights: Any, alone: str, tmp_path: Path) -> None:
    other = another(tmp_path / "other")
    wanted = rolled(load_control(alone if alone == "avoid" else other, device="cpu"))
    assert torch.equal(rolled(policy_of(*compose(["avoid", other], weights))), wanted)
    assert not torch.equal(rolled(policy_of(*compose(["avoid", other], (0.9, 0.1)))), wanted)


def exact(mean: float, std: float) -> Any:
    """The velocity of a flow from noise to N(m, c^2) in every number."""

    def velocity(observed: Tensor, x: Tensor, t: Tensor) -> Tensor:
        wide = t[:, None, None]
        shift = (x - (1 - wide) * mean) / ((1 - wide) ** 2 * std**2 + wide**2)
        return wide * shift - (mean + (1 - wide) * std**2 * shift)

    return velocity


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_gaussians_of_one_variance_become_the_gaussian_at_the_weighted_mean(weight: float, tmp_path: Path) -> None:
    """T10: N(-1, .4^2) and N(2, .4^2)."""
    config, network = compose(["avoid", another(tmp_path / "other")], (weight, 1 - weight))
    assert isinstance(network, ComposedNetwork)
    network.parts[0].forward, network.parts[1].forward = exact(-1.0, 0.4), exact(2.0, 0.4)
    policy: Any = policy_of(config, network)
    seen = policy.condition([]).seeing(torch.zeros(4000, 1, 8))
    draw = Draw.of(seeds(0, "gaussian", count=4000), torch.zeros(4000, dtype=torch.long), 0, 0)
    found = FlowSampler(steps=200, guidance=1.0)(policy, seen, draw).final
    assert float(found.mean()) == pytest.approx(-1.0 * weight + 2.0 * (1 - weight), abs=0.02)
    assert float(found.std()) == pytest.approx(0.4, abs=0.01)


def test_velocities_of_ddpms_are_weighted_as_their_noise_is(tmp_path: Path) -> None:
    folders = [another(tmp_path / str(width), kind="ddpm", width=width, steps=20) for width in (16, 32, 48)]
    weights = (0.5, 0.2, 0.3)
    policy = policy_of(*compose(folders, weights))
    x, seen = torch.randn(5, 4, 2), policy.condition([]).seeing(torch.randn(5, 1, 8))
    t = policy.snap(torch.full((5,), 0.4).double())
    each = [load_control(folder, device="cpu").velocity(x, t, seen) for folder in folders]
    wanted = torch.stack([weight * velocity for weight, velocity in zip(weights, each, strict=True)]).sum(dim=0)
    torch.testing.assert_close(policy.velocity(x, t, seen), wanted, rtol=1e-5, atol=1e-5)


def test_a_composed_policy_is_a_model_like_any_other(tmp_path: Path) -> None:
    config, network = compose(["avoid", another(tmp_path / "other")], (0.75, 0.25))
    save_control(config, network, tmp_path / "both")
    facts = json.loads((tmp_path / "both" / "config.json").read_text())
    assert facts["policies"] == [{"weight": 0.75, "width": 128, "depth": 3}, {"weight": 0.25, "width": 32, "depth": 2}]
    again = load_control(tmp_path / "both", device="cpu", critic="network")
    assert again.config.policies == (Share(0.75, 128, 3), Share(0.25, 32, 2))
    seen, policy = torch.randn(3, 8), policy_of(config, network)
    assert torch.equal(again.select_action(seen), policy.select_action(seen))
    assert again.value(seen[:, None]).shape == (3,)
    assert export(again, tmp_path / "out", "merged") == 0
    corrected = load_control(tmp_path / "out", device="cpu", residual=Residual())
    assert corrected.trains_residual and torch.equal(
        corrected.executed(seen[:, None], seen[:, :2]), policy.executed(seen[:, None], seen[:, :2])
    )


def test_what_does_not_go_together_is_said(tmp_path: Path) -> None:
    other = another(tmp_path / "other")
    for weights, message in (
        ((0.5,), "2 policies and 1 weights"),
        ((0.7, 0.7), r"sum to 1"),
        ((1.5, -0.5), "0 or more"),
        ((math.nan, 1.0), "0 or more"),
    ):
        with pytest.raises(UserError, match=message):
            compose(["avoid", other], weights)
    for name, changed, message in (
        ("gaussian", {"kind": "gaussian"}, "is a Gaussian, which denoises nothing"),
        ("chunk", {"chunk": 2}, "has chunk 2 and avoid 4"),
        ("kind", {"kind": "ddpm"}, "has kind ddpm and avoid flow"),
    ):
        with pytest.raises(UserError, match=message):
            compose(["avoid", another(tmp_path / name, **changed)], (0.5, 0.5))
    with pytest.raises(UserError, match="nothing to compose of avoid alone"):
        compose(["avoid"], (1.0,))
    with pytest.raises(UserError, match="episodes=0 searches nothing"):
        search(["avoid", other], episodes=0)
    strange = load_control(other, device="cpu")
    strange.network.actions.std.mul_(1.1)
    save_control(strange.config, strange.network, tmp_path / "strange")
    with pytest.raises(UserError, match=r"standardise actions by other statistics.*statistics=\.\.\."):
        compose(["avoid", tmp_path / "strange"], (0.5, 0.5))
    (tmp_path / "bad").mkdir()
    for given, message in (
        ([{"weight": 1}], "a weight, width and depth of each"),
        ([{"weight": 1, "width": 2, "depth": 2}], "sum to 1"),
    ):
        (tmp_path / "bad" / "config.json").write_text(json.dumps({"observation": 8, "action": 2, "policies": given}))
        with pytest.raises(UserError, match=message):
            load_control(tmp_path / "bad", device="cpu")


def test_the_grid_is_the_simplex() -> None:
    assert list(simplex(2, 2)) == [(0.0, 1.0), (0.5, 0.5), (1.0, 0.0)]
    three = list(simplex(3, 10))
    assert len(three) == len(set(three)) == 66 and all(abs(sum(each) - 1) < 1e-12 for each in three)
    assert best_of({(0.0, 1.0): 0.5, (0.5, 0.5): 0.5, (1.0, 0.0): 0.2}) == (0.5, 0.5)


def test_a_search_finds_the_policy_that_succeeds(tmp_path: Path, capsys: Any) -> None:
    other = another(tmp_path / "other")
    main([str(other), "avoid", "--out", str(tmp_path / "best"), "--parts", "2", "--episodes", "36"])
    assert json.loads((tmp_path / "best" / "config.json").read_text())["policies"][1]["weight"] == 1.0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("0.00 1.00  success 0.") and said[2] == "1.00 0.00  success 0.000"
    found = search([other, "avoid"], parts=1, episodes=36)
    assert f"success {found[(0.0, 1.0)]:.3f}" in said[0] and found[(0.0, 1.0)] > 0.1
    with pytest.raises(UserError, match="exists; name a new folder"):
        main([str(other), "avoid", "--out", str(tmp_path / "best")])
