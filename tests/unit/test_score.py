"""Rewards: every accepted signature gives the same numbers, and every wrong answer is named."""

import io
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from flowrl.config import RewardConfig
from flowrl.data import load_prompts
from flowrl.errors import UserError
from flowrl.score import RewardError, Rewards, list_rewards, load_rewards
from flowrl.score.conformance import run_checks
from flowrl.score.reward import Reward as _Reward
from flowrl.score.signatures import adapt
from flowrl.types import Prompt, Samples, Scores

PROMPTS = [Prompt("a", 5, {"tag": "x", "target": 0.25}), Prompt("b", 9, {"tag": "y", "target": 0.5})]
GROUP = torch.tensor([0, 0, 1, 1])


def samples() -> Samples:
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return Samples([PROMPTS[0], PROMPTS[0], PROMPTS[1], PROMPTS[1]], images)


def rewards_of(*functions: Any, weights: Sequence[float] = (), on_nan: Any = "raise", **options: Any) -> Rewards:
    weights = weights or [1.0] * len(functions)
    parts = [
        _Reward(f"r{i}", weight, adapt(function, f"r{i}", options, None), None)
        for i, (function, weight) in enumerate(zip(functions, weights, strict=True))
    ]
    return Rewards(parts, on_nan)


def score(*functions: Any, **settings: Any) -> Scores:
    return rewards_of(*functions, **settings)(samples(), GROUP)


def brightness(images: Tensor, prompts: Sequence[str], **columns: Any) -> Tensor:
    return images.mean(dim=(1, 2, 3))


def test_signatures_people_have_give_the_same_numbers() -> None:
    def plain(images: Tensor, prompts: Sequence[str]) -> Any:
        return images.mean(dim=(1, 2, 3)).numpy()

    def flow_grpo(images: Tensor, prompts: Sequence[str], metadata: Sequence[dict]) -> Any:
        assert [row["tag"] for row in metadata] == ["x", "x", "y", "y"]
        return [float(image.mean()) for image in images], {"info": 1}

    def strict(images: Tensor, prompts: Sequence[str], metadata: Any, only_strict: bool) -> Any:
        assert only_strict
        return images.mean(dim=(1, 2, 3)), {}

    def factory(device: str) -> Any:
        assert device in ("cpu", "cuda")
        return flow_grpo

    class Scorer:
        def __init__(self, scale: float = 1.0) -> None:
            self.scale = scale

        def __call__(self, images: Tensor, prompts: Sequence[str], **columns: Any) -> Tensor:
            return self.scale * images.mean(dim=(1, 2, 3))

    expected = score(brightness).rewards
    for function in (plain, flow_grpo, strict, factory, Scorer):
        torch.testing.assert_close(score(function).rewards, expected, rtol=0, atol=1e-7)
    torch.testing.assert_close(score(Scorer, scale=3.0).rewards, 3 * expected)


def test_columns_reach_a_reward_by_name_or_all_together() -> None:
    def one(images: Tensor, target: Sequence[float]) -> list[float]:
        return list(target)

    def every(images: Tensor, prompts: Sequence[str], **columns: Any) -> list[float]:
        assert set(columns) == {"tag", "target"}
        return list(columns["target"])

    assert score(one, every).rewards.tolist() == [[0.25, 0.25], [0.25, 0.25], [0.5, 0.5], [0.5, 0.5]]

    def absent(images: Tensor, answer: Sequence[str]) -> list[float]:
        raise AssertionError

    with pytest.raises(UserError, match=r"needs the column 'answer'.*'tag', 'target'"):
        score(absent)


def test_text_rewards_get_completions_and_none_means_could_not_score() -> None:
    def length(prompts: Sequence[str], completions: Sequence[str], completion_ids: Any = None, **columns: Any) -> Any:
        return [len(text) if text else None for text in completions]

    texts = Samples(PROMPTS, completions=["abc", ""])
    values = rewards_of(length).raw(texts)[:, 0]
    assert values[0] == 3.0 and math.isnan(values[1])
    with pytest.raises(UserError, match="scores images, but the model makes no images"):
        rewards_of(brightness).raw(texts)


