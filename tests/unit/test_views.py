"""Views of completions, one by one: what each plan hides, asks for and weighs, for every seed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from flowrl.estimators.views import (
    BlockAndAfter,
    BlockRandom,
    Coupled,
    EachAlone,
    FullMask,
    Quadrature,
    RandomCount,
    RandomTime,
    TimeGrid,
    Trajectory,
    Views,
)
from flowrl.math.random import seeds
from flowrl.types import IncompatibleError, TokenTrace

COUNT, LENGTH, CONTENT = 300, 12, 7
"""Completions of 12 positions of which 7 hold content."""


def trace(count: int = COUNT, length: int = LENGTH, content: int = CONTENT, **options) -> TokenTrace:
    mask = (torch.arange(length) < content).expand(count, -1)
    return TokenTrace(torch.ones(count, length).long(), mask, 1.0, **options)


def make(plan, count: int = COUNT, length: int = LENGTH, content: int = CONTENT, **options) -> Views:
    views = plan(trace(count, length, content, **options), seeds(3, "views", count=count))
    assert views.hidden.shape == views.targets.shape == views.weights.shape == (count, plan.draws, length)
    assert views.weights.dtype == torch.float64 and bool((views.targets <= views.hidden).all())
    assert bool(views.hidden[..., content:].all()) and not bool(views.targets[..., content:].any())
    assert not bool((views.weights[~views.targets] != 0).any())
    return views


def weight_of_views(views: Views) -> Tensor:
    """[N, m] the one weight of all that a view asks for; 0 for a view that asks for nothing."""
    weight = views.weights.amax(dim=2)
    assert torch.equal(views.weights, views.targets * weight[..., None])
    return weight


def same(views: Views) -> None:
    """All hidden content is asked for."""
    assert torch.equal(views.targets, views.hidden & (torch.arange(LENGTH) < CONTENT))


def test_the_full_mask_hides_all_and_asks_for_the_content() -> None:
    views = make(FullMask())
    assert bool(views.hidden.all()) and bool((weight_of_views(views) == 1).all())
    same(views)


@pytest.mark.parametrize("systematic", [True, False])
def test_counts_are_from_one_to_the_length_and_weigh_their_inverse(systematic: bool) -> None:
    views = make(RandomCount(systematic=systematic))
    same(views)
    count = views.targets.sum(dim=2)
    assert torch.allclose(weight_of_views(views), CONTENT / count.double())
    for view in range(4):
        found = torch.bincount(count[:, view], minlength=CONTENT + 1)
        assert found[0] == 0 and found[1:].min() > COUNT / CONTENT / 2
    spread = (count.amax(dim=1) - count.amin(dim=1)).double().mean()
    assert (spread > 4.9) == systematic  # stratified: always most of the range; independent: 3.7 on average
    assert RandomCount().systematic and RandomCount().draws == 4


def test_times_are_within_their_range() -> None:
    views = make(RandomTime(low=0.5, high=0.5))
    same(views)
    asked = views.targets.any(dim=2)
    assert bool((weight_of_views(views)[asked] == 2).all())  # 1 / t
    assert float(views.targets[..., :CONTENT].double().mean()) == pytest.approx(0.5, abs=0.02)
    times = 1 / weight_of_views(make(RandomTime(low=0.25, high=0.75)))
    assert times[times.isfinite()].min() > 0.25 and times[times.isfinite()].max() < 0.75
    whole = make(RandomTime())
    assert float(whole.targets[..., :CONTENT].double().mean()) == pytest.approx(0.5, abs=0.03)
    mean = make(RandomTime(weight="mean"))
    assert torch.allclose(mean.weights.sum(dim=2), mean.targets.any(dim=2).double())  # 1 / number hidden


def test_a_time_of_zero_hides_nothing_and_weighs_nothing() -> None:
    views = make(RandomTime(low=0.0, high=0.0))
    assert not bool(views.targets.any()) and bool((views.weights == 0).all())


def test_a_grid_of_times_goes_from_a_random_start_to_one() -> None:
    """Three views at t, (1 + t) / 2 and 1 hide the same kind of coins, so on average .5, .75 and 1 of the content."""
    views = make(TimeGrid(draws=3))
    same(views)
    shares = views.targets[..., :CONTENT].double().mean(dim=(0, 2))
    assert shares.tolist() == pytest.approx([0.5, 0.75, 1.0], abs=0.04) and shares[2] == 1
    assert torch.allclose(views.weights.sum(dim=2), views.targets.any(dim=2).double())
    single = make(TimeGrid(draws=1))
    assert float(single.targets[..., :CONTENT].double().mean()) == pytest.approx(0.5, abs=0.04)  # the start itself


def test_nodes_are_repeated_and_their_weights_shared() -> None:
    """Two nodes .5 -+ sqrt(1/12) of weight 1/2 each, twice: the mean over four views is the sum over nodes."""
    plan = Quadrature(nodes=2, repeats=2)
    assert plan.draws == 4 and Quadrature().draws == 3
    views = make(plan)
    same(views)
    t = torch.tensor([0.5 - (1 / 12) ** 0.5, 0.5 + (1 / 12) ** 0.5], dtype=torch.float64).repeat(2)
    weight = weight_of_views(views)
    assert torch.allclose(weight, torch.where(weight > 0, 1 / t, 0.0))
    shares = views.targets[..., :CONTENT].double().mean(dim=(0, 2))
    assert torch.allclose(shares, t, atol=0.04)
    floor = make(Quadrature(nodes=2, repeats=2, counts="floor"))
    assert torch.allclose(weight_of_views(floor), (1 / t).expand(COUNT, -1))
    assert floor.targets.sum(dim=2).unique(dim=0).tolist() == [[1, 5, 1, 5]]  # floor(.21 7), floor(.79 7)


def test_a_pair_of_masks_shows_what_the_other_hides() -> None:
    views = make(Coupled(pairs=2))
    assert views.targets[:, 0, :CONTENT].all()
    scale = 5 / 2  # half of the five views' mean for the full one, half for the two pairs together
    weight = weight_of_views(views)
    assert bool((weight[:, 0] == scale).all())
    for pair in (0, 1):
        one, other = views.targets[:, 1 + pair], views.targets[:, 3 + pair]
        assert torch.equal(one, ~other & (torch.arange(LENGTH) < CONTENT))
        both = one.any(dim=1) & other.any(dim=1)
        first, second = weight[both, 1 + pair] * 2 / scale, weight[both, 3 + pair] * 2 / scale
        assert torch.allclose(1 / first + 1 / second, torch.ones_like(first))  # 1 / t and 1 / (1 - t)
        assert float((1 / first).min()) > 0.2 and float((1 / first).max()) < 0.8
        close = (1 / first) > 0.7
        assert views.targets[both][close][:, 1 + pair, :CONTENT].double().mean() > 0.6  # t is the share hidden


def test_pairs_alone_are_the_plain_bound() -> None:
    plan = Coupled(full=False, low=0.0, high=1.0)
    assert plan.draws == 2 and Coupled().draws == 3
    views = make(plan)
    weight = weight_of_views(views)
    both = (weight > 0).all(dim=1)
    assert torch.allclose((1 / weight[both]).sum(dim=1), torch.ones(int(both.sum())).double())
    assert torch.equal(views.targets.sum(dim=1), (torch.arange(LENGTH) < CONTENT).int().expand(COUNT, -1))


def test_a_block_is_asked_for_with_earlier_ones_shown_and_later_ones_hidden() -> None:
    """Blocks of 3 of 7 positions: (0-2), (3-5), (6); weight (3 blocks) n / k."""
    views = make(BlockRandom(block=3, draws=3))
    place = torch.arange(LENGTH) // 3
    block = torch.where(views.targets, place, -1).amax(dim=2)
    assert block.min() == 0 and bool((block.sort(dim=1).values == torch.tensor([0, 1, 2])).all())  # stratified
    inside = (place == block[..., None]) & (torch.arange(LENGTH) < CONTENT)
    assert bool((views.targets <= inside).all())
    assert torch.equal(views.hidden & ~inside, (place > block[..., None]) | (torch.arange(LENGTH) >= CONTENT) & ~inside)
    assert torch.equal(views.hidden & inside, views.targets)
    k, n = views.targets.sum(dim=2), inside.sum(dim=2)
    assert torch.allclose(weight_of_views(views), 3 * n / k.double())
    counts = torch.bincount(k[block == 0], minlength=4)
    assert counts[0] == 0 and counts[1:].min() > COUNT / 5 and k.max() == 3


def after(plan: BlockAndAfter, **shape) -> tuple[Views, Tensor, Tensor]:
    """Views, the place of every position among the blocks, and the block of each view (the first one asked for)."""
    views = make(plan, **shape)
    place = torch.arange(views.targets.shape[2]) // plan.block
    return views, place, place[views.targets.int().argmax(dim=2)]


def test_a_block_and_all_after_it_are_asked_for() -> None:
    """Blocks of 3: the three of the content (of the canvas's four), in the block itself k of its n positions."""
    views, place, block = after(BlockAndAfter(block=3, draws=2, corrupt=0.0))
    same(views)
    content = torch.arange(LENGTH) < CONTENT
    later = content & (place > block[..., None])
    assert torch.equal(views.targets & later, later)
    assert not bool((views.targets & (place < block[..., None])).any())
    k = (views.targets & (place == block[..., None])).sum(dim=2)
    assert torch.bincount(k[block < 2], minlength=4)[1:].min() > COUNT / 6 and bool((k[block == 2] == 1).all())
    assert torch.allclose(weight_of_views(views), CONTENT / views.targets.sum(dim=2).double())
    # of a random order of four blocks, modulo three: the first block twice as often, and sometimes twice
    shares = torch.bincount(block.flatten(), minlength=3) / block.numel()
    assert shares.tolist() == pytest.approx([0.5, 0.25, 0.25], abs=0.05)
    assert set(block[block[:, 0] == block[:, 1]].flatten().tolist()) == {0}


def test_blocks_of_a_full_canvas_differ() -> None:
    views, _, block = after(BlockAndAfter(block=4, draws=3, corrupt=0.0), content=LENGTH)
    assert bool((block.sort(dim=1).values == torch.tensor([0, 1, 2])).all()) and bool(views.targets.any(dim=2).all())
    last, _, block = after(BlockAndAfter(block=5, draws=1, corrupt=0.0), content=11)  # the last block holds one
    assert block.max() == 2 and bool((last.targets.sum(dim=2)[block == 2] == 1).all())


def test_earlier_blocks_are_hidden_by_chance_and_asked_for() -> None:
    for corrupt, low, high in ((0.0, 0, 0), (0.15, 0.10, 0.20), (0.5, 0.44, 0.56), (1.0, 1, 1)):
        clean, place, block = after(BlockAndAfter(block=3, corrupt=0.0))
        views = make(BlockAndAfter(block=3, corrupt=corrupt))
        earlier = (place < block[..., None]) & (torch.arange(LENGTH) < CONTENT)
        share = float(views.targets[earlier].double().mean())
        assert low <= share <= high
        assert torch.equal(views.targets & ~earlier, clean.targets)
        assert torch.allclose(weight_of_views(views), CONTENT / views.targets.sum(dim=2).double())
    assert BlockAndAfter().corrupt == 0.15  # as released


def test_more_views_than_blocks_of_the_canvas_are_refused() -> None:
    make(BlockAndAfter(block=4, draws=3))
    with pytest.raises(IncompatibleError, match="completions have 3 blocks of 4 positions"):
        make(BlockAndAfter(block=4, draws=4))


def test_each_position_alone_has_its_turn() -> None:
    views = make(EachAlone(draws=9))
    same(views)
    assert bool((views.targets.sum(dim=2) == 1).all()) and bool((weight_of_views(views) == CONTENT).all())
    first, rest = views.targets[:, :CONTENT].sum(dim=1), views.targets[:, CONTENT:]
    assert bool((first[:, :CONTENT] == 1).all())  # each once, then again from the first
    assert torch.equal(rest, views.targets[:, :2])
    assert views.targets[:, 0, :CONTENT].double().mean(dim=0).tolist() == pytest.approx([1 / 7] * 7, abs=0.06)


ORDER = torch.tensor([[4, 0, 2, 0, 7, -1]])
"""Steps 1, 3, 5 and 6 fixed nothing, the last position was never fixed."""


def trajectory(limit: int, merge: int = 1, through: str = "all", content: int = 5, ended: bool | None = True) -> Views:
    mask = torch.arange(6) < content
    told = None if ended is None else torch.tensor([ended])
    rows = TokenTrace(torch.ones(1, 6).long(), mask[None], 1.0, order=ORDER, ended=told)
    return Trajectory(limit=limit, merge=merge, through=through)(rows, torch.zeros(1).long())  # type: ignore[arg-type]


def test_steps_of_a_trajectory_that_fixed_nothing_do_not_count() -> None:
    """Fixed in the order (1, 3), 2, 0, 4: four views, each hides what is not fixed before it."""
    views = trajectory(4)
    assert views.targets[0].int().tolist() == [
        [0, 1, 0, 1, 0, 0], [0, 0, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 1, 0],
    ]  # fmt: skip
    assert views.hidden[0].int().tolist() == [
        [1, 1, 1, 1, 1, 1], [1, 0, 1, 0, 1, 1], [1, 0, 0, 0, 1, 1], [0, 0, 0, 0, 1, 1],
    ]  # fmt: skip
    assert torch.equal(views.weights, 4.0 * views.targets)  # the mean over the views is the sum


def test_steps_of_a_trajectory_may_be_merged() -> None:
    views = trajectory(2, merge=2)
    assert views.targets[0].int().tolist() == [[0, 1, 1, 1, 0, 0], [1, 0, 0, 0, 1, 0]]
    assert views.hidden[0].int().tolist() == [[1, 1, 1, 1, 1, 1], [1, 0, 0, 0, 1, 1]]
    assert Trajectory(limit=3).merge == 1 and Trajectory(limit=3).draws == 3
    empty = trajectory(5)
    assert not bool(empty.targets[0, 4].any())  # a view of no step


def test_a_trajectory_longer_than_its_limit_is_refused() -> None:
    for limit, merge in ((3, 1), (1, 3)):
        with pytest.raises(IncompatibleError, match=r"raise estimator\.views\.limit"):
            trajectory(limit, merge)
    trajectory(1, merge=4)


def test_what_a_trajectory_asks_for_of_the_end() -> None:
    def asked(through: str, **options) -> list[int]:
        return trajectory(4, 1, through, **options).targets[0].any(dim=0).int().tolist()

    assert asked("all", content=3) == [1, 1, 1, 1, 1, 0]
    assert asked("end", content=3) == [1, 1, 1, 0, 0, 0]
    assert asked("before_end", content=3) == [1, 1, 0, 0, 0, 0]
    assert asked("before_end", content=3, ended=False) == [1, 1, 1, 0, 0, 0]
    with pytest.raises(IncompatibleError, match="tells which completions ended"):
        asked("before_end", ended=None)
    with pytest.raises(IncompatibleError, match="record of steps"):
        make(Trajectory(limit=2))


@pytest.mark.parametrize(
    ("plan", "field"),
    [(RandomCount, "draws"), (RandomTime, "draws"), (TimeGrid, "draws"), (Quadrature, "nodes"), (Quadrature, "repeats"),
     (Coupled, "pairs"), (BlockRandom, "block"), (BlockRandom, "draws"), (BlockAndAfter, "block"),
     (BlockAndAfter, "draws"), (Trajectory, "limit"), (Trajectory, "merge"), (EachAlone, "draws")],
)  # fmt: skip
def test_counts_are_at_least_one(plan, field: str) -> None:
    others = {"limit": 1} if plan is Trajectory else {}
    plan(**{**others, field: 1})
    with pytest.raises(ValueError, match=f"{field}=0 should be at least 1"):
        plan(**{**others, field: 0})


@pytest.mark.parametrize("plan", [RandomTime, Coupled])
def test_times_are_times(plan) -> None:
    plan(low=0.0, high=1.0)
    plan(low=0.5, high=0.5)
    for low, high in ((-0.1, 1.0), (0.6, 0.5), (0.0, 1.1)):
        with pytest.raises(ValueError, match="should be times within 0 and 1"):
            plan(low=low, high=high)


def test_corruption_is_a_probability() -> None:
    BlockAndAfter(corrupt=0.0)
    BlockAndAfter(corrupt=1.0)
    for corrupt in (-0.1, 1.1):
        with pytest.raises(ValueError, match="should be a probability"):
            BlockAndAfter(corrupt=corrupt)
