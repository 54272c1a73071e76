"""The reward interface: other frameworks' signatures, groups, applicability, gates, failures, overlap and processes."""

import asyncio
import json
import logging
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from flowrl.config import Config, RewardConfig
from flowrl.config.listing import config_table
from flowrl.config.reward import OnErrorConfig
from flowrl.config.yaml_text import parse_yaml
from flowrl.data import load_prompts
from flowrl.errors import UserError
from flowrl.parts.advantages import GroupCentred, LeaveOneOut
from flowrl.parts.aggregations import DecisionMean, SampleMean
from flowrl.parts.diagnostics import describe_scores
from flowrl.parts.selections import AllSamples, DropFlatGroups
from flowrl.score import RewardError, Rewards, Scoring, joined, load_rewards
from flowrl.score import reward as reward_module
from flowrl.score.conformance import run_checks
from flowrl.score.registry import check_reward
from flowrl.score.reward import Reward
from flowrl.score.samples import take
from flowrl.score.signatures import adapt
from flowrl.train import train
from flowrl.types import Prompt, Samples, Scores
from tests.contract.toys import Iteration, gradients, roll, small, start
from tests.launching import PATHS, settled

PROMPTS = [Prompt(name, index + 3, {"tag": tag}) for index, (name, tag) in enumerate(zip("abcd", "xxyz", strict=True))]
GROUP = torch.arange(4).repeat_interleave(3)


def on_error(then: Any, retry: int = 0) -> OnErrorConfig:
    return OnErrorConfig(then=then, retry=retry)


def samples(size: int = 8) -> Samples:
    """Four prompts with three samples each."""
    images = torch.rand(12, 3, size, size, generator=torch.Generator().manual_seed(0))
    return Samples([PROMPTS[int(g)] for g in GROUP], images)


def texts(words: Sequence[str], **columns: Any) -> Samples:
    prompts = [Prompt("q", i, {key: values[i] for key, values in columns.items()}) for i in range(len(words))]
    return Samples(prompts, completions=list(words))


def brightness(images: Tensor, prompts: Sequence[str]) -> Tensor:
    return images.mean(dim=(1, 2, 3))


def reward(function: Any, name: str = "r", weight: float = 1.0, **fields: Any) -> Reward:
    options = fields.pop("options", {})
    answer = adapt(function, name, options, None)
    return Reward(name, weight, answer, fields.pop("batch_size", None), **fields)


def given(values: Sequence[float]) -> Any:
    """A reward that says these numbers, which it finds by the images' first pixel."""
    table = {round(float(image[0, 0, 0]), 6): value for image, value in zip(pixels(), values, strict=True)}

    def answer(images: Tensor, prompts: Sequence[str]) -> list[float]:
        return [table[round(float(image[0, 0, 0]), 6)] for image in images]

    return answer


def pixels() -> Tensor:
    images = samples().images
    assert images is not None
    return images


def score(*rewards: Reward, on_nan: Any = "raise") -> Scores:
    return Rewards(rewards, on_nan)(samples(), GROUP)


# ------------------------------------------------------------------------------------------------ signatures
def test_verl_functions_are_asked_sample_by_sample() -> None:
    def compute_score(data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None) -> float:
        assert data_source == "math" and extra_info == {"index": 7}
        return float(solution_str == ground_truth)

    def detailed(data_source: str, solution_str: str, ground_truth: str, extra_info: Any, **kwargs: Any) -> dict:
        return {"score": kwargs["scale"] * float(solution_str == ground_truth), "acc": 1}

    together = asyncio.Barrier(3)

    async def waiting(data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None) -> float:
        await asyncio.wait_for(together.wait(), 30)  # which none of them passes alone
        return float(solution_str == ground_truth)

    made = texts(["1", "2", "3"], data_source=["math"] * 3, ground_truth=["1", "0", "3"], extra_info=[{"index": 7}] * 3)
    nested = texts(["1", "2", "3"], data_source=["math"] * 3, reward_model=[{"ground_truth": t} for t in "103"])
    rewards = Rewards([reward(compute_score, "a"), reward(detailed, "b", options={"scale": 2.0})], "raise")
    assert rewards.styles == {"a": "verl", "b": "verl"}
    assert rewards.raw(made).tolist() == [[1, 2], [0, 0], [1, 2]]
    assert Rewards([reward(detailed, "b", options={"scale": 3.0})], "raise").raw(nested)[:, 0].tolist() == [3, 0, 3]
    assert Rewards([reward(waiting)], "raise").raw(made)[:, 0].tolist() == [1, 0, 1]
    with pytest.raises(UserError, match=r"verl signature\) needs the column 'ground_truth'"):
        Rewards([reward(waiting)], "raise").raw(texts(["1"], data_source=["math"]))
    with pytest.raises(UserError, match="scores solution_str, but the model makes images"):
        Rewards([reward(compute_score)], "raise").raw(samples())


def test_verl_omni_functions_get_one_image() -> None:
    def compute_score(data_source: Any, solution_image: Tensor, ground_truth: Any, extra_info: Any = None) -> float:
        assert solution_image.shape == (3, 8, 8)
        return float(solution_image.mean()) + ground_truth

    made = samples()
    prompts = [replace(p, columns={"data_source": "x", "ground_truth": 2.0}) for p in made.prompts]
    values = Rewards([reward(compute_score)], "raise").raw(replace(made, prompts=prompts))[:, 0]
    torch.testing.assert_close(values, pixels().mean(dim=(1, 2, 3)).double() + 2, rtol=0, atol=1e-6)


@dataclass
class RewardModelOutput:
    rewards: Any
    extra_info: Any = None


class PointwiseRewardModel:
    """As in Flow-Factory's rewards/abc.py, from which its users derive."""

    required_fields: tuple[str, ...] = ("prompt", "image")
    use_tensor_inputs = False

    def __init__(self, config: Any, accelerator: Any) -> None:
        self.config, self.device, self.dtype = config, config.device, config.dtype
        assert accelerator.is_main_process


class GroupwiseRewardModel(PointwiseRewardModel):
    pass


class Bright(PointwiseRewardModel):
    def __call__(self, prompt: list[str], image: Any = None, video: Any = None, **kwargs: Any) -> RewardModelOutput:
        assert all(isinstance(picture, Image.Image) and picture.mode == "RGB" for picture in image)
        assert set(kwargs) == {"tag"} and self.dtype is torch.float32
        means = [sum(picture.convert("RGB").tobytes()) / (picture.width * picture.height * 3) for picture in image]
        return RewardModelOutput(torch.tensor(means) / 255 * self.config.scale)


class Rank(GroupwiseRewardModel):
    use_tensor_inputs = True

    def __call__(self, prompt: list[str], image: Any = None, video: Any = None) -> RewardModelOutput:
        assert len(set(prompt)) == 1 and len(prompt) == 3
        order = torch.stack([picture.mean() for picture in image]).argsort().argsort()
        return RewardModelOutput(order.float() / len(prompt))


class Needy(PointwiseRewardModel):
    required_fields = ("prompt", "image", "condition_images")

    def __call__(self, prompt: list[str], image: Any = None) -> RewardModelOutput:
        raise AssertionError


