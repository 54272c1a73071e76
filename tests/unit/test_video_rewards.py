"""Rewards of videos on drawn frames whose answers are known."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from flowrl.errors import UserError
from flowrl.score import load_rewards
from flowrl.score.conformance import run_checks
from flowrl.score.gradients import gradient_of
from flowrl.scorers.videos import spaced_frames
from flowrl.types import Prompt, Samples, prompts_of
from rewards.motion import motion_amount, motion_smoothness, shifted
from rewards.vlm_judge import vlm_judge

SIDE, FRAMES = 32, 9


def sliding(step: int, height: int = 10, width: int = 8, start: int = 2) -> Tensor:
    """[F, 3, 32, 32]: a white square on black that moves by ``step`` pixels a frame."""
    frames = torch.zeros(FRAMES, 3, SIDE, SIDE)
    for t in range(FRAMES):
        left = start + step * t
        frames[t, :, 11 : 11 + height, left : left + width] = 1
    return frames


def test_a_sliding_square_is_smoother_than_its_frames_in_another_order() -> None:
    still, slow, fast = (sliding(step) for step in (0, 1, 2))
    shuffled = fast[[0, 5, 2, 8, 1, 7, 3, 6, 4]]
    flicker = still.clone()
    flicker[1::2] = 0
    scores = motion_smoothness()(torch.stack([still, slow, fast, shuffled, flicker]), ["a square"] * 5)
    assert scores[:3].tolist() == [1, 1, 1], "constant speed is what the neighbours say"
    assert float(scores[3]) < 0.97
    assert float(scores[4]) == pytest.approx(1 - 80 / SIDE**2), "the square is there or not: its area"


def test_a_jump_beyond_the_radius_is_not_smooth() -> None:
    far = torch.stack([sliding(0, width=18, start=place)[0] for place in (2, 7, 12)])
    near, enough = (float(motion_smoothness(radius=radius)(far[None], ["x"])[0]) for radius in (2, 5))
    assert near < 0.94 < 0.96 < enough, (near, enough)
    small = torch.stack([sliding(0, start=place)[0] for place in (2, 14, 26)])  # beyond its own width: not followed
    assert float(motion_smoothness(radius=12)(small[None], ["x"])[0]) == pytest.approx(1 - 80 / SIDE**2)


def test_the_amount_of_motion_is_the_share_of_pixels_that_change() -> None:
    videos = torch.stack([sliding(step) for step in (0, 1, 2)])
    wanted = [2 * step * 10 / SIDE**2 for step in (0, 1, 2)]  # a column of the square's height at each of its sides
    torch.testing.assert_close(motion_amount()(videos, ["x"] * 3).tolist(), wanted)
    torch.testing.assert_close(motion_amount(side=8)(videos[:1], ["x"]).tolist(), [0.0])


def test_moved_frames_repeat_their_edges() -> None:
    frame = torch.arange(9.0).view(1, 1, 3, 3)
    assert shifted(frame, 1, -1)[0, 0].tolist() == [[1, 2, 2], [1, 2, 2], [4, 5, 5]]


@pytest.mark.parametrize("name", ["motion_smoothness", "motion_amount"])
def test_they_keep_the_promises_of_rewards(name: str) -> None:
    prompts = prompts_of(f"prompt {number}" for number in range(6))
    findings = run_checks(name, prompts, size=16, frames=5)
    assert len(findings) > 6 and all(finding.passed for finding in findings), findings
    assert not run_checks(name, prompts, size=16)[1].passed  # images are no videos


def test_wrong_videos_are_named() -> None:
    scorer = motion_smoothness()
    with pytest.raises(UserError, match=r"take videos \[N, F, 3, H, W\].*found 1x3x4x4"):
        scorer(torch.zeros(1, 3, 4, 4), ["x"])
    with pytest.raises(UserError, match="3 frames or more, found 2"):
        scorer(torch.zeros(1, 2, 3, 4, 4), ["x"])
    with pytest.raises(UserError, match="1 videos, 2 prompts"):
        scorer(torch.zeros(1, 3, 3, 4, 4), ["x", "y"])
    with pytest.raises(UserError, match="radius=40 in"):
        motion_smoothness(radius=40)
    broken = torch.zeros(2, 3, 3, 8, 8)
    broken[1, 2, 0, 0, 0] = torch.nan
    assert scorer(broken, ["x", "y"]).isnan().tolist() == [False, True]


class warm:  # noqa: N801 - the name a config uses
    """Red minus blue, with a gradient; NaN for a picture without red. Notes what it was asked."""

    asked: ClassVar[list[tuple[tuple[int, ...], list[str], Any]]] = []

    def __call__(self, images: Tensor, prompts: list[str], tag: Any, **columns: Any) -> Tensor:
        self.asked.append((tuple(images.shape), prompts, tag))
        red = images[:, 0].flatten(1).mean(dim=1)
        return torch.where(red > 0, red - images[:, 2].flatten(1).mean(dim=1), torch.nan)

    def gradient(self, images: Tensor, prompts: list[str], **columns: Any) -> Tensor:
        return images[:, 0].flatten(1).mean(dim=1) - images[:, 2].flatten(1).mean(dim=1)


def video_samples() -> Samples:
    videos = torch.zeros(2, 8, 3, 4, 4)
    videos[0, :, 0] = torch.arange(1, 9).view(8, 1, 1) / 10
    videos[1, ::2, 0] = 0.5  # every other frame has no red
    return Samples([Prompt("one", 0, {"tag": "a"}), Prompt("two", 1, {"tag": "b"})], videos)


def test_a_reward_of_images_scores_frames_and_takes_their_mean() -> None:
    warm.asked.clear()
    entry = {"use": f"{__file__}:warm", "frames": 4}
    rewards, samples = load_rewards([entry], on_nan="drop_sample"), video_samples()
    values = rewards.raw(samples)[:, 0]
    torch.testing.assert_close(values.tolist(), [(0.1 + 0.3 + 0.5 + 0.7) / 4, 0.5])
    every = load_rewards([{**entry, "frames": 100}], on_nan="drop_sample").raw(samples)[:, 0]
    torch.testing.assert_close(every.tolist(), [0.45, 0.5]), "the mean over frames that have a score"
    function = rewards.rewards[0].function
    asked = getattr(function, "function", None)
    assert type(asked).asked[0] == ((8, 3, 4, 4), ["one"] * 4 + ["two"] * 4, ["a"] * 4 + ["b"] * 4)
    images = samples.images
    assert images is not None
    gradient = gradient_of(function)
    assert not isinstance(gradient, str)
    leaf = images.clone().requires_grad_()
    gradient(Samples(samples.prompts, leaf)).sum().backward()
    assert leaf.grad is not None
    per_pixel = leaf.grad[0].sum(dim=(-1, -2))
    torch.testing.assert_close(per_pixel[::2], torch.tensor([0.25, 0, -0.25]).expand(4, 3))
    assert not per_pixel[1::2].any(), "frames that are not scored"


def test_frames_of_what_is_no_video_or_of_a_group_are_refused() -> None:
    rewards = load_rewards([{"use": f"{__file__}:warm", "frames": 2}])
    with pytest.raises(UserError, match="frames=2 of videos, and the model makes images"):
        rewards.raw(Samples([Prompt("x", 0, {"tag": 1})], torch.zeros(1, 3, 4, 4)))
    with pytest.raises(UserError, match="compares the samples of a group, so frames=2"):
        load_rewards([{"use": "novelty", "options": {"path": "pixels"}, "frames": 2}])


def test_frames_are_the_first_of_equal_stretches() -> None:
    videos = torch.arange(10.0).view(1, 10, 1, 1, 1)
    assert spaced_frames(videos, 4).flatten().tolist() == [0, 2, 5, 7]
    assert spaced_frames(videos, 20).shape[1] == 10


def test_a_judge_is_shown_the_frames_of_a_video_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    from rewards import _vlm

    said: list[Any] = []

    def complete(self: Any, conversations: Any) -> list[str]:
        said.extend(conversations)
        return ["Alignment Score (1-5): 5\nPhysics Score (1-5): 3\nStyle Score (1-5): 1"] * len(conversations)

    monkeypatch.setattr(_vlm.Endpoint, "complete", complete)
    judge = vlm_judge(url="http://localhost:1/v1", model="m", rubric="unified_reward_video", frames=3)
    videos = video_samples().images
    assert videos is not None
    assert judge(videos, ["one", "two"]).tolist() == [0.5, 0.5]
    content = said[0][0]["content"]
    assert [part["type"] for part in content] == ["image_url"] * 3 + ["text"]
    pixels = (videos[0, [0, 2, 5]] * 255).round().byte()
    assert [part["image_url"]["url"] for part in content[:3]] == [_vlm.data_uri(frame) for frame in pixels]
    assert content[3]["text"].endswith("Text Caption: [one]") and "Physics Score" in content[3]["text"]
