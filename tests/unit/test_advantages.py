"""Scores to advantages: what is left open by `test_parts.py`, by hand."""

from __future__ import annotations

import math

import pytest

from flowrl.parts.advantages import (
    BestOfGroup,
    BestVersusWorst,
    ExponentialWeight,
    GreedyBaseline,
    GroupCentred,
    LeaveOneOut,
    PromptTracker,
    RawReward,
    SoftmaxContrast,
)
from tests.unit.test_parts import scores

NAN = float("nan")


def test_one_good_sample_of_many_is_clipped_at_five() -> None:
    """Of 41 samples one scores 1: (1 - 1/41) / sqrt(1/41) = 40 / sqrt(41) = 6.25, and 40 times -1 / sqrt(41)."""
    s = scores([1.0] + [0.0] * 40, [0] * 41)
    assert GroupCentred()(s, {}).tolist() == pytest.approx([5.0] + [-1 / math.sqrt(41)] * 40)
    assert GroupCentred(clip=None)(s, {}).tolist() == pytest.approx([40 / math.sqrt(41)] + [-1 / math.sqrt(41)] * 40)
    assert GroupCentred(clip=2.0, scaled_to=3.0)(s, {})[0] == pytest.approx(3)
    assert GroupCentred(clip=None, scaled_to=3.0)(s, {})[0] == pytest.approx(40 / math.sqrt(41))  # nothing to scale


def test_the_sample_standard_deviation_has_a_small_floor() -> None:
    """Rewards 0 and sqrt(2) 1e-8 have sample std 1e-8 (population: 1 / sqrt(2) of it), which the floor doubles."""
    gap = math.sqrt(2) * 1e-8
    s = scores([0.0, gap], [0, 0])
    assert GroupCentred()(s, {}).tolist() == pytest.approx([-gap / 4e-8, gap / 4e-8])
    assert GroupCentred(ddof=0, eps=0.0)(s, {}).tolist() == pytest.approx([-1, 1])


def test_rewards_normalised_apart_know_where_they_apply() -> None:
    """The second reward applies to two of three samples; the first is weighted twice."""
    s = scores([[1.0, NAN], [2.0, 10.0], [3.0, 20.0]], [0, 0, 0], weights=[2.0, 1.0])
    root = math.sqrt(0.5)
    found = GroupCentred(eps=0.0, merge="advantages")(s, {})
    assert found.tolist() == pytest.approx([-2, -root, 2 + root])


def test_one_out_of_the_others_may_be_clipped() -> None:
    assert LeaveOneOut(clip=1.5)(scores([0.0, 1.0, 5.0], [0, 0, 0]), {}).tolist() == [-1.5, -1.5, 1.5]
    assert LeaveOneOut()(scores([0.0, 1.0, 5.0], [0, 0, 0]), {}).tolist() == [-3, -1.5, 4.5]
    only = scores([2.0, NAN, 1.0], [0, 0, 1], [True, False, False])
    assert LeaveOneOut()(only, {}).tolist() == [0, 0, 0]


def test_a_prompt_has_a_history_from_sixteen_rewards_on() -> None:
    """As DDPO's released code: buffer and least count 16, clip 5, 1e-6 under the spread."""
    memory: dict = {}
    part = PromptTracker()
    part(scores([1.0] * 14, [0] * 14), memory)
    fifteenth = part(scores([2.0, 3.0, 9.0], [0, 1, 2]), memory)  # 15 rewards of prompt 0: the batch stands in
    assert fifteenth[0].item() == pytest.approx((2 - 14 / 3) / (math.sqrt((4 + 9 + 81) / 3 - (14 / 3) ** 2) + 1e-6))
    sixteenth = part(scores([3.0, 0.0], [0, 1]), memory)
    mean = (14 + 2 + 3) / 16
    spread = math.sqrt((14 + 4 + 9) / 16 - mean**2)
    assert sixteenth[0].item() == pytest.approx((3 - mean) / (spread + 1e-6), rel=1e-6)
    part(scores([4.0] * 16, [0] * 16), memory)
    assert memory["rewards"]["0"] == [4.0] * 16
    far = part(scores([1e9, 4.0], [0, 0]), memory)
    assert far[0] == pytest.approx(math.sqrt(15), rel=1e-3) and far[0] < 5  # one of sixteen: (1 - 1/16) / sqrt(15) 16
    assert PromptTracker(buffer=64)(scores([1.0] * 40 + [9.0], [0] * 41), {})[40] == 5  # sqrt(40) = 6.3 is cut