def test_scores_carry_weights_groups_and_prompt_ids() -> None:
    scores = score(brightness, lambda images, prompts: torch.ones(4), weights=[2.0, 0.0])
    assert scores.prompt_ids.tolist() == [5, 5, 9, 9] and scores.group.tolist() == [0, 0, 1, 1]
    assert scores.rewards.dtype == torch.float64 and bool(scores.valid.all())
    torch.testing.assert_close(scores.total, 2 * scores.rewards[:, 0])


@pytest.mark.parametrize(
    ("answer", "match"),
    [
        (torch.ones(3), "should return 4 scores for 4 samples, found 3"),
        (torch.ones(4, 1), "found 4x1"),
        (torch.tensor(1.0), "found one number"),
        ([1.0, 2.0, math.inf, 0.0], "returned inf for sample 2"),
        (["good"] * 4, "list of numbers, found list"),
        (None, "missing return"),
        ({"score": [1] * 4}, "found dict"),
    ],
)
def test_wrong_answers_are_named(answer: Any, match: str) -> None:
    with pytest.raises(UserError, match=match):
        score(lambda images, prompts: answer)


def _with_nan(images: Tensor, prompts: Sequence[str]) -> Tensor:
    return torch.tensor([1.0, math.nan, 3.0, 4.0])


def test_nan_policies() -> None:
    with pytest.raises(UserError, match=r"'r0' could not score 1 of 4 samples \(prompts: 'a'\).*on_nan=drop_group"):
        score(_with_nan)
    assert score(_with_nan, on_nan="drop_sample").valid.tolist() == [True, False, True, True]
    assert score(_with_nan, on_nan="drop_group").valid.tolist() == [False, False, True, True]


def test_a_watched_reward_never_drops_or_stops() -> None:
    scores = score(brightness, _with_nan, weights=[1.0, 0.0])
    assert bool(scores.valid.all()) and bool(torch.isfinite(scores.total).all())


def test_nothing_left_is_an_error() -> None:
    with pytest.raises(UserError, match="left no sample"):
        score(lambda images, prompts: [math.nan] * 4, on_nan="drop_sample")


def test_broken_images_could_not_be_scored_by_anyone() -> None:
    broken = samples()
    assert broken.images is not None
    broken.images[2, 0, 0, 0] = math.nan

    def sees(images: Tensor, prompts: Sequence[str]) -> Tensor:
        assert bool(torch.isfinite(images).all())
        return torch.ones(4)

    scores = rewards_of(sees, on_nan="drop_sample")(broken, GROUP)
    assert scores.valid.tolist() == [True, True, False, True]
    assert bool(broken.images.isnan().any())  # the caller's images stay as they were


def test_a_reward_that_raises_is_named_with_its_line_and_chained() -> None:
    def broken(images: Tensor, prompts: Sequence[str]) -> Tensor:
        raise ZeroDivisionError("oops")

    with pytest.raises(RewardError, match=r"reward 'r0' raised ZeroDivisionError: oops .*test_score.py:\d+ in broken"):
        score(broken)
    try:
        score(broken)
    except RewardError as error:
        assert isinstance(error.__cause__, ZeroDivisionError)


def test_changing_the_images_is_refused() -> None:
    def dims(images: Tensor, prompts: Sequence[str]) -> Tensor:
        images.mul_(0.5)
        return torch.ones(4)

    with pytest.raises(UserError, match="changes the images in place"):
        score(dims)


def test_batches_change_nothing() -> None:
    def name(size: int | None) -> Rewards:
        return load_rewards([RewardConfig(use="jpeg_compressibility", batch_size=size)])

    assert torch.equal(name(None).raw(samples()), name(3).raw(samples()))


