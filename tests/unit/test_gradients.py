"""Rewards with a gradient: each has its score's value and slope, a judge is the total, others are refused."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flowrl.config import RewardConfig
from flowrl.errors import UserError
from flowrl.score import list_rewards, load_rewards
from flowrl.score.conformance import run_checks
from flowrl.score.gradients import check_gradients, check_loaded_gradients, judge
from flowrl.scorers.images import Preprocessing
from flowrl.types import Prompt, Samples
from flowrl.worlds.shapes import prompts as shapes_prompts
from flowrl.worlds.shapes.scenes import random_scene, render
from rewards.aesthetic import aesthetic
from rewards.clipscore import clipscore
from rewards.hpsv2 import hpsv2
from rewards.imagereward import imagereward
from rewards.jpeg import jpeg_compressibility, kilobytes, smooth_kilobytes
from rewards.pickscore import pickscore
from rewards.shapes import shapes, shapes_soft
from tests.tiny_scorers import (
    PROMPTS,
    SIDE,
    pictures,
    save_aesthetic,
    save_clip,
    save_imagereward,
    save_open_clip,
)


@pytest.fixture(scope="module")
def scorers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    torch.set_num_threads(1)
    new = tmp_path_factory.mktemp
    clip, words = save_clip(new("clip")), str(save_imagereward(new("imagereward")))
    return {
        "pickscore": pickscore(str(clip)),
        "clipscore": clipscore(str(clip)),
        "clipscore_positive": clipscore(str(clip), convention="clipscore", prefix="A photo depicts "),
        "hpsv2": hpsv2(str(save_open_clip(new("open_clip")))),
        "aesthetic": aesthetic(str(save_aesthetic(new("head"))), clip=str(clip)),
        "imagereward": imagereward(words, tokenizer=words),
    }


NAMES = ("pickscore", "clipscore", "clipscore_positive", "hpsv2", "aesthetic", "imagereward")


def slopes(reward: Any, images: Tensor, told: list[str], step: float = 3e-3) -> tuple[Tensor, Tensor]:
    """Of every sample, along its own gradient: by autograd, and by central differences."""
    x = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(reward.gradient(x, told).sum(), x)
    direction = gradient / gradient.flatten(1).abs().max(dim=1).values.clamp(min=1e-12)[:, None, None, None]
    with torch.no_grad():
        ends = [reward.gradient(images + sign * step * direction, told).double() for sign in (1, -1)]
    return (gradient * direction).flatten(1).sum(dim=1).double(), (ends[0] - ends[1]) / (2 * step)


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_of_a_scorer_has_its_value_and_its_slope(scorers: dict[str, Any], name: str) -> None:
    reward, images = scorers[name], 0.1 + 0.8 * pictures()
    plain = reward(images, PROMPTS)
    smooth = reward.gradient(images.requires_grad_(), PROMPTS)
    assert smooth.requires_grad and not plain.requires_grad
    # what quantising to 8 bits and Pillow's rounding move
    torch.testing.assert_close(smooth.detach().double(), plain, rtol=2e-3, atol=5e-3 * float(plain.abs().max()))
    by_graph, by_steps = slopes(reward, images.detach(), PROMPTS)
    positive = plain != 0  # a score cut at 0 has no slope there
    torch.testing.assert_close(by_graph[positive], by_steps[positive], rtol=0.03, atol=0)
    assert bool((by_graph[positive] > 0).all())
    assert torch.equal(reward(images.detach(), PROMPTS), plain)  # embeddings that both use are the same


@pytest.mark.parametrize(("height", "width"), [(40, 54), (54, 40), (20, 32), (32, 32), (16, 90)])
@pytest.mark.parametrize("floor", [True, False])
def test_smooth_preprocessing_is_pillows_but_for_rounding(height: int, width: int, floor: bool) -> None:
    images = pictures(3, height, width)
    for crop, resize in ((SIDE, SIDE), (None, (24, 28)), (40, 32)):
        preprocess = Preprocessing(crop=crop, resize=resize, floor=floor)
        found = preprocess.smooth(images) - preprocess((images * 255).round().byte())
        assert float(found.abs().max()) < 2 / 255 / 0.26
    with pytest.raises(UserError, match="filter 1 has no gradient"):
        Preprocessing(crop=None, resize=8, resample=1).smooth(images)


def test_soft_file_sizes_follow_those_of_files() -> None:
    rows = shapes_prompts("train")[::8]
    drawn = render([random_scene(row, random.Random(i)) for i, row in enumerate(rows)])
    for images in (drawn, pictures(12, 64, 48), pictures(6, 31, 45)):
        soft, size = smooth_kilobytes(images), kilobytes(images)
        assert float(torch.corrcoef(torch.stack([soft.double(), size]))[0, 1]) > 0.7
        assert float((soft / size - 1).abs().max()) < 0.1
    faint = 0.5 + 0.3 * (drawn - 0.5)
    assert bool((smooth_kilobytes(faint) < smooth_kilobytes(drawn)).all())
    by_graph, by_steps = slopes(jpeg_compressibility(), (0.1 + 0.8 * drawn[:4]).double(), [""] * 4, 1e-5)
    torch.testing.assert_close(by_graph, by_steps, rtol=0.05, atol=0)


# ---------------------------------------------------------------------------------------------------- soft shapes
def scenes(rows: list[dict[str, Any]]) -> Tensor:
    return render([random_scene(row, random.Random(i)) for i, row in enumerate(rows)])


def test_the_soft_score_is_high_where_the_verifier_says_yes_and_low_where_it_says_no() -> None:
    rows = shapes_prompts("train")[::3]
    images, told = scenes(rows), [row["prompt"] for row in rows]
    include = [row["include"] for row in rows]
    right = shapes_soft()(images, told, include=include)
    assert bool((shapes(images, told, mode="strict", include=include) == 1).all()) and float(right.min()) > 0.98
    turned = include[1:] + include[:1]
    wrong = shapes(images, told, mode="strict", include=turned) == 0
    soft = shapes_soft()(images, told, include=turned)[wrong]
    assert int(wrong.sum()) > 10 and float(soft.median()) < 0.7
    assert float(soft.max()) < float(right.min())


def test_ascending_the_soft_score_makes_a_picture_right() -> None:
    rows = [row for row in shapes_prompts("train") if row["tag"] in ("counting", "color_attr")][::20]
    include, told = [row["include"] for row in rows], [row["prompt"] for row in rows]
    images = scenes(rows) * 0.5 + 0.5 * scenes(rows[1:] + rows[:1])  # as much of another one
    before = shapes_soft()(images, told, include=include)
    for _ in range(60):
        images.requires_grad_()
        (slope,) = torch.autograd.grad(shapes_soft().gradient(images, told, include=include).sum(), images)
        images = (images.detach() + 0.02 * slope.sign() * (slope.abs() > 1e-6)).clamp(0, 1)
    after = shapes_soft()(images, told, include=include)
    assert float(before.mean()) < 0.9 and float(after.min()) > 0.97


def test_the_soft_score_sums_the_arrangements_that_the_metadata_allows() -> None:
    """By enumeration of what four slots may show, with the relations that the world's scenes are drawn by."""
    from flowrl.worlds.shapes.soft import RANGE, slot_logs, soft_score

    row = {"include": [{"class": "circle", "count": 1}, {"class": "square", "count": 1, "position": ["left of", 0]}]}
    images = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    shown = slot_logs(images)[0].exp()
    circle, square = shown[:, 1:7].sum(dim=1), shown[:, 7:13].sum(dim=1)
    total = 0.0
    for a in range(4):
        for b in range(4):
            others = [q for q in range(4) if q not in (a, b)]
            if a != b and b % 2 < a % 2:  # the square's column is left of the circle's: slots are (column, row)
                total += float(circle[a] * square[b] * shown[others, 0].prod())
    assert float(soft_score(images, [row])) == pytest.approx(1 + math.log(total) / RANGE, rel=1e-4)
    torch.testing.assert_close(shown.sum(dim=1), torch.ones(4))


