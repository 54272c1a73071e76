"""The grid between two goals: rules, starts, the base that is noise, and what is drawn."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flowrl.environments import Episode, find_drawing, open_environment
from flowrl.errors import UserError
from flowrl.evaluation.suites import find
from flowrl.evaluation.targets import find_target
from flowrl.evaluation.targets.request import Request
from flowrl.models.control.load import load_control
from flowrl.models.control.new import untrained
from flowrl.models.control.untrained import BASES
from flowrl.samplers.episodes import EpisodeSampler
from flowrl.samplers.flow import FlowSampler
from flowrl.samplers.gaussian import GaussianSampler
from flowrl.types import Draw, Episodes, Prompt
from flowrl.worlds.two_walls.grid import LIMIT, MIDDLE, SADDLE, SIZE, Grid
from flowrl.worlds.two_walls.picture import draw
from flowrl.worlds.two_walls.prompts import prompts


def at(*cells: tuple[int, int]) -> list[Prompt]:
    return [Prompt("p", i, {"start": list(cell)}) for i, cell in enumerate(cells)]


def test_moves_are_rounded_and_either_goal_ends_an_episode() -> None:
    """As gridworld/utils/gridworld.py of akanazawa/fpo: clipped, then rounded to the nearest even number at a half."""
    grid = Grid(5)
    seen = grid.reset([0] * 5, at((12, 12), (0, 2), (24, 22), (3, 3), (5, 21)))
    assert np.allclose(seen[:3] * 12 + 12, [[12, 12], [0, 2], [24, 22]])
    moves = np.array([[0.4, -7.0], [-3.0, -0.6], [0.51, 0.9], [0.5, -0.5], [-1.0, 1.0]])
    seen, reward, ended, cut, known = grid.step(moves, np.arange(5))
    cells = np.round(seen * 12 + 12).astype(int).tolist()
    assert cells == [[12, 11], [0, 1], [24, 23], [3, 3], [4, 22]]
    assert reward.tolist() == [0, 20, 20, 0, 0] and ended.tolist() == [False, True, True, False, False]
    assert known["mode"].tolist() == [-1, 0, 1, -1, -1] and known["success"].tolist() == [0, 1, 1, 0, 0]
    assert not cut.any()
    for _ in range(LIMIT - 2):
        assert not grid.step(np.zeros((1, 2)), np.array([0]))[3].any()
    assert grid.step(np.zeros((1, 2)), np.array([0]))[3].all()
    assert not grid.step(np.array([[0.0, -1.0]]), np.array([3]))[3].any()  # of its own time


def test_episodes_begin_anywhere_between_the_goals_or_where_the_prompt_says() -> None:
    grid, numbers = Grid(4000), torch.randint(2**62, (4000,)).tolist()
    cells = np.round(grid.reset(numbers, [Prompt("p", 0)] * 4000) * 12 + 12).astype(int)
    assert set(cells[:, 1]) == set(range(2, 23)) and set(cells[:, 0]) == set(range(SIZE))
    again = np.round(grid.reset(numbers[:7], [Prompt("p", 0)] * 7) * 12 + 12).astype(int)
    assert np.array_equal(again, cells[:7])
    assert [row["start"] for row in prompts("test")] == [[column, MIDDLE] for column in SADDLE] and len(SADDLE) == 11
    environment = open_environment("two_walls", 1)
    with pytest.raises(UserError, match=r"two_walls: reset fails: .*start \[3, 24\] is no cell between the goals"):
        environment.reset(torch.zeros(1, dtype=torch.int64), at((3, 24)))


def test_the_base_is_noise_for_a_flow_and_for_a_gaussian() -> None:
    """And what ships is what the script writes."""
    policy = load_control("two_walls")
    made = untrained(BASES["two_walls"]).state_dict()
    assert all(torch.equal(value, made[name]) for name, value in policy.network.state_dict().items())
    asked = at(*[(12, 12)] * 400)
    drawn = Draw.of(torch.arange(400), torch.arange(400), 0, 0, asked)
    for inner in (FlowSampler(steps=3, guidance=1.0), GaussianSampler()):
        sampler = EpisodeSampler(sampler=inner, environment="two_walls", decisions=1)
        rollout = sampler(policy, policy.condition(asked), drawn)
        assert isinstance(rollout.trace, Episodes)
        actions = rollout.trace.actions.flatten()
        assert abs(float(actions.mean())) < 0.15 and abs(float(actions.std()) - 1) < 0.1


def test_paths_have_the_colour_of_their_goal() -> None:
    """Straight up from (12, 12), straight down, and neither."""
    assert find_drawing("two_walls") is draw
    up = np.stack([np.zeros(3), np.array([0, 3, 6]) / 12], axis=1)
    for sign, mode, wanted in ((1, 1, (31, 111, 180)), (-1, 0, (216, 96, 44)), (1, -1, (138, 143, 152))):
        found = draw([Episode(up * [1, sign], Prompt("p", 0), 1.0, mode)])
        assert found.shape == (300, 300, 3) and found.dtype == np.uint8
        row = 300 - round(12 * (12.5 + sign * 4.5))
        assert np.abs(found[row, 150].astype(int) - wanted).max() < 60 and found[300 - row, 150].min() > 220
    assert found[3, 3].tolist() == [220, 239, 220]


def test_its_model_is_evaluated_in_it() -> None:
    """Without a run that names the environment."""
    target, samplers = find_target("two_walls", Request())
    sampler = samplers[""]
    assert isinstance(sampler, EpisodeSampler) and (sampler.environment, sampler.decisions) == ("two_walls", LIMIT)
    [suite] = find(["control"], target)
    assert [prompt.columns["start"] for prompt in suite.prompts] == [row["start"] for row in prompts("test")]
