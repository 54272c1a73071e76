"""Pictures of episodes: what is drawn where, what is kept of a run, and what the page shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flowrl.environments import Episode, find_drawing
from flowrl.records.directory import RunDirectory
from flowrl.report.gallery import heldout_pairs, sample_cards
from flowrl.report.record import Snapshot
from flowrl.samplers.chunks import sample
from flowrl.samplers.episodes import EpisodeSampler
from flowrl.samplers.flow import FlowSampler
from flowrl.trajectories import draw_trajectories
from flowrl.types import Draw, OneProcess, Prompt, Rollout, Samples, Scores, Share
from flowrl.worlds.avoid.layout import ROWS, gap_centre
from flowrl.worlds.avoid.picture import ARRIVED, ASKED, FAILED, GROUND, HIGH, SCALE, SIDE, draw
from tests.contract.toy_environment import toy_policy

TOY = "tests.contract.toy_environment:make"
OWN = '''
import numpy as np
from tests.contract.toy_environment import Plane as make

def draw(episodes):
    """A row of pixels for each episode: its first number, its decisions, its mode."""
    rows = [[e.observed[0, 0] * 10 + 100, len(e.observed) - 1, e.mode] for e in episodes]
    return np.array(rows).round().astype(np.uint8)[:, None]
'''


def colour(picture: np.ndarray, x: float, y: float) -> str:
    """The nearest of ours at a place of the board; edges are smooth."""
    pixel = picture[round((HIGH - y) * SCALE), round((x + SIDE + 0.06) * SCALE)]
    known = (ARRIVED, FAILED, ASKED, GROUND)
    return min(known, key=lambda name: np.abs(np.array(list(bytes.fromhex(name[1:]))) - pixel).sum())


def test_a_path_on_the_board_has_the_colour_of_its_end() -> None:
    """Straight up through the gap 1 of the first row; beside it is ground, and the asked gap is marked."""
    x = float(gap_centre(0, 1))
    seen = np.zeros((4, 8))
    seen[:, 0], seen[:, 1] = x, [0.0, 0.3, 0.6, 0.9]
    asked = Prompt("p", 0, {"way": "0-1-2"})
    for success, wanted in ((1.0, ARRIVED), (0.0, FAILED)):
        found = draw([Episode(seen, asked, success, -1)])
        assert found.dtype == np.uint8 and found.shape[2] == 3 and max(found.shape) <= 320
        assert colour(found, x, 0.3) == wanted and colour(found, x + 0.2, 0.2) == GROUND
        assert colour(found, float(gap_centre(0, 0)), ROWS[0]) == ASKED
        assert colour(found, float(gap_centre(1, 1)), ROWS[1]) == ASKED
    many = draw([Episode(seen, asked, 1.0, 5), Episode(seen + 0.1, Prompt("p", 0), 0.0, -1)])
    assert colour(many, float(gap_centre(0, 0)), ROWS[0]) == GROUND


def rolled(environment: str) -> tuple[EpisodeSampler, Rollout, list[Prompt]]:
    policy, prompts = toy_policy(), [Prompt(f"p{i}", i) for i in range(6)]
    draw = Draw.of(torch.arange(6), torch.arange(6), 0, 0, prompts)
    sampler = EpisodeSampler(sampler=FlowSampler(steps=3), environment=environment, decisions=3)
    return sampler, sample(sampler, policy, policy.condition(prompts), draw, 4), prompts


def test_episodes_are_drawn_by_what_stands_beside_make(tmp_path: Path) -> None:
    """Also where a process holds its samples in another order; nothing where there is no drawing, or it fails."""
    file = tmp_path / "own.py"
    file.write_text(OWN)
    sampler, rollout, prompts = rolled(f"{file}:make")
    drawn = draw_trajectories(sampler, rollout, Share.alone(6), torch.tensor([4, 1]), prompts)
    assert drawn is not None and drawn.each.shape == (2, 3, 1, 1) and drawn.together.shape == (3, 6, 1)
    assert torch.equal(drawn.each[:, :, 0, 0], drawn.together[:, [4, 1], 0].T)
    assert drawn.together[1, :, 0].tolist() == rollout.final[:, 1].tolist()
    assert drawn.together[2, :, 0].tolist() == rollout.final[:, 4].tolist()
    assert len(drawn.together[0].unique()) == 6  # each has its own start
    here = torch.tensor([5, 0, 3, 1, 2, 4])
    moved = draw_trajectories(sampler, rollout, Share.of(OneProcess(), here), torch.tensor([5]), prompts)
    assert moved is not None and torch.equal(moved.together[:, here], drawn.together)
    assert torch.equal(moved.each[0, :, 0], drawn.together[:, 0])
    assert find_drawing("gym:Pendulum-v1") is None and find_drawing("avoid") is draw
    assert draw_trajectories(*rolled(TOY)[:2], Share.alone(6), torch.arange(2), prompts) is None
    file.write_text(OWN.replace("np.uint8", "float"))
    with pytest.warns(UserWarning, match=r"draw fails: .*\[H, W, 3\] of uint8, and this one \[1, 1, 3\] of float64"):
        sampler, rollout, prompts = rolled(f"{file}:make")
        assert draw_trajectories(sampler, rollout, Share.alone(6), torch.arange(2), prompts) is None


def test_the_page_shows_them_with_the_line_that_tells_of_the_episode(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(OWN)
    sampler, rollout, prompts = rolled(f"{file}:make")
    rows, run = torch.tensor([0, 5]), RunDirectory(tmp_path)
    drawn = draw_trajectories(sampler, rollout, Share.alone(6), rows, prompts)
    told = toy_policy().decode(rollout.final)
    made = Samples([prompts[0], prompts[5]], completions=[told[0], told[5]])
    scores = Scores(torch.ones(6, 1), torch.ones(1), ("r",), torch.arange(6), torch.arange(6), torch.ones(6).bool())
    for step in (0, 3):
        given = {"seeds": torch.arange(6), "rows": rows, "folder": run.heldout_path, "drawn": drawn}
        folder = run.save_samples(step, made, scores, torch.zeros(6), **given)
        assert folder is not None and Image.open(folder / "together.png").size == (1, 6)
    cards = sample_cards(Snapshot(3, run.heldout_path / "step_000003"), str)
    assert [card["prompt"] for card in cards] == ["all episodes", "p0", "p5"]
    assert [Path(card["image"]).name for card in cards] == ["together.png", "0000.png", "0001.png"]
    assert cards[2]["line"] == told[5] and "text" not in cards[2]
    pairs = heldout_pairs(tmp_path, str)
    assert pairs is not None and [pair["prompt"] for pair in pairs["pairs"]] == ["all episodes", "p0", "p5"]
    shown = sample_cards(Snapshot(3, run.heldout_path / "step_000003"), lambda path: None)
    assert [card.get("text") for card in shown] == [told[0], told[5]]  # of pictures that are gone, the lines remain
