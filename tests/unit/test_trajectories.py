"""Pictures of episodes: what is drawn where, what is kept of a run, and what the page shows."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from flowrl.environments import Episode, find_drawing
from flowrl.media import animation
from flowrl.records.directory import RunDirectory
from flowrl.records.sample_files import write_beside, write_overviews, write_text
from flowrl.report.gallery import evaluation_pairs, heldout_pairs, sample_cards
from flowrl.report.pictures import shrunk
from flowrl.report.record import Snapshot
from flowrl.samplers.chunks import sample
from flowrl.samplers.episodes import EpisodeSampler
from flowrl.samplers.flow import FlowSampler
from flowrl.trajectories import FRAMES, _growing, draw_trajectories
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
    drawn = draw_trajectories(sampler, rollout, Share.alone(6), torch.tensor([4, 1]), prompts, None)
    assert drawn is not None and drawn.each.shape == (2, 3, 1, 1) and drawn.together.shape == (3, 6, 1)
    assert torch.equal(drawn.each[:, :, 0, 0], drawn.together[:, [4, 1], 0].T)
    assert drawn.together[1, :, 0].tolist() == rollout.final[:, 1].tolist()
    assert drawn.together[2, :, 0].tolist() == rollout.final[:, 4].tolist()
    assert len(drawn.together[0].unique()) == 6  # each has its own start
    here = torch.tensor([5, 0, 3, 1, 2, 4])
    moved = draw_trajectories(sampler, rollout, Share.of(OneProcess(), here), torch.tensor([5]), prompts, None)
    assert moved is not None and torch.equal(moved.together[:, here], drawn.together)
    assert torch.equal(moved.each[0, :, 0], drawn.together[:, 0])
    assert find_drawing("gym:Pendulum-v1") is None and find_drawing("avoid") is draw
    assert draw_trajectories(*rolled(TOY)[:2], Share.alone(6), torch.arange(2), prompts, None) is None
    file.write_text(OWN.replace("np.uint8", "float"))
    with pytest.warns(UserWarning, match=r"draw fails: .*\[H, W, 3\] of uint8, and this one \[1, 1, 3\] of float64"):
        sampler, rollout, prompts = rolled(f"{file}:make")
        assert draw_trajectories(sampler, rollout, Share.alone(6), torch.arange(2), prompts, None) is None


def test_the_page_shows_them_with_the_line_that_tells_of_the_episode(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(OWN)
    sampler, rollout, prompts = rolled(f"{file}:make")
    rows, run = torch.tensor([0, 5]), RunDirectory(tmp_path)
    drawn = draw_trajectories(sampler, rollout, Share.alone(6), rows, prompts, None)
    told = toy_policy().decode(rollout.final)
    made = Samples([prompts[0], prompts[5]], completions=[told[0], told[5]])
    scores = Scores(torch.ones(6, 1), torch.ones(1), ("r",), torch.arange(6), torch.arange(6), torch.ones(6).bool())
    for step in (0, 3):
        given = {"seeds": torch.arange(6), "rows": rows, "folder": run.heldout_path, "drawn": drawn}
        folder = run.save_samples(step, made, scores, torch.zeros(6), **given)
        assert folder is not None and Image.open(folder / "together.png").size == (1, 6)
    cards = sample_cards(Snapshot(3, run.heldout_path / "step_000003"), str)
    moves = "the first episode, as it goes on"
    assert [card["prompt"] for card in cards] == ["all episodes", moves, "p0", "p5"]
    assert [Path(card["image"]).name for card in cards] == ["together.png", "episode.gif", "0000.png", "0001.png"]
    assert cards[3]["line"] == told[5] and "text" not in cards[3]
    content, kind = shrunk(run.heldout_path / "step_000003/episode.gif") or (b"", "")
    assert kind == "image/gif" and content == (run.heldout_path / "step_000003/episode.gif").read_bytes()
    pairs = heldout_pairs(tmp_path, str)
    assert pairs is not None and [pair["prompt"] for pair in pairs["pairs"]] == ["all episodes", moves, "p0", "p5"]
    shown = sample_cards(Snapshot(3, run.heldout_path / "step_000003"), lambda path: None)
    assert [card.get("text") for card in shown] == [told[0], told[5]]  # of pictures that are gone, the lines remain


def frames_of(content: bytes) -> list[np.ndarray]:
    with Image.open(io.BytesIO(content)) as image:
        found = []
        for number in range(image.n_frames):  # pyright: ignore[reportAttributeAccessIssue]
            image.seek(number)
            found.append(np.asarray(image.convert("RGB")))
        return found


def test_an_episode_moves_along_its_path_and_its_end_is_told_at_the_end() -> None:
    seen = np.zeros((60, 8))
    seen[:, 0], seen[:, 1] = gap_centre(0, 1), np.linspace(0, 0.9, 60)
    episode = Episode(seen, Prompt("p", 0, {"way": "0-1-2"}), 0.0, -1)
    frames = list(_growing(draw, episode))
    assert len(frames) == FRAMES and np.array_equal(frames[-1], draw([episode]))
    x, y = float(seen[0, 0]), float(seen[30, 1])
    assert (
        colour(frames[5], x, y) == GROUND and colour(frames[-2], x, y) == ARRIVED and colour(frames[-1], x, y) == FAILED
    )
    short = list(_growing(draw, Episode(seen[:3], episode.prompt, 1.0, -1)))
    assert len(short) == 3 and colour(short[1], x, float(seen[0, 1])) == ARRIVED
    made = frames_of(animation(frames))
    assert len(made) == FRAMES and made[0].shape == frames[0].shape  # small enough as it is
    for mine, other in zip(made, frames, strict=True):  # 64 colours
        apart = np.abs(mine.astype(int) - other)
        assert apart.max() < 80 and apart.mean() < 0.5
    assert colour(made[-2], x, y) == ARRIVED and colour(made[-1], x, y) == FAILED


def test_a_moving_picture_of_noise_is_made_small() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 480, 480, 3), dtype=np.uint8)
    content = animation(list(noise))
    assert len(content) <= 250_000 and len(frames_of(content)) >= 5


SHOWING = """
import numpy as np
from tests.contract.toy_environment import Plane