def test_flow_factory_models_get_pictures_and_groups() -> None:
    rewards = Rewards([reward(Bright, "p", options={"scale": 2.0}), reward(Rank, "g")], "raise")
    assert rewards.styles == {"p": "Flow-Factory", "g": "Flow-Factory"} and rewards.grouped
    values = rewards(samples(), GROUP).rewards
    rounded = (pixels() * 255).round() / 255  # PIL pictures have 8 bits
    torch.testing.assert_close(values[:, 0], 2 * rounded.mean(dim=(1, 2, 3)).double(), rtol=0, atol=1e-6)
    means = pixels().mean(dim=(1, 2, 3)).reshape(4, 3)
    assert torch.allclose(values[:, 1].reshape(4, 3), means.argsort(1).argsort(1).double() / 3, atol=1e-7)
    with pytest.raises(UserError, match=r"Flow-Factory signature\) needs 'condition_images'"):
        score(reward(Needy))


def test_flow_grpos_geneval_names_its_metadata_in_the_plural() -> None:
    def geneval_score(device: str) -> Any:
        def _fn(images: Tensor, prompts: Sequence[str], metadatas: Sequence[Any], only_strict: bool) -> Any:
            assert device == "cpu" and only_strict and [m["prompt"] for m in metadatas] == list(prompts)
            scores = [float(metadata["tag"] == "x") for metadata in metadatas]
            return scores, [0.5] * len(images), [1.0] * len(images), {}, {}

        return _fn

    answer = adapt(geneval_score, "g", {}, "cpu")
    assert answer.style == "flow_grpo"
    values = Rewards([Reward("g", 1.0, answer, None)], "raise").raw(samples())[:, 0]
    assert values.tolist() == [1.0] * 6 + [0.0] * 6, "the first list is the one that flow_grpo trains on"


BROKEN = """
class fails:
    def __init__(self, path="w"): raise RuntimeError("no weights at " + path)
    def __call__(self, images, prompts): return images.mean(dim=(1, 2, 3))

class needs:
    def __init__(self, path): self.path = path
    def __call__(self, images, prompts): return images.mean(dim=(1, 2, 3))

def batched(data_sources, solution_strs, ground_truths): return [0.0]

def leaves(images, prompts): raise SystemExit(3)
"""


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("fails", r"cannot be loaded: RuntimeError: no weights at w \(.*broken.py:3 in __init__\)"),
        ("needs", "needs an option: missing a required argument: 'path'"),
        ("batched", r"should be a function of \(images, prompts, ...\) or .* missing a required argument"),
    ],
)
def test_code_that_fails_while_it_loads_is_a_sentence(tmp_path: Path, name: str, match: str) -> None:
    (tmp_path / "broken.py").write_text(BROKEN)
    with pytest.raises(UserError, match=match):
        load_rewards([f"{tmp_path / 'broken.py'}:{name}"])


def test_a_file_that_fails_while_it_is_imported_is_a_sentence(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "undefined_here.py").write_text("scale = SCALE\ndef bright(images, prompts): return scale\n")
    monkeypatch.syspath_prepend(tmp_path)
    for use in (f"{tmp_path / 'undefined_here.py'}:bright", "undefined_here:bright"):
        with pytest.raises(UserError, match=r"NameError: name 'SCALE' is not defined \(.*undefined_here.py:1"):
            load_rewards([use])


def test_the_remedy_is_one_that_helps() -> None:
    never = [math.nan] * 12
    for fields, policy, remedy in (
        ({}, "raise", "mend it, or set on_nan=drop_sample or on_nan=drop_group$"),
        ({"on_error": on_error("raise", 0)}, "raise", r"mend it, or set its on_error to \{then: drop_group\}$"),
        ({}, "drop_group", "drop_group left no sample: .*; mend it$"),
    ):
        with pytest.raises(UserError, match=remedy):
            score(reward(given(never), **fields), on_nan=policy)