# ----------------------------------------------------------------------------------------------------------- judge
OWN = '''
class bright:
    """Mean of red, times a factor."""
    def __init__(self, factor: float = 1.0):
        self.factor = factor
    def __call__(self, images, prompts, wanted, **columns):
        return (images[:, 0].flatten(1).mean(dim=1) * self.factor * torch.tensor(wanted)).double()
    def gradient(self, images, prompts, wanted, **columns):
        return images[:, 0].flatten(1).mean(dim=1) * self.factor * torch.tensor(wanted)

def dark(images, prompts, *, power=2.0, **columns):
    return 1 - images.flatten(1).mean(dim=1) ** power

def smooth(images, prompts, *, power=2.0, **columns):
    return 1 - images.flatten(1).mean(dim=1) ** power
dark.gradient = smooth

def rigid(images, prompts, *, power=2.0, **columns):
    return 1 - images.flatten(1).mean(dim=1) ** power
rigid.gradient = lambda images, prompts: images.flatten(1).mean(dim=1)

def worded(images, prompts, **columns):
    return images.flatten(1).mean(dim=1) * torch.tensor([float(len(text)) for text in prompts])
worded.gradient = worded

def rounded(images, prompts, **columns):
    return images.flatten(1).mean(dim=1)
rounded.gradient = lambda images, prompts, **columns: images.detach().flatten(1).mean(dim=1)

def elsewhere(images, prompts, **columns):
    return images.flatten(1).mean(dim=1)
elsewhere.gradient = lambda images, prompts, **columns: 3 + images.flatten(1).mean(dim=1)

def plain(images, prompts, **columns):
    return images.flatten(1).mean(dim=1)

def compared(images, prompts, group, **columns):
    return images.flatten(1).mean(dim=1)
'''


@pytest.fixture
def own(tmp_path: Path) -> Path:
    file = tmp_path / "mine.py"
    file.write_text("import torch\n" + OWN)
    return file


def decoded(latents: Tensor) -> Tensor:
    return latents[:, :, None, None].expand(-1, 3, 2, 2).sigmoid() * torch.tensor([1.0, 0.5, 0.25])[:, None, None]