class Showing(Plane):
    def render(self, row):
        return np.full((4, 4, 3), 100 + 10 * self._own[row] + self._time[row]).round().astype(np.uint8)

def make(count):
    return Showing(count)
"""


def test_an_environment_shows_itself_while_its_actions_are_executed_again(tmp_path: Path) -> None:
    file = tmp_path / "showing.py"
    file.write_text(SHOWING)
    sampler, rollout, prompts = rolled(f"{file}:make")
    rows, policy = torch.tensor([3]), toy_policy()
    assert draw_trajectories(sampler, rollout, Share.alone(6), rows, prompts, policy) is None
    sampler = replace(sampler, render=True)
    drawn = draw_trajectories(sampler, rollout, Share.alone(6), rows, prompts, policy)
    own = 100 + 10 * np.random.default_rng(3).normal()
    assert drawn is not None and drawn.each is None and drawn.together is None
    assert [int(frame[0, 0, 0]) for frame in drawn.moving] == [round(own + time) for time in range(3)]
    other = replace(rollout, seeds=rollout.seeds + 1)
    with pytest.warns(UserWarning, match="its actions end elsewhere: not all that is random follows from its seed"):
        assert draw_trajectories(sampler, other, Share.alone(6), rows, prompts, policy) is None
    with pytest.warns(UserWarning, match=r"has no method render\(row\)"):
        assert (
            draw_trajectories(replace(sampler, environment=TOY), rollout, Share.alone(6), rows, prompts, policy) is None
        )
    with pytest.raises(ValueError, match="render=true steps the environment in this process"):
        replace(sampler, timeout_s=5.0)
    run = RunDirectory(tmp_path)
    made = Samples([prompts[3]], completions=toy_policy().decode(rollout.final[3:4]))
    scores = Scores(torch.ones(6, 1), torch.ones(1), ("r",), torch.arange(6), torch.arange(6), torch.ones(6).bool())
    folder = run.save_samples(1, made, scores, torch.zeros(6), seeds=torch.arange(6), rows=rows, drawn=drawn)
    assert folder is not None and sorted(path.name for path in folder.iterdir()) == ["episode.gif", "samples.jsonl"]


def test_gymnasiums_environments_show_themselves_where_that_is_asked() -> None:
    gymnasium: Any = pytest.importorskip("gymnasium")

    class Shows(gymnasium.Env):
        metadata: ClassVar[Any] = {"render_modes": ["rgb_array"], "render_fps": 10}
        observation_space = gymnasium.spaces.Box(-1, 1, (2,))
        action_space = gymnasium.spaces.Box(-1, 1, (2,))

        def __init__(self, render_mode: str | None = None) -> None:
            self.render_mode, self.closed = render_mode, 0

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            super().reset(seed=seed)
            self.steps = 0
            return np.zeros(2, np.float32), {}

        def step(self, action: Any) -> Any:
            self.steps += 1
            return np.zeros(2, np.float32), 0.0, False, self.steps == 3, {}

        def render(self) -> Any:
            return None if self.render_mode is None else np.full((5, 6, 3), 50 * self.steps, np.uint8)

    gymnasium.register("flowrl/Shows-v0", entry_point=Shows)
    sampler, rollout, prompts = rolled("gym:flowrl/Shows-v0")
    given = (rollout, Share.alone(6), torch.tensor([2]), prompts, toy_policy())
    assert draw_trajectories(sampler, *given) is None
    drawn = draw_trajectories(replace(sampler, render=True), *given)
    assert drawn is not None and [int(frame.max()) for frame in drawn.moving] == [0, 50, 100, 150]
    assert drawn.moving[0].shape == (5, 6, 3)


def test_the_page_shows_base_beside_tuned_of_an_evaluation(tmp_path: Path) -> None:
    picture = torch.zeros(3, 4, 6, dtype=torch.uint8)
    line = {"filename": "avoid-test/00000/samples/0000.json", "tag": "all", "prompt": "p", "completion": "success"}
    for arm in ("base", "tuned"):
        write_text(tmp_path / "eval" / arm / "control/results.jsonl", json.dumps(line) + "\n")
        write_text(tmp_path / "eval" / arm / "avoid-test/manifest.json", "{}")
        write_overviews(tmp_path / "eval" / arm / "avoid-test", picture, [picture.permute(1, 2, 0).numpy()] * 2)
    found = evaluation_pairs(tmp_path, {"suites": {"control": {}}}, lambda path: path.parent.parent.name)
    assert found is not None
    shown = {pair["prompt"]: (pair["before"].get("image"), pair["after"].get("image")) for pair in found["pairs"]}
    assert shown == {
        "all episodes": ("base", "tuned"),
        "the first episode, as it goes on": ("base", "tuned"),
        "p": (None, None),
    }
    files = [tmp_path / "eval" / arm / "avoid-test/together.png" for arm in ("base", "tuned")]
    write_beside(tmp_path / "control.png", files)
    with Image.open(tmp_path / "control.png") as image:
        assert image.size == (6 + 12 + 6, 4)
    write_beside(tmp_path / "none.png", [*files, tmp_path / "missing.png"])
    assert not (tmp_path / "none.png").exists()
