"""Further scores to advantages: golden numbers, limits that are known methods, enumerations, and state."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from flowrl.parts.advantages import GroupCentred, LeaveOneOut
from flowrl.parts.aggregations import FixedLength, LengthPower
from flowrl.parts.group_advantages import (
    BestOverSecond,
    BetaNormalised,
    BetaTracker,
    GroupShifted,
    MaxAtK,
    MixedValueAtRisk,
    PassAtK,
    SignWeighted,
    SmoothStandardised,
)
from flowrl.parts.selections import DropFlatGroups, MostVaried, VariedGroups
from flowrl.parts.set_objectives import BestOfK
from flowrl.parts.several_rewards import HypervolumeScaled, RewardDecoupled, hypervolume
from flowrl.types import IncompatibleError, Scores
from tests.unit.test_parts import scores

LOGITS = torch.tensor([0.3, -0.2, 0.5, 0.0]).double()
PI = LOGITS.softmax(0)
REWARD = torch.tensor([1.0, 0.0, 0.0, 0.5]).double()


def enumerated(part, count: int, reward: Tensor = REWARD) -> Tensor:
    """The expectation of ``mean_i A_i grad log p(a_i)`` over all groups of so many arms of a bandit."""
    total = torch.zeros(4).double()
    score = torch.eye(4).double() - PI
    for arms in itertools.product(range(4), repeat=count):
        index = torch.tensor(arms)
        a = part(scores(reward[index].tolist(), [0] * count), {})
        total += PI[index].prod() * (a[:, None] * score[index]).mean(dim=0)
    return total


def test_the_bandit_is_the_one_of_the_golden_numbers() -> None:
    assert PI.tolist() == pytest.approx([0.280210, 0.169956, 0.342249, 0.207585], abs=1e-6)
    exact = PI * (REWARD - PI @ REWARD)
    assert exact.tolist() == pytest.approx([0.172609, -0.065263, -0.131425, 0.024079], abs=1e-6)
    torch.testing.assert_close(enumerated(LeaveOneOut(), 3), exact)
    torch.testing.assert_close(enumerated(MaxAtK(1, "none"), 3), exact)


@pytest.mark.parametrize(("n", "k"), [(4, 2), (4, 3), (3, 3)])
def test_the_best_of_k_has_the_gradient_of_its_expectation(n: int, k: int) -> None:
    """By enumeration, against the gradient of E[max of k]."""
    logits = LOGITS.clone().requires_grad_()
    p = logits.softmax(0)
    best = sum(
        torch.stack([p[a] for a in arms]).prod() * max(float(REWARD[a]) for a in arms)
        for arms in itertools.product(range(4), repeat=k)
    )
    exact = torch.autograd.grad(best, logits)[0]
    torch.testing.assert_close(enumerated(MaxAtK(k, "none"), n), exact, rtol=1e-6, atol=1e-9)


def test_the_best_of_k_by_hand() -> None:
    """Rewards 0, .2, .5, 1 with k = 2: .283333, .283333, .333333, .5, times 4; k = 1 is the reward."""
    s = scores([1.0, 0.2, 0.5, 0.0], [0] * 4)
    found = MaxAtK(2, "none")(s, {}) / 4
    assert found.tolist() == pytest.approx([0.5, 0.283333, 0.333333, 0.283333], abs=1e-6)
    assert MaxAtK(1, "none")(s, {}).tolist() == pytest.approx([1.0, 0.2, 0.5, 0.0])
    torch.testing.assert_close(MaxAtK(1)(s, {}), GroupCentred(scale="none", clip=None)(s, {}))
    with pytest.raises(IncompatibleError, match="k=5"):
        MaxAtK(5)(s, {})


def test_the_best_of_k_of_an_older_policy_by_hand() -> None:
    """Rewards .1, .3, .6, 1 with k = 2 and d = .02, -.01, .03, -.02: the product of ratios over all sets gives .32215,
    .31416, .375263, .496533, its first order .322167, .314167, .375333, .496667."""
    r, d = torch.tensor([0.1, 0.3, 0.6, 1.0]).double(), torch.tensor([0.02, -0.01, 0.03, -0.02]).double()
    part = BestOfK(2, "none")
    assert (part.of_group(r, d) / 4).tolist() == pytest.approx([0.322167, 0.314167, 0.375333, 0.496667], abs=1e-6)
    for k in (1, 2, 3, 4):
        exact, linear = torch.zeros(4).double(), torch.zeros(4).double()
        for some in map(list, itertools.combinations(range(4), k)):
            exact[some] += (1 + d[some]).prod() * r[some].max() / math.comb(4, k)
            linear[some] += (1 + d[some].sum()) * r[some].max() / math.comb(4, k)
        part = BestOfK(k, "none")
        torch.testing.assert_close(part.of_group(r.flip(0), d.flip(0)).flip(0) / 4, linear)
        torch.testing.assert_close(exact, linear, rtol=5e-3, atol=1e-3)
        none = torch.zeros(4).double()
        on_policy = MaxAtK(k, "none")(scores(r.tolist(), [0] * 4), {})
        torch.testing.assert_close(part.of_group(r, none), on_policy)
    with pytest.raises(IncompatibleError, match="k=5"):
        BestOfK(5).of_group(r, d)


def test_one_right_among_k_by_hand() -> None:
    """Eight samples, two right, k = 4: p = .785714; .522233 and -.174078, of mean 0. k = 1 is GRPO."""
    s = scores([1.0, 1, 0, 0, 0, 0, 0, 0], [0] * 8)
    found = PassAtK(4)(s, {})
    assert found.tolist() == pytest.approx([0.522233] * 2 + [-0.174078] * 6, abs=2e-6)
    assert float(found.sum()) == pytest.approx(0, abs=1e-9)
    grpo = GroupCentred(ddof=0, eps=0.0, clip=None)(s, {})
    torch.testing.assert_close(PassAtK(1)(s, {}), grpo, rtol=1e-5, atol=1e-6)
    close = replace(s, rewards=s.rewards * 0.999)  # the release compares with exactly 1 and 0
    torch.testing.assert_close(PassAtK(4)(close, {}), found)
    most = scores([1.0, 1, 1, 1, 1, 0, 0, 0], [0] * 8)  # fewer wrong ones than k: every four hold a right one
    assert PassAtK(4)(most, {}).abs().max() < 1e-9


def test_only_the_best_of_a_group_learns_by_what_it_beats_the_second() -> None:
    s = scores([0.2, 1.0, 0.7, 0.0, 1.0, 1.0], [0, 0, 0, 0, 1, 1])
    spread = s.total[:4].std()
    found = BestOverSecond(eps=0.0)(s, {}).nan_to_num(0.0)
    assert found.tolist() == pytest.approx([0, 0.3 / float(spread), 0, 0, 0, 0])


def test_right_answers_count_less_than_wrong_ones() -> None:
    assert SignWeighted(0.1)(scores([1.0, 0.0, 0.6], [0, 0, 1]), {}).tolist() == pytest.approx([0.1, -1, 0.1])


def test_a_beta_density_in_its_golden_cases() -> None:
    """BNPO: solved shares .283494 and .716506 twice give a = b = 1.5, which is pi / 8 of GRPO; .1, .5, .9 by hand."""
    part = BetaNormalised()
    p = torch.tensor([0.283494, 0.716506] * 2).double()
    assert part._fitted(p) == pytest.approx((1.5, 1.5), abs=2e-3)
    assert part._fitted(torch.tensor([0.1, 0.5, 0.9]).double()) == pytest.approx((1.09375, 1.09375))
    many = scores([1.0] * 1 + [0.0] * 9 + [1.0] * 5 + [0.0] * 5 + [1.0] * 9 + [0.0] * 1, [0] * 10 + [1] * 10 + [2] * 10)
    found = part(many, {})
    centred = GroupCentred(scale="none", clip=None)(many, {})
    ratio = (found / centred)[[0, 10, 20]].tolist()
    assert ratio == pytest.approx([1.042023, 0.946849, 1.042023], abs=1e-6)


def test_a_beta_density_where_the_shares_do_not_tell() -> None:
    """Equal shares, where the release divides by 0, and shares spread more than uniformly: a plain baseline. Solved and
    unsolved prompts get 0 and not 0 times infinity. One prompt alone is like equal shares."""
    centred = GroupCentred(scale="none", clip=None)
    for rewards, group in (
        ([1.0, 0.0, 0.0, 1.0], [0, 0, 1, 1]),
        ([1.0, 1.0, 0.0, 0.0], [0, 0, 1, 1]),
        ([1.0, 0.0], [0, 0]),
    ):
        s = scores(rewards, group)
        torch.testing.assert_close(BetaNormalised()(s, {}), centred(s, {}))
    near = scores([1.0, 0.0, 1.0, 1e-5], [0, 0, 1, 1])  # a density of a thousand and more
    assert 0 < float(BetaNormalised()(near, {}).abs().max()) < 1e-3
    mixed = scores([1.0, 1, 0, 0, 1, 0, 1, 0, 1, 0], [0, 0, 1, 1, 2, 2, 3, 3, 4, 4])
    found = BetaNormalised()(mixed, {})
    assert bool(found.isfinite().all()) and found[:4].tolist() == [0, 0, 0, 0]


def test_the_measure_of_risk_by_hand() -> None:
    """RiskPO: X = 0 .. 5, quantiles 1 and 4, w = 1.5."""
    x = torch.arange(6).double()
    found = MixedValueAtRisk().measure(x, 1.0, 4.0)
    assert found.tolist() == pytest.approx([-3, 0, 0.6667, 1.3333, 2, 2], abs=1e-4)
    limit = MixedValueAtRisk(low=1e-9, high=1.0, w=0.0).measure(x, 0.0, 5.0)
    torch.testing.assert_close(limit, x)  # the reward itself


def test_a_bundle_shares_the_advantage_of_its_papers() -> None:
    """Two prompts of three: X = 2, 0, 1. In the third paper one prompt gained what the other lost: equal shares."""
    s = scores([1.0, 0, 1, 1, 0, 0], [0, 0, 0, 1, 1, 1])
    memory: dict = {}
    part = MixedValueAtRisk(bundle=2)
    found = part(s, memory).view(2, 3)
    x = torch.tensor([2.0, 0, 1]).double()
    each = part.measure(x, float(x.quantile(0.2)), float(x.quantile(0.8))) / (1 + 1e-6)
    centred = s.total.view(2, 3) - s.total.view(2, 3).mean(dim=1, keepdim=True)
    torch.testing.assert_close(found[:, :2], (each * centred / centred.sum(dim=0))[:, :2])
    torch.testing.assert_close(found[:, 2], (each / 2)[2].expand(2))
    assert memory["quantiles"] == pytest.approx([float(x.quantile(0.2)), float(x.quantile(0.8))])
    part(s, memory)  # q += .1 (level - share of X below q): a third of them lies below either
    assert memory["quantiles"] == pytest.approx([0.4 + 0.1 * (0.2 - 1 / 3), 1.6 + 0.1 * (0.8 - 2 / 3)])
    assert json.loads(json.dumps(memory)) == memory


def test_a_bundle_without_spread_teaches_nothing_and_none_runs_away() -> None:
    """The release divides by 1e-6 there, and bounds no share of a paper."""
    flat = scores([1.0, 1.0, 1.0, 1.0], [0, 0, 1, 1])
    assert MixedValueAtRisk(bundle=2)(flat, {"quantiles": [0.0, 9.0]}).tolist() == [0] * 4
    wild = scores([1.0, 0, 0, 0, 0.99, 0, 0, 0], [0, 0, 0, 0, 1, 1, 1, 1])
    assert float(MixedValueAtRisk(bundle=2, most=3.0)(wild, {}).abs().max()) <= 3


def test_rewards_that_agree_in_their_sum_are_told_apart() -> None:
    """GDPO: reward pairs (0, 0), (1, 0) and (0, 0), (1, 1): GRPO on sums gives +-.7071 for both groups; apart +-.7070
    and +-1.4140, normalised over the batch +-.5477 and +-1.0954."""
    s = scores([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0], [1.0, 1.0]], [0, 0, 1, 1], weights=[1.0, 1.0])
    assert GroupCentred(eps=1e-4)(s, {}).tolist() == pytest.approx([-0.7070, 0.7070, -0.7070, 0.7070], abs=1e-4)
    apart = GroupCentred(eps=1e-4, merge="advantages", clip=None)(s, {})
    assert apart.tolist() == pytest.approx([-0.7070, 0.7070, -1.4140, 1.4140], abs=1e-4)
    found = RewardDecoupled()(s, {})
    assert found.tolist() == pytest.approx([-0.5477, 0.5477, -1.0954, 1.0954], abs=2e-4)
    one = scores([0.0, 1.0, 0.0, 3.0], [0, 0, 1, 1])
    grpo = GroupCentred(eps=1e-4, clip=None)(one, {})
    torch.testing.assert_close(RewardDecoupled()(one, {}), grpo / (grpo.std() + 1e-4))
    missing = scores([[0.0, math.nan], [1.0, math.nan], [0.0, 0.0], [1.0, 1.0]], [0, 0, 1, 1], weights=[1.0, 1.0])
    assert bool(RewardDecoupled()(missing, {}).isfinite().all())


def test_a_value_of_a_prompt_follows_its_rewards() -> None:
    """SPO: v = .5 of 8 samples, one right: .5625 where 1 / 8 is forgotten; read before it is updated."""
    part = BetaTracker(keep=0.875)
    memory: dict = {}
    s = replace(scores([1.0, 0.0], [0, 1]), prompt_ids=torch.tensor([7, 8]))
    first = part(s, memory)
    assert first.tolist() == pytest.approx([1 / math.sqrt(2), -1 / math.sqrt(2)])  # +-.5 over the sample deviation
    a, b = memory["values"]["7"]
    assert (a / (a + b), a + b) == pytest.approx((0.5625, 8))
    for _ in range(200):
        part(s, memory)
    a, b = memory["values"]["7"]
    assert a / (a + b) == pytest.approx(1) and a + b == pytest.approx(8)
    assert json.loads(json.dumps(memory)) == memory


def test_an_advantage_is_smoothed_over_visits() -> None:
    """DCPO: at the first visit GRPO's; at the fourth a flat group has a fourth of its advantage over all rewards."""
    part, memory = SmoothStandardised(), {}
    s = scores([1.0, 0.0, 0.0, 0.0], [0] * 4)
    torch.testing.assert_close(part(s, memory), GroupCentred(eps=0.0, clip=None)(s, {}))
    for _ in range(2):
        part(s, memory)
    count, mean, variance = memory["statistics"]["0"]
    flat = scores([1.0] * 4, [0] * 4)
    found = part(flat, memory)
    total = (3 * mean + 1) / 4
    spread = math.sqrt((3 * variance + 0 + 3 / 4 * (mean - 1) ** 2) / 4)
    assert count == 3 and found.tolist() == pytest.approx([(1 - total) / spread / 4] * 4)
    assert json.loads(json.dumps(memory)) == memory