def test_the_floor_of_a_history_without_spread() -> None:
    tracked = PromptTracker(min_count=1, clip=None)(scores([0.0, 2e-6], [0, 0]), {})
    assert tracked.tolist() == pytest.approx([-0.5, 0.5])  # std 1e-6 and as much again


def test_what_could_not_be_scored_enters_no_history() -> None:
    memory: dict = {}
    found = PromptTracker(min_count=1)(scores([NAN, 1.0, 3.0], [0, 0, 0], [False, True, True]), memory)
    assert memory["rewards"]["0"] == [1, 3] and found.tolist() == pytest.approx([0, -1, 1], abs=1e-5)
    nothing = PromptTracker()(scores([NAN], [0], [False]), {})
    assert nothing.tolist() == [0]


def test_the_best_of_a_group_could_be_scored() -> None:
    part = BestOfGroup()
    assert part(scores([9.0, 4.0, 2.0], [0, 0, 0], [False, True, True]), {}).tolist() == [0, 1, 0]
    assert part(scores([4.0, 4.0, 2.0], [0, 0, 0], [False, True, True]), {}).tolist() == [0, 1, 0]
    assert part(scores([4.0, 4.0], [0, 0], [False, False]), {}).tolist() == [0, 0]


def test_exponential_weights_of_what_could_be_scored() -> None:
    """exp(5 (r - mean)) at the default temperature .2, so the ratio of 0 and .2 is e; their mean is 1."""
    found = ExponentialWeight()(scores([0.0, 0.2, 5.0], [0, 0, 0], [True, True, False]), {})
    assert found.tolist() == pytest.approx([2 / (1 + math.e), 2 * math.e / (1 + math.e), 0])


@pytest.mark.parametrize("part", [ExponentialWeight, SoftmaxContrast])
def test_a_temperature_is_above_zero(part) -> None:
    part(temperature=1e-9)
    for cold in (0.0, -1.0):
        with pytest.raises(ValueError, match="should be above 0"):
            part(temperature=cold)


def test_the_raw_reward_and_its_batch_baseline() -> None:
    s = scores([1.0, 4.0, NAN, 7.0], [0, 0, 1, 1], [True, True, False, True])
    assert RawReward()(s, {}).tolist() == [1, 4, 0, 7]
    assert RawReward(baseline="batch")(s, {}).tolist() == [1 - 5.5, 0, 0, 7 - 2.5]  # across groups


def test_the_baseline_is_the_greedy_first_sample() -> None:
    s = scores([1.0, 4.0, -1.0, 7.0, 9.0, 8.0], [0, 0, 0, 5, 5, 5])
    assert GreedyBaseline()(s, {}).tolist() == [0, 3, -2, 0, 2, 1]
    unknown = scores([NAN, 4.0, -1.0, 7.0, 9.0, NAN], [0, 0, 0, 5, 5, 5], [False, True, True, True, True, False])
    assert GreedyBaseline()(unknown, {}).tolist() == [0, 0, 0, 0, 2, 0]


def test_the_contrast_of_two_softmaxes() -> None:
    """Two samples: 2 (sigmoid(d) - sigmoid(-d)) with d the difference of rewards over the temperature."""
    push = 2 * math.tanh(0.5 / 2)
    assert SoftmaxContrast()(scores([0.0, 0.5], [3, 3]), {}).tolist() == pytest.approx([-push, push])
    cold = 2 * math.tanh(0.5 / 2 / 0.25)
    assert SoftmaxContrast(0.25)(scores([0.0, 0.5], [3, 3]), {}).tolist() == pytest.approx([-cold, cold])
    s = scores([0.0, 1.0, 5.0, 9.0], [0, 0, 0, 0], [True, True, True, False])
    e = [math.exp(r - 2) for r in (0, 1, 5)]
    other = [math.exp(2 - r) for r in (0, 1, 5)]
    expected = [3 * (a / sum(e) - b / sum(other)) for a, b in zip(e, other, strict=True)]
    assert SoftmaxContrast()(s, {}).tolist() == pytest.approx([*expected, 0])
    assert SoftmaxContrast()(scores([1.0], [0], [False]), {}).tolist() == [0]


def test_one_best_against_one_worst() -> None:
    s = scores([2.0, 5.0, 5.0, 1.0, 1.0, 3.0, 3.0], [0, 0, 0, 0, 0, 1, 1])
    assert BestVersusWorst()(s, {}).tolist() == [0, 1, 0, -1, 0, 0, 0]  # the first of equals; a flat group has none
    some = scores([9.0, 2.0, 1.0, 0.0], [0, 0, 0, 0], [False, True, True, False])
    assert BestVersusWorst()(some, {}).tolist() == [0, 1, -1, 0]
