"""What is reported about an update, by hand."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from flowrl.estimators.tokens import Tokens
from flowrl.models.tiny_flow import TinyCondition
from flowrl.parts.advantages import GroupCentred
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.diagnostics import StepMetrics, describe_completions, describe_scores, per_sample
from flowrl.parts.objectives import Clipped, ClippedMean, ScoreFunction
from flowrl.parts.regularizers import KL
from flowrl.samplers.causal import CausalSampler
from flowrl.types import Batch, Likelihood, Rows, Scores, TokenTrace
from tests.contract.toys import rollout_of


def table(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def algorithm(objective, *regularizers) -> Algorithm:
    """What is reported reads the objective and the regularizers alone."""
    return Algorithm(
        sampler=CausalSampler(),
        estimator=Tokens(),
        advantage=GroupCentred(),
        objective=objective,
        regularizers=regularizers,
    )


def batch(advantage: Tensor, weight: Tensor, rows: Rows | None = None) -> Batch:
    old = Likelihood(torch.zeros_like(advantage))
    return Batch(advantage, old, weight, torch.zeros(len(advantage)), rows or Rows())


def report(objective, blocks: list[tuple[Tensor, Tensor, Tensor]], *regularizers, **extra: Tensor) -> dict[str, float]:
    """Metrics of one optimiser batch of blocks (ratios, advantages, weights)."""
    noted = StepMetrics()
    for ratios, advantage, weight in blocks:
        live = Likelihood(ratios.log(), extra)
        noted.add_block(algorithm(objective, *regularizers), live, batch(advantage, weight), torch.zeros(()))
    noted.close_batch()
    return noted.metrics()


ONE = table([1, 1, 1, 1])


def test_means_are_over_the_decisions_that_count_of_all_blocks() -> None:
    first = (table([1.2, 0.8, 9.0, 1.0]), ONE, table([0.1, 0.1, 0.0, 0.1]))
    second = (table([2.0, 1.0, 1.0, 1.0]), ONE, table([0.1, 0.0, 0.0, 0.0]))
    found = report(ScoreFunction(), [first, second])
    assert found["ratio/mean"] == pytest.approx((1.2 + 0.8 + 1.0 + 2.0) / 4)
    squares = math.log(1.2) ** 2 + math.log(0.8) ** 2 + math.log(2) ** 2
    assert found["ratio/log_square"] == pytest.approx(squares / 4)
    assert found["ratio/first_max_deviation"] == pytest.approx(1.0)  # not the 9, which has no weight
    assert found["clip_fraction"] == 0 and "ratio/first_outside_clip" not in found  # there is no clip


def test_penalties_and_entropy_are_means_too() -> None:
    blocks = [(ONE, ONE, table([1, 1, 1, 0]))]
    extra = {"kl/reference": table([1, 2, 6, 9]), "entropy": table([0.5, float("nan"), 1.0, 9.0])}
    found = report(ScoreFunction(), blocks, KL(weight=0.1), **extra)
    assert found["kl/reference"] == pytest.approx(3)
    assert found["entropy"] == pytest.approx(0.75)  # of the decisions that have one
    assert "kl/reference" not in report(ScoreFunction(), blocks, KL(weight=0.0), **extra)


def test_the_clip_stops_good_decisions_above_and_bad_ones_below() -> None:
    ratios = table([1.25, 1.35, 0.85, 0.95, 1.35, 0.85])
    advantage = table([1, 1, 1, -1, -1, -1])
    blocks = [(ratios, advantage, torch.ones_like(ratios))]
    # above 1.3 of the good ones one, below .9 of the bad ones one
    assert report(Clipped(0.1, 0.3), blocks)["clip_fraction"] == pytest.approx(2 / 6)
    nothing = [(ratios, torch.zeros_like(advantage), torch.ones_like(ratios))]
    assert report(Clipped(0.1, 0.3), nothing)["clip_fraction"] == 0
    half = [(ratios, advantage, table([0, 1, 0, 1, 0, 0]))]
    assert report(Clipped(0.1, 0.3), half)["clip_fraction"] == pytest.approx(1 / 2)


def test_a_ratio_at_the_edge_is_not_clipped() -> None:
    """Ratios of exactly 1 +- 1/2."""
    ratios, advantage = table([1.5, 0.5]), table([1, -1])
    live = Likelihood(ratios.log())
    edge = float(live.logp[0, 0].exp()) == 1.5 and float(live.logp[0, 1].exp()) == 0.5
    assert edge  # or the logarithm has rounded, and the test says nothing
    found = report(Clipped(0.5, 0.5), [(ratios, advantage, torch.ones_like(ratios))])
    assert found["clip_fraction"] == 0 and found["ratio/first_outside_clip"] == 0


def test_a_clip_of_samples_counts_samples() -> None:
    ratios = table([1.4, 1.4], [0.7, 0.7], [1.0, 1.0], [1.4, 1.4])
    advantage = table([1, 1], [1, 1], [-1, -1], [-1, -1])
    weight = table([1, 1], [1, 0], [1, 1], [0, 0])
    found = report(ClippedMean(0.2, 0.2), [(ratios, advantage, weight)])
    assert found["clip_fraction"] == pytest.approx(1 / 3)  # the first; the second is below with a good advantage
    assert found["ratio/first_outside_clip"] == pytest.approx(2 / 3)


def test_how_far_ratios_are_from_one_before_the_first_update() -> None:
    """Of 201 ratios 1 + k / 1000 the 199th (.99 of the way from the first to the last) is 1.198."""
    ratios = 1 + torch.arange(201, dtype=torch.float64)[None] / 1000
    found = report(Clipped(0.2, 0.1005), [(ratios, torch.ones_like(ratios), torch.ones_like(ratios))])
    assert found["ratio/first_deviation_p99"] == pytest.approx(0.198)
    assert found["ratio/first_outside_clip"] == pytest.approx(100 / 201)
    low = report(Clipped(0.1005, 0.9), [(2 - ratios, torch.ones_like(ratios), torch.ones_like(ratios))])
    assert low["ratio/first_outside_clip"] == pytest.approx(100 / 201)
    assert low["ratio/first_deviation_p99"] == pytest.approx(0.198)
    none = [(ratios, torch.ones_like(ratios), torch.zeros_like(ratios))]
    assert "ratio/first_outside_clip" not in report(Clipped(), none)


@dataclass(frozen=True)
class Recorded(Rows):
    recorded: Tensor

    @property
    def sampler_logp(self) -> Tensor:
        return self.recorded


def test_only_the_first_batch_says_how_far_sampler_and_trainer_are_apart() -> None:
    noted, plain = StepMetrics(), algorithm(Clipped(0.2, 0.2))
    weight = table([1, 1, 0])
    for shift in (0.0, 1.0):
        live = Likelihood(table([-1.0, -2.0, -3.0]) + shift)
        known = batch(table([1, 1, 1]), weight, Recorded(table([-1.2, -1.5, -9.0])))
        noted.add_block(plain, live, replace(known, old=Likelihood(table([-1.1, -2.0, -3.0]))), torch.tensor(2.0))
        noted.add_block(plain, live, replace(known, weight=torch.zeros(1, 3)), torch.tensor(0.5 + shift))
        noted.close_batch()
    found = noted.metrics()
    assert found["sampler/mean_log_ratio"] == pytest.approx((0.2 + 0.5) / 2)
    assert found["sampler/max_log_ratio"] == pytest.approx(0.5)
    assert found["ratio/first_max_deviation"] == pytest.approx(math.exp(0.1) - 1)
    assert found["ratio/first_outside_clip"] == 0
    assert found["loss"] == pytest.approx((2.5 + 3.5) / 2)  # sums of blocks, the mean over optimiser batches


def test_a_deviation_measured_apart_and_norms() -> None:
    noted = StepMetrics()
    noted.add_deviation(0.25)
    noted.add_deviation(0.125)
    noted.add_gradient_norm(3.0)
    noted.add_gradient_norm(5.0)
    assert noted.close_batch() == (0, [])
    found = noted.metrics()
    assert found["ratio/first_max_deviation"] == 0.25 and found["grad_norm"] == 4 and found["loss"] == 0
    nothing = StepMetrics().metrics()
    assert nothing == {"loss": 0, "grad_norm": 0, "ratio/first_max_deviation": 0, "clip_fraction": 0}


def test_lengths_of_completions() -> None:
    mask = torch.arange(4) < torch.tensor([1, 4, 3, 4])[:, None]
    trace = TokenTrace(torch.ones(4, 4).long(), mask, 1.0)
    found = describe_completions(rollout_of(TinyCondition(torch.zeros(4).long()), trace.tokens, trace))
    assert found == {"completion/length": 3, "completion/full_length_fraction": 0.5}
    assert describe_completions(rollout_of(TinyCondition(torch.zeros(4).long()), trace.tokens)) == {}


def test_rewards_and_advantages_of_an_iteration() -> None:
    rewards = table([1, 2], [3, float("nan")], [5, 4], [5, 9], [7, 1], [7, 1])
    group = torch.tensor([4, 4, 2, 2, 9, 9])
    valid = torch.tensor([True, True, True, True, True, False])
    scores = Scores(rewards, table([1, 0])[0], ("a", "b"), group, group, valid)
    advantage = table([0.5, -2.5, 0, 0, 1, 0])[0]
    found = describe_scores(scores, advantage)
    assert found["reward/a/mean"] == pytest.approx(28 / 6)
    assert found["reward/a/std"] == pytest.approx(math.sqrt((1 + 9 + 25 + 25 + 49 + 49) / 6 - (28 / 6) ** 2))
    assert found["reward/b/mean"] == pytest.approx(17 / 5) and not math.isnan(found["reward/b/std"])
    assert found["reward/mean"] == pytest.approx(21 / 5)  # of the samples that could be scored
    assert found["reward/std"] == pytest.approx(math.sqrt((1 + 9 + 25 + 25 + 49) / 5 - (21 / 5) ** 2))
    assert found["reward/invalid_fraction"] == pytest.approx(1 / 6)
    assert found["zero_std_fraction"] == pytest.approx(2 / 3)  # the groups of 5, 5 and of 7 alone
    assert found["advantage/mean"] == pytest.approx(-1 / 6) and found["advantage/abs_max"] == 2.5


def test_one_number_of_a_sample_for_a_person_to_read() -> None:
    events = table([1, 2, 6], [0, 0, 3])
    assert per_sample(events).tolist() == [3, 1] and per_sample(events[:, 0]).tolist() == [1, 0]
    assert per_sample(torch.stack([events, 3 * events], dim=2)).tolist() == [6, 2]


def test_nothing_could_be_scored() -> None:
    nobody = torch.zeros(2).long()
    unknown = Scores(table([float("nan")], [float("nan")]), torch.ones(1), ("a",), nobody, nobody, nobody.bool())
    found = describe_scores(unknown, torch.zeros(2))
    assert all(math.isnan(found[name]) for name in ("reward/mean", "reward/std", "reward/a/mean", "reward/a/std"))
    assert found["reward/invalid_fraction"] == 1