def test_a_shifted_baseline_and_a_scale() -> None:
    s = scores([1.0, 0.0, 0.5], [0, 0, 0])
    assert GroupShifted(shift=-0.1)(s, {}).tolist() == pytest.approx([0.6, -0.4, 0.1])
    assert GroupShifted(scale=0.5)(s, {}).tolist() == pytest.approx([0.25, -0.25, 0])


def test_a_baseline_below_the_mean_tends_to_reweighted_samples_and_one_above_collapses() -> None:
    """AsymRE by gradient flow on samples of a fixed policy: V below all rewards ends at mu (R - V), V above its mean at
    one arm."""
    mu = torch.tensor([0.25, 0.25, 0.3, 0.2]).double()
    for baseline, target in ((-1.0, None), (0.9, 0)):
        logits = torch.zeros(4).double()
        for _ in range(6000):
            p = logits.softmax(0)
            weight = mu * (REWARD - baseline)
            logits = logits + 0.5 * (weight - weight.sum() * p)
        p = logits.softmax(0)
        if target is None:
            wanted = mu * (REWARD - baseline)
            torch.testing.assert_close(p, wanted / wanted.sum(), rtol=1e-3, atol=1e-4)
        else:
            assert float(p[target]) > 0.99


def test_opmd_is_the_gradient_of_a_consistency() -> None:
    """At the old policy, ``E[(A - tau d)^2]`` has -2 tau (1 + tau) times OPMD's gradient."""
    tau, logits = 0.7, LOGITS.clone().requires_grad_()
    logp = logits.log_softmax(0)
    a = REWARD - PI @ REWARD
    consistency = torch.autograd.grad((PI * (a - tau * (logp - logp.detach())) ** 2).sum(), logits)[0]
    logits = LOGITS.clone().requires_grad_()
    opmd = torch.autograd.grad((PI * (a / (1 + tau)) * logits.log_softmax(0)).sum(), logits)[0]
    torch.testing.assert_close(consistency, -2 * tau * (1 + tau) * opmd)