def test_jpeg_rewards_are_ddpo_kilobytes() -> None:
    noise = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    pair = Samples([Prompt("a", 0), Prompt("b", 1)], torch.cat([torch.full((1, 3, 64, 64), 0.5), noise]))
    less, more = load_rewards(["jpeg_compressibility", "jpeg_incompressibility"]).raw(pair).T
    assert torch.equal(less, -more)
    assert more[1] > 5 * more[0] and 0.5 < more[0] < 1.0  # kB of 1000 bytes: a flat image is little but its header
    file = io.BytesIO()
    Image.fromarray((noise[0] * 255).round().byte().permute(1, 2, 0).numpy()).save(file, "JPEG", quality=95)
    assert more[1] == len(file.getvalue()) / 1000, "as DDPO's code writes it"


def test_finding_by_name_path_and_module(tmp_path: Path) -> None:
    code = "SCALE = {}\ndef bright(images, prompts, scale=SCALE):\n    return scale * images.mean(dim=(1, 2, 3))\n"
    for folder, scale in (("one", 1), ("two", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "r.py").write_text(code.format(scale))
    specs = [{"use": f"{tmp_path}/{folder}/r.py:bright", "name": folder} for folder in ("one", "two")]
    values = load_rewards([*specs, {"use": "rewards.jpeg:jpeg_compressibility"}]).raw(samples())
    torch.testing.assert_close(values[:, 1], 2 * values[:, 0])
    option = load_rewards([{**specs[0], "options": {"scale": 3}}]).raw(samples())
    torch.testing.assert_close(option[:, 0], 3 * values[:, 0])


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("jpeg_compresibility", "did you mean 'jpeg_compressibility'"),
        ("nowhere.py:f", "nowhere.py does not exist"),
        ("rewards.jpeg:jpg", "has no function or class 'jpg'"),
        ("no.such.module:f", "cannot be imported"),
        ("rewards/jpeg.py", "name the function or class"),
        ({"use": "jpeg_compressibility", "options": {"qualty": 3}}, "has no option 'qualty'"),
        ({"use": "length_penalty", "options": {"limit": True, "buffer": 2}}, r"options\.limit: True will not do"),
        ({"use": "jpeg_compressibility", "device": "cuda:1"}, "no device"),
    ],
)
def test_rewards_that_do_not_exist(spec: Any, match: str) -> None:
    with pytest.raises(UserError, match=match):
        load_rewards([spec])


def test_types_of_options_are_those_of_the_signature(tmp_path: Path) -> None:
    """Where an annotation or a default tells them; a stranger's unknown annotations tell nothing."""
    text = """
def f(images, prompts, *, scale: float = 1.0, near=0.5, strict=False, sizes: tuple[int, int] = (), maybe: int = None):
    return [float(scale)] * len(prompts)
def g(images, prompts, *, odd: "Nowhere" = 1): return [float(odd)] * len(prompts)
"""
    (tmp_path / "r.py").write_text(text)

    def load(name: str, **options: Any) -> None:
        load_rewards([{"use": f"{tmp_path / 'r.py'}:{name}", "options": options}]).close()

    for key, value in (("scale", True), ("scale", "2"), ("near", True), ("strict", 1), ("sizes", [1, 2.5])):
        with pytest.raises(UserError, match=rf"reward 'f': options\.{key}: .* will not do: "):
            load("f", **{key: value})
    load("f", scale=2, near=1, strict=True, sizes=[3, 4], maybe=None)
    load("g", odd=True)


@pytest.mark.parametrize("leave", ["exit(3)", "__import__('os')._exit(3)"])
def test_asynchronous_rewards_that_leave_end_their_own_call(leave: str, tmp_path: Path) -> None:
    """Not the process, nor the loop that the next call needs."""
    text = f"async def f(images, prompts): {leave}\nasync def g(images, prompts): return [1.0] * len(prompts)\n"
    (tmp_path / "r.py").write_text(text)
    samples = Samples([Prompt("a", 0), Prompt("b", 1)], images=torch.rand(2, 3, 4, 4))
    with pytest.raises(UserError, match="exit"):
        load_rewards([f"{tmp_path / 'r.py'}:f"])(samples, torch.arange(2))
    load_rewards([f"{tmp_path / 'r.py'}:g"])(samples, torch.arange(2))


