"""Advantages spread over decisions, by hand."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from flowrl.parts.token_advantages import GAE, KLInReward, TruncatedImportance, last_of, whitened
from flowrl.types import IncompatibleError, Likelihood, Rows, Table
from tests.contract.toys import table_of

THREE = torch.tensor([[True, True, True, False]])


def table(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def known_of(made: Table) -> Likelihood:
    assert made.old is not None
    return made.old


def test_generalised_advantages_by_hand() -> None:
    """Reward 4 after the third token; delta_t = r_t + .9 V_{t+1} - V_t = .4, .8, 2 and A_t = delta_t + .72 A_{t+1}."""
    old = Likelihood(torch.zeros(1, 4), {"value": table([0.5, 1, 2, 9])})
    advantage = torch.full((1, 4), 4.0)
    made = GAE(gamma=0.9, lam=0.8, whiten=False)(table_of(advantage, THREE, old))
    advantages, known = made.advantage, known_of(made)
    assert advantages.tolist() == [pytest.approx([2.0128, 2.24, 2, 0])]
    assert known.need("returns").tolist() == [pytest.approx([2.5128, 3.24, 4, 0])]  # A + V, nothing after the end
    assert torch.equal(known.need("value"), old.need("value")) and known.logp is old.logp


def test_advantages_without_discount_are_reward_minus_value() -> None:
    old = Likelihood(torch.zeros(1, 4), {"value": table([0.5, 1, 2, 9])})
    advantages = GAE(gamma=1, lam=1, whiten=False)(table_of(torch.full((1, 4), 4.0), THREE, old)).advantage
    assert advantages.tolist() == [pytest.approx([3.5, 3, 2, 0])]


def test_advantages_as_trl_has_them_by_default() -> None:
    """TRL's PPOConfig: gamma 1, lambda .95, whitened. delta = 1, 2, so A = 1 + .95 2 and 2, with mean 2.45, std .45."""
    old = Likelihood(torch.zeros(1, 2), {"value": table([1, 2])})
    made = GAE()(table_of(torch.full((1, 2), 4.0), torch.ones(1, 2).bool(), old))
    advantages, known = made.advantage, known_of(made)
    assert known.need("returns").tolist() == [pytest.approx([3.9, 4])]
    assert advantages.tolist() == [pytest.approx([1, -1])]


def test_a_divergence_in_the_reward_by_hand() -> None:
    """A - .5 times the log-ratios from here to the end: 1 - .5 (.2 - .4) and 1 + .5 .4; what is masked adds nothing."""
    old = Likelihood(torch.zeros(1, 3), {"log_ratio/reference": table([0.2, -0.4, 0.6])})
    mask = torch.tensor([[True, True, False]])
    made = KLInReward(weight=0.5, whiten=False)(table_of(torch.ones(1, 3), mask, old))
    advantages, known = made.advantage, made.old
    assert advantages.tolist() == [pytest.approx([1.1, 1.2, 1])] and known is old
    advantages = KLInReward(weight=0.5)(table_of(torch.ones(1, 3), mask, old)).advantage
    assert advantages[mask].tolist() == pytest.approx([-1, 1], abs=1e-6)  # whitened over the two tokens that count
    assert KLInReward(weight=0.5).reference == "reference"


def test_no_divergence_in_the_reward_needs_no_reference() -> None:
    part = KLInReward(weight=0.0, whiten=False)
    two = table_of(table([1, 3]), torch.ones(1, 2).bool(), Likelihood(torch.zeros(1, 2)))
    advantages = part(two).advantage
    assert advantages.tolist() == [[1, 3]] and part.reference == ""


@dataclass(frozen=True)
class Recorded(Rows):
    """Rows of a sampler that recorded its log-probabilities."""

    recorded: Tensor

    @property
    def sampler_logp(self) -> Tensor:
        return self.recorded


def importance(part: TruncatedImportance, weights: list[float]) -> list[list[float]]:
    """Advantage 1 for decisions whose true weights are these, and 7 for a masked one that has none."""
    gap = table([*weights, 1e6]).log()
    mask = torch.tensor([[True] * len(weights) + [False]])
    advantage = table([1.0] * len(weights) + [7.0])
    return part(table_of(advantage, mask, Likelihood(torch.zeros_like(gap)), Recorded(-gap))).advantage.tolist()


def test_importance_weights_up_to_the_cap() -> None:
    assert importance(TruncatedImportance(), [0.5, 1.5, 3.0]) == [pytest.approx([0.5, 1.5, 2, 7])]  # verl's cap, 2
    assert importance(TruncatedImportance(beyond="mask"), [0.5, 1.5, 3.0]) == [pytest.approx([0.5, 1.5, 0, 7])]
    whole = TruncatedImportance(level="sequence", cap=4)
    assert importance(whole, [0.5, 1.5, 3.0]) == [pytest.approx([2.25, 2.25, 2.25, 15.75])]


def test_weights_below_the_floor_do_not_count() -> None:
    """IcePop: from .5 to 5."""
    icepop = TruncatedImportance(cap=5, beyond="mask", floor=0.5)
    assert importance(icepop, [0.4, 0.5, 1.5, 5.0, 5.1]) == [pytest.approx([0, 0.5, 1.5, 5, 0, 7])]
    with pytest.raises(ValueError, match="floor=3"):
        TruncatedImportance(floor=3)


def test_a_weight_at_the_cap_is_within_it() -> None:
    assert importance(TruncatedImportance(cap=1.0, beyond="mask"), [1.0]) == [[1, 7]]


def test_importance_needs_a_cap_and_a_record() -> None:
    with pytest.raises(ValueError, match="cap=0"):
        TruncatedImportance(cap=0)
    with pytest.raises(IncompatibleError, match="records its log-probabilities"):
        TruncatedImportance()(table_of(torch.ones(1, 1), torch.ones(1, 1).bool(), Likelihood(torch.zeros(1, 1))))


def test_the_last_decision_of_a_row_may_lie_anywhere() -> None:
    mask = torch.tensor([[1, 1, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0]]).bool()
    assert last_of(mask).int().tolist() == [[0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0]]


def test_whitening_is_over_the_mask_and_for_two_or_more() -> None:
    mask = torch.tensor([[True, True, False]])
    # mean 2 and population std 1 of the two that count; the third is moved by the same amounts
    assert whitened(table([1, 3, 5]), mask).tolist() == [pytest.approx([-1, 1, 3], abs=1e-7)]
    one = torch.tensor([[False, True, False]])
    assert whitened(table([1, 3, 5]), one).tolist() == [[1, 3, 5]]
    assert whitened(table([1, 3]), torch.zeros(1, 2).bool()).tolist() == [[1, 3]]


def test_whitening_has_a_floor_under_the_spread() -> None:
    """Mean 1e-8 and std 1e-8, so that the floor of 1e-8 halves what would be 1."""
    assert whitened(table([0, 2e-8]), torch.ones(1, 2).bool()).tolist() == [pytest.approx([-0.5, 0.5])]
    equal = whitened(table([3, 3]), torch.ones(1, 2).bool())
    assert equal.tolist() == [[0, 0]] and not math.isnan(float(equal.sum()))