def test_hypervolumes_by_hand_and_by_counting() -> None:
    assert hypervolume([(0.5,)], (0.2,)) == pytest.approx(0.3)
    assert hypervolume([(1.0, 0.5), (0.5, 1.0), (0.2, 0.2)], (0.0, 0.0)) == pytest.approx(0.75)
    assert hypervolume([(1.0, -1.0)], (0.0, 0.0)) == 0 == hypervolume([], (0.0,))
    points = torch.rand(5, 3, generator=torch.Generator().manual_seed(0)).double()
    grid = (torch.arange(40) + 0.5) / 40
    cells = torch.cartesian_prod(grid, grid, grid).double()
    inside = (cells[:, None] <= points).all(dim=2).any(dim=1).double().mean()
    assert hypervolume(points.tolist(), (0.0, 0.0, 0.0)) == pytest.approx(float(inside), abs=0.03)


def test_steps_count_more_while_rewards_reach_new_trade_offs() -> None:
    """Gains 0, .1 and 1 scale by .5, .649502 and 1.642392; the scale is not divided away by GRPO's deviation."""
    assert [0.5 + 1.5 * math.tanh(gain) for gain in (0, 0.1, 1)] == pytest.approx([0.5, 0.649502, 1.642392], abs=1e-6)
    part, memory = HypervolumeScaled(clip=None), {}
    base = GroupCentred(clip=None)

    def at(first: float, second: float) -> Scores:
        return scores([[first + 1, second], [first - 1, second]], [0, 0], weights=[1.0, 1.0])

    factors = []
    for point in ((0.0, 0.0), (0.5, 0.2), (0.5, 0.2), (0.2, 0.1), (1.0, 1.0)):
        s = at(*point)
        factors.append(float(part(s, memory)[0] / base(s, {})[0]))
    gains = [0.0, 0.1, 0.0, 0.0, 0.9]
    assert factors == pytest.approx([0.5 + 1.5 * math.tanh(gain) for gain in gains])
    assert memory["points"] == [[0, 0], [1, 1]] and json.loads(json.dumps(memory)) == memory