def test_functions_that_score_nothing_are_refused(tmp_path: Path) -> None:
    (tmp_path / "r.py").write_text("def none(texts=()): return [0.0]\ndef make(scale): return None\n")
    for spec in (f"{tmp_path}/r.py:none", {"use": f"{tmp_path}/r.py:make", "options": {"scale": 1}}):
        with pytest.raises(UserError, match="should be a function of"):
            load_rewards([spec])
    with pytest.raises(UserError, match=r"r\.py has no function or class 'two'; known: make"):
        load_rewards([f"{tmp_path}/r.py:two"])


def test_an_option_without_a_default_is_asked_for_as_one() -> None:
    with pytest.raises(UserError, match="'length_penalty' needs 'limit'; give it under its options, or as a column"):
        load_rewards(["length_penalty"]).raw(Samples(PROMPTS, completions=["abc", ""]))


def test_syntax_errors_in_a_reward_file_name_the_line(tmp_path: Path) -> None:
    (tmp_path / "r.py").write_text("x = 1\ndef f(:\n")
    with pytest.raises(UserError, match=r"r.py line 2"):
        load_rewards([f"{tmp_path}/r.py:f"])


def test_equal_names_are_refused() -> None:
    with pytest.raises(UserError, match="occurs more than once"):
        load_rewards(["jpeg_compressibility", {"use": "rewards.jpeg:jpeg_compressibility"}])


def test_listing_finds_shipped_rewards_without_importing_them() -> None:
    found = {entry.name: entry for entry in list_rewards()}
    assert {"jpeg_compressibility", "jpeg_incompressibility", "shapes"} <= set(found)
    assert found["jpeg_incompressibility"].kind == "image" and "kB" in found["jpeg_incompressibility"].range


def test_conformance_passes_shipped_rewards_and_catches_bad_ones(tmp_path: Path) -> None:
    prompts = load_prompts("shapes:test").prompts[::12][:6]
    assert all(finding.passed for finding in run_checks("jpeg_compressibility", prompts))
    assert all(finding.passed for finding in run_checks("shapes", prompts))
    (tmp_path / "bad.py").write_text(
        "import torch\n"
        "def unsteady(images, prompts): return torch.rand(len(prompts))\n"
        "def ranked(images, prompts): return images.mean(dim=(1, 2, 3)).argsort().argsort().float()\n"
        "def fragile(images, prompts):\n"
        "    if bool((images == 0).all(dim=1).any()): raise ValueError('black')\n"
        "    return images.mean(dim=(1, 2, 3))\n"
        "def short(images, prompts): return [1.0]\n"
    )
    failed = {
        name: {f.check for f in run_checks(f"{tmp_path}/bad.py:{name}", prompts) if not f.passed}
        for name in ("unsteady", "ranked", "fragile", "short")
    }
    assert "same answer twice" in failed["unsteady"]
    assert failed["ranked"] == {"same answer one by one"}
    assert failed["fragile"] == {"accepts junk"}
    assert failed["short"] == {"returns one number per sample"}


def test_versions_of_rewards_are_told_for_the_manifest(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "class judge:\n"
        "    version = 'weights-3, crop-2'\n"
        "    def __call__(self, images, prompts, **columns):\n"
        "        return [0.5] * len(prompts)\n"
    )
    rewards = load_rewards([f"{tmp_path / 'mine.py'}:judge", "jpeg_compressibility"])
    assert rewards.versions["judge"] == "weights-3, crop-2"
    name = "jpeg_compressibility"
    assert re.fullmatch(rf"{name}:quality-95:4:2:0:libjpeg-[\d.]+-1", rewards.versions[name])
    elsewhere = load_rewards([{"use": name, "process": True}])
    assert elsewhere.versions == {name: rewards.versions[name]}, "also of a reward in another process"
    elsewhere.close()