def test_a_judge_is_the_total_with_weights_gates_and_applicability(own: Path) -> None:
    prompts = [Prompt("a b", 0, {"kind": "x", "wanted": 2.0}), Prompt("c", 1, {"kind": "y", "wanted": -1.0})]
    held = [prompts[0], prompts[1], prompts[0], prompts[1]]
    rewards = load_rewards([
        {"use": f"{own}:bright", "weight": 2.0, "options": {"factor": 3.0}, "applies": {"kind": "x"}},
        {"use": f"{own}:dark", "weight": -0.5, "options": {"power": 3.0}},
        {"use": f"{own}:plain", "gate": 0.3},
        {"use": f"{own}:plain", "name": "watched", "train": False},
    ])  # fmt: skip
    check_loaded_gradients(rewards)
    latents = torch.randn(4, 3, generator=torch.Generator().manual_seed(1)).double()
    latents[2] = -4.0  # the gate stays shut
    scores = rewards(Samples(held, decoded(latents)), torch.tensor([0, 1, 0, 1]))
    found = judge(rewards, scores, held, torch.arange(4), decoded)
    assert found.names == ("bright", "dark")
    x = latents.clone().requires_grad_()
    torch.testing.assert_close(found(x, torch.arange(4)).sum(dim=1).detach(), scores.total, rtol=1e-6, atol=1e-8)
    (slope,) = torch.autograd.grad(found(x, torch.arange(4)).sum(), x)
    step = 1e-5

    def total(at: Tensor) -> Tensor:
        return replace(scores, rewards=rewards(Samples(held, decoded(at)), torch.tensor([0, 1, 0, 1])).rewards).total

    for j in range(3):
        nudge = torch.zeros(4, 3).double()
        nudge[:, j] = step
        torch.testing.assert_close(
            slope[:, j], (total(latents + nudge) - total(latents - nudge)) / (2 * step), rtol=1e-4, atol=1e-7
        )
    spare = judge(rewards, scores, held[:1], torch.tensor([-1]), decoded)(x[:1], torch.tensor([0]))
    assert spare.tolist() == [[0, 0]] and spare.requires_grad


def test_a_judge_can_be_asked_about_other_words(own: Path) -> None:
    rewards = load_rewards([f"{own}:worded"])
    prompts = [Prompt("abc", 0), Prompt("d", 1)]
    latents = torch.zeros(2, 3)
    scores = rewards(Samples(prompts, decoded(latents)), torch.arange(2))
    found = judge(rewards, scores, prompts, torch.arange(2), decoded)
    good, same = found.in_words(latents, torch.arange(2), ("good. {}", "{}"))
    assert torch.equal(same, found(latents, torch.arange(2)))
    torch.testing.assert_close((good / same)[:, 0], torch.tensor([9 / 3, 7 / 1]))


# --------------------------------------------------------------------------------------------------------- refusals
def test_rewards_without_a_gradient_are_refused_by_name(own: Path) -> None:
    def loaded(*specs: Any) -> None:
        check_loaded_gradients(load_rewards(specs))

    loaded(f"{own}:dark", {"use": f"{own}:plain", "weight": 0}, {"use": f"{own}:compared", "train": False})
    for use, options, sentence in (
        ("plain", {}, "plain declares no gradient"),
        ("compared", {}, "compared compares the samples of a group"),
        ("rigid", {"power": 3.0}, "rigid has a gradient that does not take the option 'power'"),
    ):
        with pytest.raises(UserError, match=sentence):
            loaded({"use": f"{own}:{use}", "options": options})


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        (
            {"use": "shapes"},
            "shapes has none; of the rewards that come with flowrl aesthetic, .*shapes_soft",
        ),
        ({"use": "shapes_soft", "process": True}, "shapes_soft is scored in a process of its own"),
        ({"use": "http://127.0.0.1:9/x"}, "http://127.0.0.1:9/x is scored elsewhere"),
        ({"use": "shapes_soft", "weight": 0}, "none has a weight"),
    ],
)
def test_a_config_is_refused_before_anything_is_loaded(spec: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        check_gradients([RewardConfig.model_validate(spec)])


def test_the_list_says_which_rewards_have_a_gradient() -> None:
    able = {entry.name for entry in list_rewards() if entry.differentiable}
    scorers = {"aesthetic", "clipscore", "hpsv2", "imagereward", "pickscore"}
    assert able == {*scorers, "jpeg_compressibility", "jpeg_incompressibility", "shapes_soft"}


# ------------------------------------------------------------------------------------------------ flowrl test-reward
def failed(use: str) -> list[str]:
    prompts = [
        Prompt(row["prompt"], i, {"include": row["include"]}) for i, row in enumerate(shapes_prompts("test")[:6])
    ]
    return [found.check for found in run_checks(use, prompts) if not found.passed]


def test_test_reward_compares_a_gradient_with_the_score_and_with_differences(own: Path) -> None:
    assert failed("shapes_soft") == [] and failed("jpeg_incompressibility") == [] and failed(f"{own}:dark") == []
    assert failed(f"{own}:rounded") == ["gradient is the slope"]
    assert failed(f"{own}:elsewhere") == ["gradient has the score's value"]