MADE = (
    BetaNormalised(),
    MixedValueAtRisk(2),
    MaxAtK(),
    PassAtK(2),
    RewardDecoupled(),
    BetaTracker(),
    SmoothStandardised(),
    GroupShifted(),
    HypervolumeScaled(),
    BestOverSecond(),
    SignWeighted(),
)


@pytest.mark.parametrize("part", MADE, ids=lambda part: type(part).__name__)
def test_rows_that_are_not_valid_move_nothing_and_get_nothing(part) -> None:
    rewards, group = [1.0, 0.0, 0.0, 1.0, 1.0, 0.0], [0, 0, 0, 1, 1, 1]
    alone = part(scores(rewards, group), {})
    more = scores([*rewards[:3], 9.0, *rewards[3:]], [0, 0, 0, 0, 1, 1, 1], [True] * 3 + [False] + [True] * 3)
    found = part(more, {})
    assert found[3] == 0
    torch.testing.assert_close(torch.cat([found[:3], found[4:]]), alone)


# ---------------------------------------------------------------------------------------------- selection, aggregation
def test_the_most_varied_samples_are_some_smallest_and_some_largest() -> None:
    a = torch.tensor([-2.0, -1, 0, 1, 2]).double()
    s = scores([0.0] * 5, [0] * 5)
    assert MostVaried(0.4)(s, a).tolist() == [True, False, False, False, True]
    three = MostVaried(0.6)(s, a)
    assert three[0] and three[4] and int(three.sum()) == 3
    values = torch.randn(7, generator=torch.Generator().manual_seed(1)).double()
    best = max(float(values[list(c)].var(correction=0)) for c in itertools.combinations(range(7), 4))
    chosen = MostVaried(4 / 7)(scores([0.0] * 7, [0] * 7), values)
    assert float(values[chosen].var(correction=0)) == pytest.approx(best)
    assert bool(MostVaried(1.0)(s, a).all())
    with pytest.raises(ValueError, match="fraction=0"):
        MostVaried(0)


