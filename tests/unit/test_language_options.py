"""Options of the language parts: views, clips, corrections, aggregations, what takes part, renewals."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from flowrl import composition
from flowrl.errors import UserError
from flowrl.estimators.tokens import TokenRows
from flowrl.estimators.views import BlockAndAfter, Quadrature, Trajectory
from flowrl.math.random import seeds
from flowrl.models.tiny_text import TinyText
from flowrl.parts.aggregations import DecisionMean, FixedLength, RowMean, SampleMean, SampleSum
from flowrl.parts.diagnostics import StepMetrics
from flowrl.parts.ema import Every
from flowrl.parts.objectives import Clipped, ClippedMean
from flowrl.parts.regularizers import KLToOld
from flowrl.parts.selections import ReplaceFlatGroups
from flowrl.parts.token_advantages import TruncatedImportance
from flowrl.types import Batch, IncompatibleError, Likelihood, Rows, TokenTrace, ViewRows
from tests.contract.toys import gradients, roll, small, start, table_of


# ------------------------------------------------------------------------------------------------------------- views
def trace_of(length: int, content: list[int], count: int = 1) -> TokenTrace:
    mask = torch.arange(length) < torch.tensor(content).repeat(count)[:, None]
    tokens = torch.ones(len(mask), length, dtype=torch.long)
    return TokenTrace(tokens, mask, 1.0, ended=torch.ones(len(mask), dtype=torch.bool))


def test_quadrature_with_floored_counts() -> None:
    views = Quadrature(nodes=3, counts="floor")(trace_of(20, [20, 7, 1], 50), seeds(0, "q", count=150))
    t = [0.5 - math.sqrt(0.15), 0.5, 0.5 + math.sqrt(0.15)]
    counts = torch.tensor([[max(1, math.floor(time * n)) for time in t] for n in (20, 7, 1)] * 50)
    assert torch.equal(views.targets.sum(dim=2), counts)
    assert counts[0].tolist() == [2, 10, 17]
    w = torch.tensor([5 / 18, 8 / 18, 5 / 18]).double()  # the mean over three views is the weighted sum
    expected = (3 * w / torch.tensor(t)).expand(150, -1)
    assert torch.allclose(views.weights.amax(dim=2), expected)
    assert float(views.targets[:, 1].double().mean(dim=0)[:7].std()) < 0.2  # any position may be hidden


@pytest.mark.slow
def test_spg_views_are_the_released_ones() -> None:
    """Of 8 blocks of 4 and 3 (or 5) with content: block shares (3, 3, 2) / 8 and (2, 2, 2, 1, 1) / 8, k uniform, all
    after it hidden and asked for, earlier tokens hidden with .15 and asked for too."""
    for own, shares in ((3, [0.375, 0.375, 0.25]), (5, [0.25, 0.25, 0.25, 0.125, 0.125])):
        trace = trace_of(32, [own * 4 - 1], 20_000)
        views = BlockAndAfter(block=4, draws=1, corrupt=0.0)(trace, seeds(0, "b", count=20_000))
        hidden = views.targets[:, 0]
        assert torch.equal(views.hidden[:, 0], hidden | ~trace.mask)
        block = hidden.int().argmax(dim=1) // 4
        found = torch.bincount(block, minlength=own) / 20_000
        assert torch.allclose(found, torch.tensor(shares), atol=0.015)
        inside = hidden & (torch.arange(32) // 4 == block[:, None])
        counts = torch.bincount(inside.sum(dim=1)[block == 0], minlength=5)[1:].double()
        assert torch.allclose(counts / counts.sum(), torch.full((4,), 0.25).double(), atol=0.03)
        later = trace.mask & (torch.arange(32) // 4 > block[:, None])
        assert torch.equal(hidden & later, later)
        length = trace.mask.sum(dim=1)
        assert torch.allclose(views.weights[:, 0].sum(dim=1), length.double())
    pairs = BlockAndAfter(block=4, draws=2, corrupt=0.0)(trace_of(32, [32], 200), seeds(1, "b", count=200))
    first, second = (pairs.targets[:, v].int().argmax(dim=1) // 4 for v in (0, 1))
    assert bool((first != second).all())  # of a full canvas two different blocks
    noisy = BlockAndAfter(block=4, draws=1)(trace_of(32, [32], 20_000), seeds(0, "b", count=20_000))
    chosen = BlockAndAfter(block=4, draws=1, corrupt=0.0)(trace_of(32, [32], 20_000), seeds(0, "b", count=20_000))
    block = chosen.targets[:, 0].int().argmax(dim=1) // 4
    earlier = torch.arange(32) // 4 < block[:, None]
    assert float(noisy.targets[:, 0][earlier].double().mean()) == pytest.approx(0.15, abs=0.01)
    assert torch.equal(noisy.targets[:, 0] & ~earlier, chosen.targets[:, 0])


def test_more_views_than_blocks_are_refused_before_a_model_is_loaded() -> None:
    with pytest.raises(UserError, match=r"views.draws=2: each view takes another block of 16"):
        composition.build({"use": "spg", "length": 16, "steps": 8, "block": 16})
    with pytest.raises(IncompatibleError, match="draws=3"):
        BlockAndAfter(block=8, draws=3)(trace_of(16, [16]), seeds(0, "b", count=1))


def test_what_a_trajectory_asks_for() -> None:
    order = torch.tensor([[0, 1, 2, 3]])
    mask = torch.tensor([[True, True, True, False]])
    asked = {}
    for ended in (True, False):
        trace = TokenTrace(torch.ones(1, 4).long(), mask, 1.0, order=order, ended=torch.tensor([ended]))
        for through in ("all", "end", "before_end"):
            views = Trajectory(limit=4, through=through)(trace, seeds(0, "t", count=1))
            asked[through, ended] = views.targets[0].any(dim=0).int().tolist()
            assert bool(views.hidden[0, 0].all())
    assert asked["all", True] == [1, 1, 1, 1] and asked["end", True] == [1, 1, 1, 0]
    assert asked["before_end", True] == [1, 1, 0, 0] and asked["before_end", False] == [1, 1, 1, 0]


# --------------------------------------------------------------------------------------------- clips and corrections
def batch(advantage: Tensor, old: Tensor, rows: Rows | None = None) -> Batch:
    return Batch(advantage, Likelihood(old), torch.ones_like(old), torch.zeros(len(old)), rows or Rows())


def test_the_dual_clip_bounds_what_a_bad_decision_costs() -> None:
    """verl: ``where(A < 0, min(loss, -c A), loss)`` with c = 3."""
    ratio = torch.tensor([[0.5, 1.0, 2.9, 3.1, 10.0]]).double()
    for advantage, expected in ((-2.0, [1.6, 2.0, 5.8, 6.0, 6.0]), (2.0, [-1.0, -2.0, -2.4, -2.4, -2.4])):
        known = batch(torch.full_like(ratio, advantage), torch.zeros_like(ratio))
        loss = Clipped(0.2, 0.2, dual=3.0)(Likelihood(ratio.log()), known)
        assert loss[0].tolist() == pytest.approx(expected)
        if advantage < 0:
            assert Clipped(0.2, 0.2)(Likelihood(ratio.log()), known)[0, -1] == pytest.approx(20.0)
    live = torch.full((1, 1), math.log(4.0)).double().requires_grad_()
    loss = Clipped(dual=3.0)(Likelihood(live), batch(torch.tensor([[-1.0]]), torch.zeros(1, 1)))
    assert float(torch.autograd.grad(loss.sum(), live)[0]) == 0.0
    with pytest.raises(UserError, match="dual=0"):
        composition.build({"use": "grpo", "objective": {"dual": 0.5}})


def test_importance_corrections_by_hand() -> None:
    old = torch.tensor([[0.5, 0.2, 0.0], [2.0, -0.5, 9.0]]).double()
    mask = torch.tensor([[True, True, True], [True, True, False]])
    rows = TokenRows(torch.zeros(2, 3), mask, torch.zeros(2, 3), 1.0)
    one = torch.ones(2, 3).double()
    e = math.exp

    def weights(**options: Any) -> list[list[float]]:
        advantage = TruncatedImportance(**options)(table_of(one, mask, Likelihood(old), rows)).advantage
        return [row[inside].tolist() for row, inside in zip(advantage, mask, strict=True)]

    assert weights(cap=2.0) == [pytest.approx([e(0.5), e(0.2), 1.0]), pytest.approx([2.0, e(-0.5)])]
    assert weights(cap=2.0, beyond="mask") == [pytest.approx([e(0.5), e(0.2), 1.0]), pytest.approx([0.0, e(-0.5)])]
    assert weights(cap=3.0, level="sequence") == [pytest.approx([e(0.7)] * 3), pytest.approx([3.0, 3.0])]
    assert weights(cap=3.0, level="sequence", beyond="mask") == [pytest.approx([e(0.7)] * 3), pytest.approx([0.0] * 2)]


def test_the_clip_fraction_counts_what_is_clipped() -> None:
    """Of three completions of 1, 2 and 4 tokens the last leaves the clip: one of three, not four of seven."""
    mask = torch.arange(4) < torch.tensor([1, 2, 4])[:, None]
    live = torch.where(mask, torch.tensor([0.0, 0.0, 0.5])[:, None], 0.0)
    known = replace(batch(torch.ones(3, 4), torch.zeros(3, 4)), weight=mask.double())
    for objective, expected in ((ClippedMean(0.2, 0.2), 1 / 3), (Clipped(0.2, 0.2), 4 / 7)):
        step_metrics = StepMetrics()
        step_metrics.add_block(
            replace(composition.build({"use": "grpo", "kl": 0.0}), objective=objective),
            Likelihood(live),
            known,
            torch.zeros(()),
        )
        step_metrics.close_batch()
        assert step_metrics.metrics()["clip_fraction"] == pytest.approx(expected)


def test_aggregations_by_hand() -> None:
    """Two completions: one of two network rows with 2 and 1 decisions, one of a single row with 2 (units of 2)."""
    mask = torch.tensor([[True, True, True, False], [True, True, False, False]])
    each = {
        SampleMean(): [[1 / 6, 1 / 6, 1 / 6, 0], [1 / 4, 1 / 4, 0, 0]],
        DecisionMean(): [[1 / 5] * 3 + [0], [1 / 5, 1 / 5, 0, 0]],
        RowMean(): [[1 / 6, 1 / 6, 1 / 3, 0], [1 / 6, 1 / 6, 0, 0]],
        SampleSum(): [[1 / 2] * 3 + [0], [1 / 2, 1 / 2, 0, 0]],
        FixedLength(): [[1 / 8] * 3 + [0], [1 / 8, 1 / 8, 0, 0]],
    }
    for part, expected in each.items():
        assert torch.allclose(part(mask, 2), torch.tensor(expected).double()), part
    assert torch.allclose(RowMean()(mask, 4), SampleMean()(mask, 4))
    assert torch.allclose(RowMean()(mask, 1), DecisionMean()(mask, 1))


def test_a_divergence_summed_over_a_row() -> None:
    targets = torch.tensor([[[True, True, True], [True, False, False]]])
    rows = ViewRows(*(torch.zeros(1, 2, 3) for _ in range(2)), targets, torch.zeros(1, 2, 3), targets[:, 0],
                    torch.zeros(1, 2), "cell", 1.0)  # fmt: skip
    d = torch.tensor([[0.3, -0.2, 0.1, 0.5, 0.0, 0.0]]).double()
    known = batch(torch.ones_like(d), torch.zeros_like(d), rows)
    total = (RowMean()(targets.flatten(1), 3) * KLToOld(summed=True)(Likelihood(d), known)).sum()
    k3 = (-d).exp() - 1 + d
    assert float(total) == pytest.approx(float((k3[0, :3].sum() + k3[0, 3]) / 2))


# ------------------------------------------------------------------------------------- what takes part, and renewals
@pytest.mark.parametrize("name", ["grpo", "dapo", "diffu_grpo", "gdpo_dllm"])
def test_completions_that_were_cut_leave_the_loss(name: str) -> None:
    plain = small(name)
    policy = start(plain)
    it = roll(plain, policy)
    ended = (it.rollout.final == policy.end_tokens[0]).any(dim=1)
    assert bool(ended.any()) and not bool(ended.all())
    assert torch.equal(it.rollout.trace.ended, ended)
    dropped = gradients(replace(plain, mask_truncated_completions=True), it)[0]
    it.scores = replace(it.scores, valid=ended)  # the same advantage, without them in the mean
    assert torch.allclose(dropped, gradients(plain, it)[0], atol=1e-7) and float(dropped.norm()) > 0
    with pytest.raises(IncompatibleError, match="mask_truncated_completions"):
        gradients(replace(plain, mask_truncated_completions=True), replace_trace(it, ended=None))


def replace_trace(it: Any, **changes: Any) -> Any:
    it.rollout = replace(it.rollout, trace=replace(it.rollout.trace, **changes))
    return it


def test_a_reference_is_renewed_every_so_many_steps() -> None:
    every = Every(64, keep=0.4)
    assert [every(steps, steps - 2) for steps in (2, 62, 64, 66, 128)] == [1.0, 1.0, 0.4, 1.0, 0.4]
    assert every(65, 63) == 0.4 and every(300, 10) == 0.4  # the step lay within the iteration
    algorithm = composition.build("coupled_grpo")
    assert [f.name for f in algorithm.ema_weights] == ["reference"] and algorithm.weight_sets == ("reference",)
    policy = TinyText(3, 2)
    before = policy.table.detach().clone()
    with torch.no_grad():
        policy.table.add_(1.0)
    policy.update_ema("reference", every(63, 61))
    assert "reference/table" not in policy.weights.state()  # it has not moved, so it need not be kept
    policy.update_ema("reference", every(64, 62))
    with policy.using("reference"):
        assert torch.allclose(policy.table, before + 0.6)
    with pytest.raises(ValueError, match="steps=0"):
        Every(0)


def test_enough_groups_may_be_fewer_than_asked_for() -> None:
    assert composition.build("gpg").selection == ReplaceFlatGroups(rounds=20, share=0.5)
    with pytest.raises(UserError, match="share=0"):
        composition.build({"use": "gpg", "selection": {"share": 0.0}})