def test_a_reward_that_ends_the_program_has_failed(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(BROKEN)
    with pytest.raises(RewardError, match=r"raised SystemExit: 3 \(.*broken.py:12 in leaves\)"):
        load_rewards([f"{tmp_path / 'broken.py'}:leaves"]).raw(samples())


def test_rewards_of_conversational_data_get_messages() -> None:
    seen: list[Any] = []

    def tagged(prompts: Any, completions: Any, **columns: Any) -> list[float]:
        seen.append((prompts, completions))
        return [float("<answer>" in completion[0]["content"]) for completion in completions]

    def by_role(completions: Any, **kwargs: Any) -> list[float]:
        return [float(sum(len(m.get("content")) for m in c if m["role"] == "assistant")) for c in completions]

    def of_question(prompts: Any, completions: Any, **kwargs: Any) -> list[float]:
        return [float(prompt[-1]["content"] == "q") for prompt in prompts]

    def whole(completions: Sequence[str], messages: Any) -> list[float]:
        return [float([m["role"] for m in messages[0]] == ["user", "assistant"]) + len(t) for t in completions]

    def plain(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
        return [len(completion) for completion in completions]

    made = texts(["<answer>1", ""])
    functions = [tagged, by_role, of_question, whole, plain]
    rewards = Rewards([reward(function, function.__name__) for function in functions], "raise")
    for _ in range(2):
        assert rewards.raw(made).tolist() == [[1, 9, 1, 10, 9], [0, 0, 1, 1, 0]]
    assert len(seen) == 3, "after the first time it is asked with messages alone"
    said = [[{"role": "assistant", "content": text}] for text in ("<answer>1", "")]
    assert seen[-1] == ([[{"role": "user", "content": "q"}]] * 2, said)
    with pytest.raises(RewardError, match=r"raised TypeError: string indices must be integers"):
        Rewards([Reward("r", 1.0, adapt(tagged, "r", {}, None, messages=False), None)], "raise").raw(made)
    asked = Rewards([Reward("r", 1.0, adapt(by_role, "r", {}, None, messages=True), None)], "raise")
    assert asked.raw(made)[:, 0].tolist() == [9, 0]


def test_a_failure_of_its_own_is_not_taken_for_reading_messages() -> None:
    calls: list[Any] = []

    def fails(completions: Any, **columns: Any) -> list[float]:
        calls.append(completions)
        raise KeyError("content")

    def text_only(completions: Any, **columns: Any) -> list[float]:
        return [completion.strip()[0].lower() for completion in completions]

    with pytest.raises(RewardError, match="raised KeyError"):
        Rewards([reward(fails)], "raise").raw(texts(["a"]))
    assert len(calls) == 1
    with pytest.raises(RewardError, match="raised IndexError: string index out of range"):
        Rewards([reward(text_only)], "raise").raw(texts([""]))


D1 = """
def extract(text): return text.split("<answer>")[-1].split("</answer>")[0].strip()

def correctness(prompts, completions, answer, step=None, run_name=None, **kwargs):
    assert prompts[0][-1]["content"] == "q"
    return [2.0 if extract(c[0]["content"]) == a else 0.0 for c, a in zip(completions, answer)]

def countdown(prompts, completions, run_name, step=None, rank=None, **kwargs):
    texts = [c[0]["content"] if isinstance(c, list) else c for c in completions]
    return [float(str(kwargs["target"][i]) in text and kwargs["numbers"][i] == [1, 2]) for i, text in enumerate(texts)]

async def waits(completions, **kwargs):
    return [float(len(c[0]["content"])) for c in completions]
"""


def test_d1s_and_verls_rewards_find_nested_answers(tmp_path: Path) -> None:
    (tmp_path / "d1.py").write_text(D1)
    rows = [{"data_source": "gsm8k", "reward_model": {"style": "rule", "ground_truth": "72"},
             "extra_info": {"index": 0, "answer": "because #### 72"}}]  # fmt: skip
    made = Samples([Prompt("q", 0, rows[0])], completions=["so <answer>72</answer>"])
    specs = [f"{tmp_path / 'd1.py'}:{name}" for name in ("correctness", "waits")]
    loaded = load_rewards([*specs, {"use": "exact_match", "options": {"extract": "answer"}}])
    assert loaded.raw(made).tolist() == [[2.0, 22.0, 1.0]]
    for truth in ({"target": 3, "numbers": [1, 2]}, '{"target": 3, "numbers": [1, 2]}'):
        for columns in ({"reward_model": {"ground_truth": truth, "style": "rule"}}, {"ground_truth": truth},
                        {"answer": truth}, {"extra_info": truth}):  # fmt: skip
            made = Samples([Prompt("q", 0, columns)], completions=["1+2"])
            assert load_rewards(["countdown"]).raw(made).tolist() == [[1.0]], columns
            assert load_rewards([f"{tmp_path / 'd1.py'}:countdown"]).raw(replace(made, completions=["3"])).tolist() == [
                [1.0]
            ]
    top = Samples([Prompt("q", 0, {"answer": "5", **rows[0]})], completions=["<answer>5</answer>"])
    assert load_rewards(specs[:1]).raw(top).tolist() == [[2.0]], "a column of the name itself goes first"


BOUND = """
import asyncio
from functools import partial
from os.path import basename as imported
import json as module

async def waits(images, prompts):
    await asyncio.sleep(0)
    return images.mean(dim=(1, 2, 3))

class Waits:
    lock = None
    async def __call__(self, images, prompts):
        self.lock = self.lock or asyncio.Lock()  # belongs to the loop it was first used in
        async with self.lock:
            await asyncio.sleep(0)
        return images.mean(dim=(1, 2, 3)) + 1

def scaled(images, prompts, scale): return scale * images.mean(dim=(1, 2, 3))

assigned = lambda images, prompts: images.mean(dim=(1, 2, 3)) + 2
annotated: object = partial(scaled, scale=3.0)
first, (second, *rest) = scaled, (waits, Waits)
instance = Waits()
if True:
    try:
        inside = waits
    except Exception:
        pass
"""


@pytest.mark.parametrize(
    ("name", "expected"),
    [("waits", 0), ("Waits", 1), ("assigned", 2), ("annotated", None), ("second", 0), ("instance", 1), ("inside", 0)],
)
def test_whatever_a_reward_file_binds_is_found(tmp_path: Path, name: str, expected: float | None) -> None:
    path = tmp_path / "bound.py"
    path.write_text(BOUND)
    check_reward(f"{path}:{name}")
    rewards = load_rewards([{"use": f"{path}:{name}", "name": "r"}])
    for _ in range(2):  # the loop outlives a call
        values = rewards.raw(samples())[:, 0]
    means = pixels().mean(dim=(1, 2, 3)).double()
    torch.testing.assert_close(values, 3 * means if expected is None else means + expected, rtol=0, atol=1e-6)


def test_names_that_a_reward_file_does_not_bind_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bound.py"
    path.write_text(BOUND)
    for name in ("lock", "wait", "images"):
        with pytest.raises(UserError, match=f"does not define '{name}'"):
            check_reward(f"{path}:{name}")
    with pytest.raises(UserError, match="has no function or class 'module'"):
        load_rewards([f"{path}:module"])
    path.write_text("from math import *\n")
    check_reward(f"{path}:bright")  # only running it tells
    with pytest.raises(UserError, match="has no function or class 'bright'"):
        load_rewards([f"{path}:bright"])
    with pytest.raises(UserError, match=r"takes; wrap it in a function|should be a function of"):
        load_rewards([f"{path}:hypot"])


# --------------------------------------------------------------------------------------------------- None
def none_for(rows: set[int], value: float = 1.0) -> Any:
    def answer(images: Tensor, prompts: Sequence[str]) -> list[float | None]:
        return [None if round(float(image[0, 0, 0]) * 1e6) in chosen else value for image in images]

    chosen = {round(float(pixels()[row, 0, 0, 0]) * 1e6) for row in rows}
    return answer


@pytest.mark.parametrize("policy", ["raise", "drop_sample", "drop_group"])
def test_none_means_that_a_reward_does_not_apply(policy: Any) -> None:
    rewards = [reward(brightness, "all"), reward(none_for({0, 5}), "some", weight=2.0)]
    scores = score(*rewards, on_nan=policy)
    assert scores.rewards[:, 1].isnan().nonzero()[:, 0].tolist() == [0, 5] and bool(scores.valid.all())
    means = pixels().mean(dim=(1, 2, 3)).double()
    added = torch.full((12,), 2.0, dtype=torch.float64)
    added[[0, 5]] = 0
    torch.testing.assert_close(scores.total, means + added, rtol=0, atol=1e-6)
    described = describe_scores(scores, torch.zeros(12, dtype=torch.float64))
    assert described["reward/some/mean"] == 1 and described["reward/some/std"] == 0
    assert described["reward/invalid_fraction"] == 0
    gated = score(reward(brightness, "all"), reward(none_for({0, 5}, 0.5), "gate", weight=0, gate="multiply"))
    factor = torch.where(added == 0, 1.0, 0.5)
    torch.testing.assert_close(gated.total, means * factor, rtol=0, atol=1e-6)


def test_a_sample_to_which_nothing_applies_is_left_out() -> None:
    scores = score(reward(none_for({0, 5})), reward(brightness, "watched", weight=0))
    assert (~scores.valid).nonzero()[:, 0].tolist() == [0, 5]
    assert scores.total[scores.valid].tolist() == [1] * 10
    advantage = GroupCentred()(scores, {})
    assert advantage.flatten()[[0, 5]].tolist() == [0, 0]
    held = Rewards([reward(none_for({0, 5}))], "raise").evaluate(samples(), GROUP)
    assert float(held.total[held.valid].mean()) == 1
    with pytest.raises(UserError, match=r"no sample is left: the rewards said None .* to 12 of 12 samples"):
        score(reward(none_for(set(range(12)))))
    with pytest.raises(UserError, match="could not score 1 of 12"):  # NaN is still a failure, beside None
        score(reward(given([math.nan, *[1.0] * 11])), reward(none_for({5}), "some"))


def test_none_travels_out_of_a_process_and_from_functions_of_verl(tmp_path: Path) -> None:
    (tmp_path / "absent.py").write_text(
        "import math\n"
        "def r(completions, **columns): return [{'n': None, 'x': math.nan}.get(c, len(c)) for c in completions]\n"
        "def v(data_source, solution_str, ground_truth): return {'score': None if solution_str == 'n' else 1}\n"
    )
    made = texts(["n", "abc", "x"], data_source=["d"] * 3, ground_truth=[1] * 3)
    for fields in ({}, {"process": True}):
        rewards = load_rewards([{"use": f"{tmp_path / 'absent.py'}:r", **fields}], on_nan="drop_sample")
        first, second, third = rewards.raw_lists(made)[0]
        assert first is None and second == 3 and third is not None and math.isnan(third)
        rewards.close()
    assert load_rewards([f"{tmp_path / 'absent.py'}:v"]).raw_lists(made) == [[None, 1.0, 1.0]]


def test_async_functions_of_trl_are_awaited() -> None:
    async def length(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float | None]:
        await asyncio.sleep(0)
        return [len(text) or None for text in completions]

    rewards = Rewards([reward(length)], "raise")
    values = rewards.raw(texts(["abc", ""]))[:, 0]
    assert values[0] == 3 and math.isnan(values[1]) and rewards.styles == {"r": "TRL"}


def test_the_signature_is_named_in_the_log_once(caplog: pytest.LogCaptureFixture) -> None:
    def flow_grpo(images: Tensor, prompts: Sequence[str], metadata: Any) -> Any:
        return images.mean(dim=(1, 2, 3)), {}

    with caplog.at_level(logging.INFO, logger="flowrl.score"):
        rewards = Rewards([reward(flow_grpo, "mine")], "raise")
        for _ in range(3):
            rewards(samples(), GROUP)
    assert [record.getMessage() for record in caplog.records] == ["reward 'mine': flow_grpo signature"]


def test_dtype_and_device_reach_the_rewards_that_take_them() -> None:
    class Scorer:
        def __init__(self, device: str, dtype: str = "float32") -> None:
            self.dtype = dtype

        def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
            return images.mean(dim=(1, 2, 3)).to(getattr(torch, self.dtype))

    assert adapt(Scorer, "r", {}, "cpu", "bfloat16").function.dtype == "bfloat16"
    assert adapt(Scorer, "r", {}, "cpu").function.dtype == "float32"
    with pytest.raises(UserError, match="so it has no dtype; remove its 'dtype: float16'"):
        adapt(brightness, "r", {}, None, "float16")
    with pytest.raises(UserError, match="dtype is given twice"):
        adapt(Scorer, "r", {"dtype": "float32"}, None, "float16")


# ------------------------------------------------------------------------------------------------ groups
def test_a_reward_with_a_parameter_group_sees_whole_groups() -> None:
    seen: list[list[int]] = []

    def centred(images: Tensor, prompts: Sequence[str], group: Sequence[int]) -> Tensor:
        seen.append(list(group))
        ids, means = torch.tensor(group), images.mean(dim=(1, 2, 3))
        return torch.stack([mean - means[ids == key].mean() for mean, key in zip(means, ids, strict=True)])

    means = pixels().mean(dim=(1, 2, 3)).reshape(4, 3)
    expected = (means - means.mean(dim=1, keepdim=True)).flatten().double()
    for size, calls in ((None, [12]), (7, [6, 6]), (3, [3] * 4), (2, [3] * 4)):
        seen.clear()
        values = score(reward(centred, batch_size=size)).rewards[:, 0]
        torch.testing.assert_close(values, expected, rtol=0, atol=1e-6)
        assert [len(call) for call in seen] == calls
        assert all(call.count(key) == 3 for call in seen for key in call), "a group was torn apart"


def test_a_reward_that_compares_pairs_gives_the_mean_over_the_others() -> None:
    def wins(images: Tensor, others: Tensor, prompts: Sequence[str]) -> Tensor:
        return (images.mean(dim=(1, 2, 3)) > others.mean(dim=(1, 2, 3))).double()

    values = score(reward(wins)).rewards[:, 0].reshape(4, 3)
    assert torch.equal(values, pixels().mean(dim=(1, 2, 3)).reshape(4, 3).argsort(1).argsort(1) / 2)
    alone = Rewards([reward(wins)], "drop_sample").raw(take(samples(), [0, 3, 4]), torch.tensor([0, 1, 1]))[:, 0]
    assert math.isnan(alone[0]) and sorted(alone[1:].tolist()) == [0, 1]  # nothing to compare with: not a 0


# ------------------------------------------------------------------------------------------------ applicability
ONES = torch.linspace(0.0, 1.1, 12).tolist()
TENS = torch.linspace(10.0, 21.0, 12).tolist()


def mixed() -> Scores:
    """One reward for the prompts a and b (tag x), one for the others."""
    return score(
        reward(given(ONES), "one", applies={"tag": "x"}), reward(given(TENS), "ten", 2.0, applies={"tag": ["y", "z"]})
    )


def test_a_reward_that_does_not_apply_is_neither_nan_nor_zero_in_statistics() -> None:
    scores = mixed()
    assert bool(scores.valid.all()), "not applicable is not a failure"
    assert scores.rewards[:6, 1].isnan().all() and scores.rewards[6:, 0].isnan().all()
    expected = torch.tensor([*ONES[:6], *(2 * value for value in TENS[6:])]).double()
    torch.testing.assert_close(scores.total, expected)
    metrics = describe_scores(scores, torch.zeros(12))
    assert metrics["reward/one/mean"] == pytest.approx(sum(ONES[:6]) / 6)
    assert metrics["reward/ten/mean"] == pytest.approx(sum(TENS[6:]) / 6)
    assert metrics["reward/invalid_fraction"] == 0
    for part in (GroupCentred(), LeaveOneOut()):
        assert torch.isfinite(part(scores, {})).all()


def test_decoupled_normalisation_skips_what_does_not_apply() -> None:
    both = score(
        reward(given(ONES), "one", applies={"tag": "x"}),
        reward(given(TENS), "ten", applies={"tag": ["x", "y", "z"]}),
    )
    advantage = GroupCentred(merge="advantages", clip=None, eps=0.0)(both, {})
    step = torch.tensor([-1.0, 0.0, 1.0]).double()  # each group's scores are equally spaced: z-scores -1, 0, 1
    torch.testing.assert_close(advantage, torch.cat([2 * step, 2 * step, step, step]))


def test_decoupled_normalisation_over_the_iteration_uses_the_samples_a_reward_applies_to() -> None:
    scores = mixed()
    advantage = GroupCentred(merge="advantages", scale="global", ddof=0, clip=None, eps=0.0)(scores, {})
    for rows, column, weight in ((slice(0, 6), 0, 1.0), (slice(6, 12), 1, 2.0)):
        mine = scores.rewards[rows, column]
        centre = mine.reshape(2, 3).mean(dim=1).repeat_interleave(3)
        torch.testing.assert_close(advantage[rows], weight * (mine - centre) / mine.std(correction=0))


def test_decoupled_normalisation_sees_gated_rewards() -> None:
    parts = [0.0, 1.0, 1.0] * 4
    scores = score(reward(given(TENS), "worth"), reward(given(parts), "gate", 0.0, gate=0.5))
    merged = [GroupCentred(merge=merge, clip=None)(scores, {}) for merge in ("rewards", "advantages")]
    torch.testing.assert_close(*merged)  # with one reward, both ways are the same
    assert (merged[0].reshape(4, 3)[:, 0] < -1).all(), "a shut gate is worst"


def test_conditions_match_values_lists_and_columns_that_hold_lists() -> None:
    prompts = [Prompt("a", 0, {"rewards": ["one", "two"]}), Prompt("b", 1, {"rewards": "two", "n": 3}), Prompt("c", 2)]
    table = {
        "one": ({"rewards": "one"}, [True, False, False]),
        "two": ({"rewards": "two"}, [True, True, False]),
        "both": ({"rewards": ["two", "nine"], "n": 3}, [False, True, False]),
        "any": ({}, [True, True, True]),
    }
    made = Samples(prompts, torch.rand(3, 3, 4, 4))
    rewards = Rewards([reward(brightness, name, applies=applies) for name, (applies, _) in table.items()], "raise")
    found = ~rewards(made, torch.arange(3)).rewards.isnan()
    assert {name: found[:, k].tolist() for k, name in enumerate(table)} == {n: want for n, (_, want) in table.items()}


def test_prompts_without_a_reward_are_found_before_the_run() -> None:
    one = reward(brightness, "one", applies={"tag": "x"})
    with pytest.raises(
        UserError, match=r"no reward with a weight applies to 2 of the prompts, such as 'c'.*'tag': 'y'"
    ):
        Rewards([one], "raise").check(PROMPTS)
    with pytest.raises(UserError, match="applies to 6 of the prompts"):
        score(one)
    watched = reward(brightness, "gold", 0.0)
    with pytest.raises(UserError, match="no reward with a weight applies"):
        Rewards([one, watched], "raise").check(PROMPTS)  # a reward that is only watched teaches nothing
    with pytest.raises(UserError, match=r"'one' applies to none of 4 prompts: applies=\{'tga': 'x'\}.*'tag'"):
        Rewards([replace(one, applies={"tga": "x"}), reward(brightness, "all")], "raise").check(PROMPTS)
    Rewards([one, reward(brightness, "rest", applies={"tag": ["y", "z"]})], "raise").check(PROMPTS)


# ------------------------------------------------------------------------------------------------ gates and weights
def test_gates_multiply_or_shut() -> None:
    parts = [0.0, 0.25, 1.0] * 4
    worth = reward(given(TENS), "worth", 2.0)
    scores = score(worth, reward(given(parts), "gate", 0.0, gate="multiply"))
    expected = 2 * torch.tensor(TENS).double() * torch.tensor(parts).double()
    torch.testing.assert_close(scores.total, expected)
    assert scores.rewards[:, 0].tolist() == pytest.approx(TENS), "the log keeps raw scores"
    scores = score(worth, reward(given(parts), "gate", 0.0, gate=0.25))
    torch.testing.assert_close(scores.total, 2 * torch.tensor(TENS).double() * (torch.tensor(parts) >= 0.25))
    some = score(worth, reward(given(parts), "gate", 0.0, gate=0.5, applies={"tag": "x"}))
    torch.testing.assert_close(some.total[6:], 2 * torch.tensor(TENS).double()[6:])  # no gate, nothing shut


def test_a_shut_gate_never_lifts_a_negative_total() -> None:
    worth = reward(given([-value for value in TENS]), "worth")
    scores = score(worth, reward(given([0.0, 0.5, 1.0] * 4), "gate", 0.0, gate="multiply"))
    torch.testing.assert_close(scores.total, -torch.tensor(TENS).double())


def test_gates_that_make_no_sense_are_refused() -> None:
    with pytest.raises(
        UserError, match=r"'gate' multiplies the others, so its scores should lie in \[0, 1\], found 10"
    ):
        score(reward(brightness, "worth"), reward(given(TENS), "gate", 0.0, gate="multiply"))
    with pytest.raises(UserError, match="'gate' could not score 4 of 12"):
        score(reward(brightness, "worth"), reward(given([math.nan, 0.5, 1.0] * 4), "gate", 0.0, gate=0.5))


CONFIG = {"name": "a", "model": {"path": "shapes"}, "algorithm": "flow_grpo", "train": {"iterations": 1}}


@pytest.mark.parametrize(
    ("entry", "match"),
    [
        ({"gate": 0.5, "weight": 2.0}, "a gate is not added up, so weight=2 means nothing"),
        ({"gate": 0.5, "train": False}, "only watches, so gate=0.5 means nothing"),
        ({"timeout": 3.0}, "only a process can be stopped; set process=true"),
        ({"train": False}, "every weight is 0"),
        ({"gate": 0.5}, "every weight is 0"),
        ({"on_error": "drop"}, r"on_error.then='drop'.*'raise' or 'drop_group'"),
        ({"on_error": {"retry": -1}}, "retry=-1"),
        ({"gate": "shut"}, "gate='shut': give multiply, or the least score"),
        ({"on_error": {"retry": 2, "than": "raise"}}, r"than.*did you mean 'rewards.0.on_error.then'"),
        ({"dtype": "fp8"}, "dtype='fp8'"),
    ],
)
def test_reward_options_that_contradict_each_other(entry: dict, match: str) -> None:
    with pytest.raises(UserError, match=match):
        Config.of({**CONFIG, "rewards": [{"use": "shapes", **entry}]})


def test_held_out_rewards_are_watched_and_config_reaches_the_rewards() -> None:
    entries = [
        {"use": "jpeg_compressibility", "weight": 2.0, "on_error": {"retry": 2, "then": "drop_group"}},
        {"use": "jpeg_incompressibility", "train": False, "weight": 3.0, "on_error": "raise", "overlap": False},
        {"use": "rewards.jpeg:jpeg_compressibility", "name": "shut", "gate": 0.5, "applies": {"tag": "x"}},
    ]
    config = Config.of({**CONFIG, "rewards": entries})
    rewards = load_rewards(config.rewards)
    assert rewards.weights.tolist() == [2.0, 0.0, 0.0]
    first, gold, gate = rewards.rewards
    assert (first.on_error, gold.on_error) == (on_error("drop_group", 2), on_error("raise"))
    assert (gold.overlap, gate.gate, gate.applies) == (False, 0.5, {"tag": "x"})
    assert Config.of(config.model_dump(mode="json")) == config and "rewards.0.on_error.retry" in config_table(config)
    scores = load_rewards(config.rewards[:2])(samples(32), GROUP)
    torch.testing.assert_close(scores.total, 2 * scores.rewards[:, 0])
    torch.testing.assert_close(scores.rewards[:, 1], -scores.rewards[:, 0])


# ------------------------------------------------------------------------------------------------ failures
def poison(group: int) -> Any:
    """Fails whenever a sample of this group is among those it is asked about."""
    bad = {round(float(image[0, 0, 0]), 6) for image in pixels()[group * 3 : group * 3 + 1]}

    def fragile(images: Tensor, prompts: Sequence[str]) -> Tensor:
        if bad & {round(float(image[0, 0, 0]), 6) for image in images}:
            raise ZeroDivisionError("poison")
        return images.mean(dim=(1, 2, 3))

    return fragile


@pytest.mark.parametrize("size", [None, 3, 5])
def test_drop_group_costs_the_bad_group_only(size: int | None, caplog: pytest.LogCaptureFixture) -> None:
    scores = score(reward(poison(1), on_error=on_error("drop_group"), batch_size=size))
    assert scores.valid.reshape(4, 3).tolist() == [[True] * 3, [False] * 3, [True] * 3, [True] * 3]
    assert bool(scores.rewards[3:6, 0].isnan().any()) and not bool((scores.rewards == 0).any()), "never a silent zero"
    torch.testing.assert_close(scores.rewards[:3, 0], pixels()[:3].mean(dim=(1, 2, 3)).double())
    assert any("could not be scored" in r.getMessage() and "poison" in r.getMessage() for r in caplog.records)


def test_on_error_raise_and_the_default_stop_with_the_cause() -> None:
    for policy in (None, on_error("raise")):
        with pytest.raises(RewardError, match=r"raised ZeroDivisionError: poison .*in fragile") as caught:
            score(reward(poison(1), on_error=policy), on_nan="drop_group")
        assert isinstance(caught.value.__cause__, ZeroDivisionError)
    with pytest.raises(UserError, match=r"drop_group left no sample.*12 of 12.*ZeroDivisionError"):
        score(reward(lambda images, prompts: 1 / 0, on_error=on_error("drop_group")))


def test_retries_ask_again_and_only_for_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(reward_module.time, "sleep", pauses.append)
    asked: list[int] = []

    def moody(images: Tensor, prompts: Sequence[str]) -> Tensor:
        asked.append(len(images))
        if len(asked) == 1:
            raise ConnectionError("not now")
        values = images.mean(dim=(1, 2, 3)).clone()
        if len(asked) == 2:
            values[2] = values[7] = math.nan
        return values

    scores = score(reward(moody, on_error=on_error("raise", 3)))
    assert asked == [12, 12, 2] and pauses == [0.5, 1.0]
    torch.testing.assert_close(scores.rewards[:, 0], pixels().mean(dim=(1, 2, 3)).double())
    calls: list[int] = []

    def hopeless(images: Tensor, prompts: Sequence[str]) -> Tensor:
        calls.append(len(images))
        raise ConnectionError("never")

    with pytest.raises(RewardError, match="never"):
        score(reward(hopeless, on_error=on_error("raise", 2)))
    assert calls == [12, 12, 12]


def test_retries_of_many_groups_take_no_time_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reward_module.time, "sleep", lambda seconds: None)
    rows, asked = 8192, []

    def moody(completions: Sequence[str], prompts: Sequence[str], group: Sequence[int]) -> list[float]:
        asked.append(len(completions))
        return [math.nan if len(asked) == 1 and number % 2 == 0 else 1.0 for number in group]

    made = Samples([Prompt("q", i // 8) for i in range(rows)], completions=["a"] * rows)
    rewards = Rewards([Reward("r", 1.0, adapt(moody, "r", {}, None), None, on_error=on_error("raise", 1))], "raise")
    begin = time.perf_counter()
    assert rewards(made, torch.arange(rows) // 8).total.tolist() == [1.0] * rows
    assert asked == [rows, rows // 2] and time.perf_counter() - begin < 20  # minutes, compared pair by pair


def test_nan_follows_on_error_where_it_is_given() -> None:
    gap = [1.0, 2.0, 3.0, math.nan, *[4.0] * 8]
    with pytest.raises(UserError, match="could not score 1 of 12"):
        score(reward(given(gap), on_error=on_error("raise")), on_nan="drop_sample")
    dropped = score(reward(given(gap), on_error=on_error("drop_group")), on_nan="raise")
    assert dropped.valid.tolist() == [True] * 3 + [False] * 3 + [True] * 6
    assert score(reward(given(gap)), on_nan="drop_sample").valid.sum() == 11


def test_a_wrong_answer_is_a_failure_like_any_other() -> None:
    def short(images: Tensor, prompts: Sequence[str]) -> Tensor:
        return images.mean(dim=(1, 2, 3))[: 2 if prompts[0] == "b" else None]

    with pytest.raises(UserError, match="should return 3 scores for 3 samples, found 2"):
        score(reward(short, batch_size=3))
    assert score(reward(short, batch_size=3, on_error=on_error("drop_group"))).valid.sum() == 9


def test_mistakes_of_the_config_are_forgiven_by_no_policy() -> None:
    def needs(images: Tensor, answer: Sequence[str]) -> list[float]:
        raise AssertionError

    with pytest.raises(UserError, match="needs the column 'answer'"):
        score(reward(needs, on_error=on_error("drop_group", 2)))


def test_the_arithmetic_of_a_dropped_group() -> None:
    """Statistics, advantage, selection and loss weights are those of the iteration without the group."""
    scores = score(reward(poison(1), on_error=on_error("drop_group")))
    kept = scores.valid
    rest = Scores(scores.rewards[kept], scores.weights, scores.names, GROUP[kept], scores.prompt_ids[kept], kept[kept])
    for part in (GroupCentred(), GroupCentred(scale="global"), GroupCentred(merge="advantages"), LeaveOneOut()):
        advantage = part(scores, {})
        torch.testing.assert_close(advantage[kept], part(rest, {}), msg=str(part))
        assert (advantage[~kept] == 0).all()
    advantage = GroupCentred()(scores, {})
    for selection in (AllSamples(), DropFlatGroups()):
        mask = selection(scores, advantage)[:, None].expand(12, 5)
        assert torch.equal(mask[:, 0], kept)
        for aggregation in (SampleMean(), DecisionMean()):
            weight = aggregation(mask)
            assert float(weight.sum()) == pytest.approx(1) and (weight[~kept] == 0).all()
            torch.testing.assert_close(weight[kept], aggregation(mask[kept]))
    metrics, without = describe_scores(scores, advantage), describe_scores(rest, advantage[kept])
    assert metrics["reward/invalid_fraction"] == pytest.approx(0.25)
    assert metrics["reward/mean"] == pytest.approx(without["reward/mean"])


@pytest.mark.parametrize("name", ["flow_grpo", "grpo"])
def test_the_gradient_does_not_see_a_dropped_group(name: str) -> None:
    """The update is the one of an iteration in which the dropped group's samples were any others."""
    algorithm = small(name)
    policy = start(algorithm)
    made = roll(algorithm, policy)
    valid = made.scores.group != 1

    def gradient(junk: float) -> Tensor:
        rewards = made.scores.rewards.clone()
        rewards[~valid] = junk
        scores = replace(made.scores, rewards=rewards, valid=valid)
        changed = Iteration(policy, made.rollout, scores, algorithm.advantage(scores, {}), made.draw)
        return gradients(algorithm, changed)[0]

    assert torch.equal(gradient(math.nan), gradient(1e3)) and float(gradient(math.nan).norm()) > 0


# ------------------------------------------------------------------------------------------------ overlap
def in_chunks(rewards: Rewards, size: int) -> Scores:
    whole = samples()
    with rewards.scoring(GROUP) as scoring:
        for start_row in range(0, 12, size):
            scoring.add(take(whole, range(start_row, min(start_row + size, 12))))
        return scoring.finish()


def centred(images: Tensor, prompts: Sequence[str], group: Sequence[int]) -> Tensor:
    ids, means = torch.tensor(group), images.mean(dim=(1, 2, 3))
    return torch.stack([mean - means[ids == key].mean() for mean, key in zip(means, ids, strict=True)])


def assert_equal(first: Scores, second: Scores) -> None:
    for key, value in vars(first).items():
        other = getattr(second, key)
        same = torch.equal(value.nan_to_num(-7), other.nan_to_num(-7)) if isinstance(value, Tensor) else value == other
        assert same, key
    assert torch.equal(first.total.nan_to_num(-7), second.total.nan_to_num(-7))


@pytest.mark.parametrize("size", [1, 2, 4, 5, 12])
def test_scores_made_in_the_background_are_bit_equal(size: int) -> None:
    def parts(overlap: bool) -> list[Reward]:
        return [
            reward(brightness, "plain", batch_size=3, overlap=overlap),
            reward(centred, "grouped", overlap=overlap),
            reward(poison(2), "fragile", overlap=overlap, on_error=on_error("drop_group")),
            reward(given([0.5] * 12), "shut", 0.0, gate="multiply", applies={"tag": "x"}, overlap=overlap),
        ]

    background, foreground = Rewards(parts(True), "raise"), Rewards(parts(False), "raise")
    assert_equal(in_chunks(background, size), in_chunks(foreground, size))
    assert_equal(in_chunks(background, size), in_chunks(background, size))  # lanes live on
    whole = foreground(samples(), GROUP)
    again, kept = in_chunks(background, size), whole.valid
    torch.testing.assert_close(again.rewards[kept], whole.rewards[kept], equal_nan=True, rtol=0, atol=1e-7)
    assert torch.equal(again.valid, kept) and kept.sum() == 9
    background.close()


def test_rewards_work_while_samples_are_made() -> None:
    threads: set[str] = set()

    def slow(images: Tensor, prompts: Sequence[str]) -> Tensor:
        threads.add(threading.current_thread().name)
        time.sleep(0.1)
        return images.mean(dim=(1, 2, 3))

    rewards, whole = Rewards([reward(slow, "a"), reward(slow, "b")], "raise"), samples()
    begin = time.perf_counter()
    with rewards.scoring(GROUP) as scoring:
        sampling = 0.0
        for row in range(12):
            start = time.perf_counter()
            time.sleep(0.1)  # sampling
            sampling += time.perf_counter() - start
            scoring.add(take(whole, [row]))
        scoring.finish()
    seconds, busy = time.perf_counter() - begin, scoring.metrics(("a", "b"))["reward/seconds"]
    assert 2.4 <= busy <= 2 * seconds  # two rewards, 12 calls of 0.1 s or, on a busy machine, more
    assert seconds < 0.53 * (sampling + busy), f"{seconds:.2f} s; {sampling + busy:.2f} s one after the other"
    assert threads == {"reward a", "reward b"}
    rewards.close()


def test_the_queue_is_bounded() -> None:
    gate, done = threading.Event(), []

    def stuck(images: Tensor, prompts: Sequence[str]) -> Tensor:
        gate.wait(60)
        return images.mean(dim=(1, 2, 3))

    rewards, whole = Rewards([reward(stuck)], "raise"), samples()
    with rewards.scoring(GROUP) as scoring:

        def sampler() -> None:
            for row in range(12):
                scoring.add(take(whole, [row]))
                done.append(row)

        thread = threading.Thread(target=sampler)
        thread.start()
        end = time.monotonic() + 30
        while len(done) < 3 and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(0.2)
        assert len(done) == 3, "one in work and two waiting; the sampler waits with the next"
        gate.set()
        thread.join()
        scoring.finish()
    rewards.close()


def test_a_failure_in_the_background_stops_the_sampler_with_its_cause() -> None:
    rewards, whole = Rewards([reward(poison(0), "bad"), reward(brightness, "good")], "raise"), samples()
    added = 0
    with (
        pytest.raises(RewardError, match=r"'bad' raised ZeroDivisionError: poison .*in fragile") as caught,
        rewards.scoring(GROUP) as scoring,
    ):
        for row in range(12):
            scoring.add(take(whole, [row]))
            added += 1
            time.sleep(0.02)
        scoring.finish()
    assert added < 12 and isinstance(caught.value.__cause__, ZeroDivisionError)
    rewards.close()


def test_changing_the_images_in_the_background_names_the_culprit() -> None:
    def dims(images: Tensor, prompts: Sequence[str]) -> Tensor:
        return images.mul_(0.5).mean(dim=(1, 2, 3))

    rewards = Rewards([reward(brightness, "innocent"), reward(dims, "culprit")], "raise")
    with pytest.raises(UserError, match="'culprit' changes the images in place"):
        in_chunks(rewards, 3)
    rewards.close()


def test_a_reward_that_hangs_does_not_keep_an_interrupted_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowrl.score.background.CLOSE_SECONDS", 0.2)
    release = threading.Event()

    def hangs(images: Tensor, prompts: Sequence[str]) -> Tensor:
        release.wait(30)
        return images.mean(dim=(1, 2, 3))

    rewards = Rewards([reward(hangs)], "raise")
    begin = time.perf_counter()
    with pytest.raises(KeyboardInterrupt), rewards.scoring(GROUP) as scoring:
        scoring.add(samples())
        raise KeyboardInterrupt
    rewards.close()
    assert time.perf_counter() - begin < 20
    release.set()


def test_chunks_are_put_together_in_order() -> None:
    whole = samples()
    again = joined([take(whole, [0, 1]), take(whole, [2]), take(whole, range(3, 12))])
    assert torch.equal(again.images, pixels()) and again.prompts == list(whole.prompts)  # type: ignore[arg-type]
    words = joined([texts(["a"]), texts(["b", "c"])])
    assert words.images is None and words.completions == ["a", "b", "c"]


def test_nothing_is_scored_twice_or_forgotten() -> None:
    asked: list[float] = []

    def note(images: Tensor, prompts: Sequence[str]) -> Tensor:
        asked.extend(images[:, 0, 0, 0].tolist())
        return images.mean(dim=(1, 2, 3))

    rewards = Rewards([reward(note)], "raise")
    in_chunks(rewards, 5)
    assert asked == pixels()[:, 0, 0, 0].tolist()
    rewards.close()
    assert isinstance(rewards.scoring(GROUP), Scoring)


TINY = """
name: tiny
model: {path: shapes, lora: {rank: 2, alpha: 4}}
algorithm: flow_grpo
data: {prompts: 3, group: 4}
train: {iterations: 3, threads: 1, sample_batch: 5}
eval: {every: 0}
checkpoint: {every: 0}
log: {samples: 0}
"""
SLOW = """
import pathlib, time, torch

def hangs(images, prompts):
    pathlib.Path(__file__).with_name("asked").touch()
    time.sleep(1000)

def lingers(images, prompts):
    pathlib.Path(__file__).with_name("asked").touch()
    time.sleep(0.7)
    return images.mean(dim=(1, 2, 3))

def centred(images, prompts, group):
    ids, means = torch.tensor(group), images.mean(dim=(1, 2, 3))
    return torch.stack([mean - means[ids == key].mean() for mean, key in zip(means, ids)])
"""


@pytest.mark.slow
def test_a_run_does_not_depend_on_the_overlap(tmp_path: Path) -> None:
    """Chunks of 5 samples that cut the groups of 4: the same weights and metrics to the last bit."""
    (tmp_path / "mine.py").write_text(SLOW)
    stories, states = [], []
    for overlap in (True, False):
        entries = ["shapes", f"{tmp_path}/mine.py:centred", "jpeg_compressibility"]
        rewards = [{"use": use, "overlap": overlap} for use in entries]
        config = Config.of({**parse_yaml(TINY), "rewards": rewards, "out": str(tmp_path / str(overlap))})
        run = train(config)
        (state,) = run.glob("checkpoints/step_*/state/state.safetensors")
        states.append(load_file(state))
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert all({"time/reward", "reward/seconds", "time/sample"} <= set(line) for line in lines)
        stories.append([settled(line) for line in lines])
    assert stories[0] == stories[1] and len(stories[0]) == 3
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def begun(folder: Path, function: str) -> subprocess.Popen[bytes]:
    """A run that is waiting for its reward."""
    (folder / "mine.py").write_text(SLOW)
    (folder / "tiny.yaml").write_text(f"{TINY}rewards: ['{folder}/mine.py:{function}']\nout: {folder}/run\n")
    command = [sys.executable, "-m", "flowrl", "train", str(folder / "tiny.yaml")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": PATHS}
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    end = time.monotonic() + 240
    while not (folder / "asked").exists():
        assert process.poll() is None and time.monotonic() < end, process.communicate()[0]
        time.sleep(0.05)
    return process


@pytest.mark.slow
def test_ctrl_c_twice_ends_a_run_whose_reward_hangs(tmp_path: Path) -> None:
    process = begun(tmp_path, "hangs")
    time.sleep(2)  # the trainer has filled the queue, and waits
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(2)  # two that nobody saw are one
    assert process.wait(60) != 0
    assert (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.slow
def test_sigterm_finishes_the_iteration_that_is_being_scored(tmp_path: Path) -> None:
    process = begun(tmp_path, "lingers")
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 0, process.communicate()[0]
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob("step_*")] == ["step_000001"]


# ------------------------------------------------------------------------------------------------ processes
MINE = """
import os, sys, time, torch

def odd(images, prompts, tag, scale=1.0):
    print("what a reward prints is no answer")
    return scale * (images.sin().sum(dim=(1, 2, 3)) / 7 + torch.tensor([len(t) for t in tag]))

def length(prompts, completions, **columns):
    return [len(text) or None for text in completions]

def group_mean(images, prompts, group):
    ids, means = torch.tensor(group), images.mean(dim=(1, 2, 3))
    return torch.stack([means[ids == key].mean() for key in ids])

def fragile(images, prompts):
    if prompts[0] == "a": raise KeyError("gone")
    if prompts[0] == "b": os._exit(3)
    if prompts[0] == "c": time.sleep(60)
    return images.mean(dim=(1, 2, 3))

def needs(images, answer): return answer
"""


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("mine") / "mine.py"
    path.write_text(MINE)
    return str(path)


@pytest.mark.slow
def test_a_process_gives_the_same_bits(mine: str) -> None:
    specs = [{"use": f"{mine}:odd", "options": {"scale": 3.0}}, {"use": f"{mine}:group_mean"}]
    with_process = load_rewards([{**spec, "process": True} for spec in specs])
    assert with_process.grouped
    assert_equal(with_process(samples(), GROUP), load_rewards(specs)(samples(), GROUP))
    assert_equal(in_chunks(with_process, 5), in_chunks(load_rewards([{**s, "overlap": False} for s in specs]), 5))
    with_process.close()
    words = load_rewards([{"use": f"{mine}:length", "process": True}])
    assert words.styles == {"length": "TRL"}
    values = words.raw(texts(["abc", "", "ünï"]))[:, 0]
    assert values[0] == 3 and math.isnan(values[1]) and values[2] == 3
    with pytest.raises(UserError, match="columns that JSON can hold"):
        words.raw(texts(["abc"], when=[object()]))
    words.close()


@pytest.mark.slow
def test_a_process_that_raises_dies_or_hangs_follows_the_policy(mine: str) -> None:
    spec = {"use": f"{mine}:fragile", "process": True, "timeout": 2.0, "batch_size": 3}
    rewards = load_rewards([spec])
    whole = samples()
    for row, match in (
        (0, r"raised KeyError: 'gone' \(.*mine.py:\d+ in fragile\)"),
        (3, "its process ended with code 3"),
        (6, "took longer than 2 s and was stopped"),
    ):
        with pytest.raises(RewardError, match=match):
            rewards(take(whole, [row]), GROUP[row : row + 1])
    assert float(rewards.raw(take(whole, [9]))) == pytest.approx(float(pixels()[9].mean()))  # it was started anew
    rewards.close()
    dropped = load_rewards([{**spec, "on_error": "drop_group"}])
    assert dropped(whole, GROUP).valid.tolist() == [False] * 9 + [True] * 3
    dropped.close()


@pytest.mark.slow
def test_mistakes_in_a_process_are_the_users(mine: str) -> None:
    with pytest.raises(UserError, match="has no option 'scal'"):
        load_rewards([{"use": f"{mine}:odd", "process": True, "options": {"scal": 3.0}}])
    needy = load_rewards([{"use": f"{mine}:needs", "process": True, "on_error": "drop_group"}])
    with pytest.raises(UserError, match="needs the column 'answer'"):
        needy(samples(), GROUP)
    needy.close()


# ------------------------------------------------------------------------------------------------ conformance
def test_conformance_examines_groups_and_number_types(tmp_path: Path) -> None:
    prompts = load_prompts("shapes:test").prompts[::8][:8]
    (tmp_path / "r.py").write_text(
        "import torch\n"
        "def centred(images, prompts, group):\n"
        "    ids, m = torch.tensor(group), images.mean(dim=(1, 2, 3))\n"
        "    return torch.stack([a - m[ids == k].mean() for a, k in zip(m, ids)])\n"
        "def leaky(images, prompts, group): return images.mean(dim=(1, 2, 3)) - images.mean()\n"
        "def pairs(images, others, prompts):\n"
        "    return (images.mean(dim=(1, 2, 3)) - others.mean(dim=(1, 2, 3))).sigmoid()\n"
        "def half(images, prompts): return images.mean(dim=(1, 2, 3)).half()\n"
        "def words(completions, prompts, group): return [float(len(c)) for c in completions]\n"
    )

    def failures(name: str, **options: Any) -> set[str]:
        return {f.check for f in run_checks(f"{tmp_path}/r.py:{name}", prompts, **options) if not f.passed}

    assert failures("centred") == failures("pairs") == failures("words", text=True) == set()
    assert failures("leaky") == {"same answer one by one"}  # sees beyond its group
    assert failures("half") == {"keeps its precision"}
    loads = run_checks(f"{tmp_path}/r.py:pairs", prompts)[0]
    assert "flowrl signature, compares the samples of a group" in loads.detail


def test_the_options_of_a_reward_have_defaults_that_change_nothing() -> None:
    plain = RewardConfig(use="shapes")
    assert (plain.train, plain.applies, plain.gate, plain.on_error, plain.process) == (True, {}, None, None, False)
    assert plain.factor == 1.0 and plain.overlap