def test_groups_by_how_much_their_rewards_vary() -> None:
    """Of eight with 1, 2, 3 and 4 right: .4375, .75, .9375 and 1 of the greatest variance."""
    rewards = [[1.0] * c + [0.0] * (8 - c) for c in (1, 2, 3, 4)]
    s = scores([x for group in rewards for x in group], [g for g in range(4) for _ in range(8)])
    a = torch.zeros(32).double()
    for least, kept in ((0.3, 4), (0.5, 3), (0.8, 2), (0.95, 1)):
        assert int(VariedGroups(least=least)(s, a).view(4, 8).all(dim=1).sum()) == kept
    assert torch.equal(VariedGroups(least=0.0)(s, a), DropFlatGroups()(s, a))


def test_lengths_weigh_by_a_power() -> None:
    """Delta-L: power 0 divides by the greatest length; lengths 1 and 3 at power 1 weigh 1.5 and .5."""
    mask = torch.tensor([[True, False, False, False], [True, True, True, False]])
    assert torch.equal(LengthPower(0.0)(mask), FixedLength()(mask))
    wanted = FixedLength()(mask) * torch.tensor([[1.5], [0.5]]).double()
    torch.testing.assert_close(LengthPower(1.0)(mask), wanted)
    lengths = torch.tensor([10.0, 40, 160]).double()

    def variance(power: float) -> float:
        """Of the mean, where a sample's gradient varies like its length."""
        weight = lengths**-power / (lengths**-power).mean()
        return float((weight**2 * lengths).sum()) / 9

    found = [variance(power) for power in (1.0, 0.75, 0.0)]
    assert found == sorted(found) and found == pytest.approx([7.62, 8.01, 23.3], abs=0.05)
