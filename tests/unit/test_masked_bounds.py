"""Likelihood bounds of masked diffusion against enumeration on tables of three tokens."""

from __future__ import annotations

import itertools
import math
from functools import cache

import pytest
import torch
from torch import Tensor

from flowrl.estimators.masked import MaskedViews
from flowrl.estimators.views import (
    BlockRandom,
    Coupled,
    EachAlone,
    FullMask,
    Quadrature,
    RandomCount,
    RandomTime,
    TimeGrid,
    Trajectory,
    ViewDraw,
)
from flowrl.math.masking import gauss_legendre
from flowrl.math.random import seeds
from flowrl.models.tiny_text import TinyText
from flowrl.parts.bounds import lower_bound, upper_bound
from flowrl.types import TokenTrace, ViewRows, prompts_of
from tests.contract.toys import rollout_of

V = 3


@cache
def table(length: int, seed: int = 0) -> TinyText:
    """A network whose conditionals come from no joint distribution."""
    return TinyText(V, length, scale=1.5, seed=seed, dtype=torch.float64)


@cache
def conditionals(length: int, seed: int = 0) -> Tensor:
    """[states, L, V] log-probabilities."""
    return table(length, seed).table[0].detach().log_softmax(dim=-1)


def state(tokens: tuple[int, ...], hidden: frozenset[int]) -> int:
    return sum((V if i in hidden else t) * (V + 1) ** i for i, t in enumerate(tokens))


def log_at(tokens: tuple[int, ...], hidden: frozenset[int], i: int, seed: int = 0) -> float:
    return float(conditionals(len(tokens), seed)[state(tokens, hidden), i, tokens[i]])


def subset_sum(tokens: tuple[int, ...], hidden: frozenset[int], seed: int = 0) -> float:
    """l(S): the sum of log-probabilities of the hidden positions."""
    return sum(log_at(tokens, hidden, i, seed) for i in hidden)


def subsets(length: int) -> list[frozenset[int]]:
    return [frozenset(c) for k in range(1, length + 1) for c in itertools.combinations(range(length), k)]


def exact_elbo(tokens: tuple[int, ...], seed: int = 0) -> float:
    """By counts: ``mean over k of L / k * mean over |S| = k of l(S)``."""
    length = len(tokens)
    total = 0.0
    for k in range(1, length + 1):
        same = [s for s in subsets(length) if len(s) == k]
        total += length / k * sum(subset_sum(tokens, s, seed) for s in same) / len(same)
    return total / length


def orders(tokens: tuple[int, ...], seed: int = 0) -> list[float]:
    """log prod_j p(y_o(j) | earlier) of every order."""
    found = []
    for order in itertools.permutations(range(len(tokens))):
        hidden, total = set(range(len(tokens))), 0.0
        for i in order:
            total += log_at(tokens, frozenset(hidden), i, seed)
            hidden.remove(i)
        found.append(total)
    return found


def exact_log_likelihood(tokens: tuple[int, ...], seed: int = 0) -> float:
    """Of the sampler that fixes one uniformly chosen position per step."""
    values = orders(tokens, seed)
    return math.log(sum(math.exp(v) for v in values) / len(values))


def every(length: int) -> list[tuple[int, ...]]:
    return list(itertools.product(range(V), repeat=length))


def estimates(
    plan: ViewDraw, tokens: tuple[int, ...], count: int, seed: int = 1, order: Tensor | None = None
) -> Tensor:
    """[count] estimates by the mean over views, as an algorithm measures them."""
    policy = table(len(tokens))
    rows = torch.tensor(tokens).expand(count, -1)
    trace = TokenTrace(rows, torch.ones_like(rows, dtype=torch.bool), 1.0, order=order)
    rollout = rollout_of(policy.condition(prompts_of([""] * count)), rows, trace)
    estimator = MaskedViews(views=plan)
    probe = estimator.probe(rollout, policy, seeds(seed, "views", count=count))
    with torch.no_grad():
        return estimator(policy, probe, rollout.condition).logp.mean(dim=1)


def assert_mean(values: Tensor, exact: float) -> None:
    error = float(values.std()) / math.sqrt(len(values))
    assert abs(float(values.mean()) - exact) < 4.5 * error + 1e-9, (float(values.mean()), exact, error)


Y = (0, 2, 1)
Z = (0, 2, 1, 1)


@pytest.mark.parametrize("tokens", [Y, Z])
def test_the_bound_by_counts_by_orders_and_by_integral_are_one_number(tokens: tuple[int, ...]) -> None:
    by_orders = sum(orders(tokens)) / math.factorial(len(tokens))
    nodes, weights = gauss_legendre(math.ceil(len(tokens) / 2))
    integral = 0.0
    for t, w in zip(nodes.tolist(), weights.tolist(), strict=True):
        for s in subsets(len(tokens)):
            integral += w * t ** len(s) * (1 - t) ** (len(tokens) - len(s)) / t * subset_sum(tokens, s)
    assert exact_elbo(tokens) == pytest.approx(by_orders, abs=1e-12)
    assert exact_elbo(tokens) == pytest.approx(integral, abs=1e-12)


@pytest.mark.parametrize("length", [3, 4])
def test_the_lower_bound_lies_below_the_likelihood_for_every_network(length: int) -> None:
    for seed in range(3):
        for tokens in every(length):
            assert exact_elbo(tokens, seed) <= exact_log_likelihood(tokens, seed) + 1e-12


@pytest.mark.parametrize(
    ("plan", "tokens"),
    [
        (RandomCount(draws=2), Z),
        (RandomCount(draws=3, systematic=False), Z),
        (Quadrature(nodes=2), Z),
        (Quadrature(nodes=2, repeats=2), Y),
        (BlockRandom(block=4, draws=2), Z),
    ],
)
def test_unbiased_plans_have_the_bound_as_their_mean(plan: ViewDraw, tokens: tuple[int, ...]) -> None:
    assert_mean(estimates(plan, tokens, 20_000), exact_elbo(tokens))


def test_random_times_have_the_integral_over_their_range_as_mean() -> None:
    """On [0, 1] the weight 1 / t has infinite variance, so the range is cut here."""
    nodes, weights = gauss_legendre(8)
    low, exact = 0.3, 0.0
    for u, w in zip(nodes.tolist(), weights.tolist(), strict=True):
        t = low + (1 - low) * u
        exact += w * sum(t ** len(s) * (1 - t) ** (4 - len(s)) / t * subset_sum(Z, s) for s in subsets(4))
    assert_mean(estimates(RandomTime(draws=2, low=low), Z, 20_000), exact)


def test_too_few_nodes_are_biased_and_enough_are_not() -> None:
    few = estimates(Quadrature(nodes=1), Z, 20_000)
    assert abs(float(few.mean()) - exact_elbo(Z)) > 4.5 * float(few.std()) / math.sqrt(len(few))


def test_coupled_masks_cover_every_token_and_their_mean_is_known() -> None:
    """Half the full mask's log-probability, half the pair's: about 1.5 log-likelihoods, as documented."""
    nodes, weights = gauss_legendre(8)
    pair = 0.0
    for u, w in zip(nodes.tolist(), weights.tolist(), strict=True):
        t = 0.2 + 0.6 * u
        for s in [frozenset(), *subsets(4)]:
            chance = t ** len(s) * (1 - t) ** (4 - len(s))
            rest = frozenset(range(4)) - s
            pair += w * chance * (subset_sum(Z, s) / t + subset_sum(Z, rest) / (1 - t))
    exact = 0.5 * subset_sum(Z, frozenset(range(4))) + 0.5 * pair
    assert_mean(estimates(Coupled(), Z, 20_000), exact)
    rows = torch.tensor(Z).expand(50, -1)
    views = Coupled()(TokenTrace(rows, rows >= 0, 1.0), seeds(0, "c", count=50))
    assert bool((views.targets.sum(dim=1) == 2).all())
    assert bool((views.weights.sum(dim=1) > 0).all())


def test_the_full_mask_is_the_one_step_sampler() -> None:
    assert float(estimates(FullMask(), Z, 1)) == pytest.approx(subset_sum(Z, frozenset(range(4))), abs=1e-12)


def test_each_alone_is_the_pseudo_likelihood_and_the_score_entropy_identity() -> None:
    exact = sum(log_at(Z, frozenset({i}), i) for i in range(4))
    assert float(estimates(EachAlone(draws=4), Z, 1)) == pytest.approx(exact, abs=1e-12)
    assert_mean(estimates(EachAlone(draws=1), Z, 20_000), exact)
    # -sum_v p_v grad log s_v = grad log p(y_i | rest), with s_v = p_v / p_y
    logits = conditionals(4)[state(Z, frozenset({1})), 1].clone().requires_grad_()
    logp = logits.log_softmax(dim=-1)
    score_entropy = -(logp.exp().detach() * (logp - logp[Z[1]])).sum()
    (left,) = torch.autograd.grad(score_entropy, logits, retain_graph=True)
    (right,) = torch.autograd.grad(logp[Z[1]], logits)
    assert torch.allclose(left, right, atol=1e-15)


def test_block_masking_is_the_bound_of_the_block_sampler() -> None:
    first = sum(log_at(Z, frozenset({0, 1, 2, 3}), i) for i in (0, 1))
    exact = 0.5 * 2 / 2 * first  # k = 2 in the first block
    exact += 0.5 * 2 / 1 * sum(log_at(Z, frozenset({i, 2, 3}), i) for i in (0, 1)) / 2
    exact += 0.5 * sum(log_at(Z, frozenset({2, 3}), i) for i in (2, 3))
    exact += 0.5 * 2 * sum(log_at(Z, frozenset({i}), i) for i in (2, 3)) / 2
    assert_mean(estimates(BlockRandom(block=2, draws=2), Z, 20_000), exact)


def test_a_trajectory_is_scored_exactly_and_merging_all_steps_is_the_full_mask() -> None:
    order = torch.tensor([[2, 0, 1, 0]])  # positions 1 and 3 first, then 2, then 0
    exact = log_at(Z, frozenset({0, 1, 2, 3}), 1) + log_at(Z, frozenset({0, 1, 2, 3}), 3)
    exact += log_at(Z, frozenset({0, 2}), 2) + log_at(Z, frozenset({0}), 0)
    assert float(estimates(Trajectory(limit=3), Z, 1, order=order)) == pytest.approx(exact, abs=1e-12)
    merged = float(estimates(Trajectory(limit=1, merge=3), Z, 1, order=order))
    assert merged == pytest.approx(subset_sum(Z, frozenset(range(4))), abs=1e-12)


def test_a_time_grid_weights_every_view_by_its_size() -> None:
    rows = torch.tensor(Z).expand(50, -1)
    views = TimeGrid(draws=3)(TokenTrace(rows, rows >= 0, 1.0), seeds(0, "g", count=50))
    total = views.weights.sum(dim=2)
    assert bool(((total - 1).abs() < 1e-12)[views.targets.any(dim=2)].all())
    assert bool(views.targets[:, -1].all())  # the last rate is 1


def test_tokens_after_the_end_are_hidden_and_never_asked_for() -> None:
    rows = torch.tensor(Z).expand(40, -1)
    content = torch.tensor([True, True, True, False]).expand(40, -1)
    trace = TokenTrace(rows, content, 1.0, order=torch.tensor([0, 1, 2, -1]).expand(40, -1))
    for plan in (
        FullMask(),
        RandomCount(),
        RandomTime(),
        TimeGrid(),
        Quadrature(),
        Coupled(),
        EachAlone(),
        Trajectory(limit=4),
    ):
        views = plan(trace, seeds(0, "e", count=40))
        assert not bool(views.targets[..., 3].any()) and bool(views.hidden[..., 3].all())
        assert bool((views.hidden | ~views.targets).all())
        assert bool(((views.weights != 0) <= views.targets).all())


def variance(plan: ViewDraw, tokens: tuple[int, ...] = Z) -> float:
    return float(estimates(plan, tokens, 8000).var())


def test_variance_reductions_at_equal_forwards() -> None:
    """Counts below times, stratified below independent, quadrature below random times: the reason for the defaults."""
    times = variance(RandomTime(draws=2, low=0.02))
    counts = variance(RandomCount(draws=2, systematic=False))
    stratified = variance(RandomCount(draws=2))
    quadrature = variance(Quadrature(nodes=2))
    coupled = variance(Coupled(full=False, low=0.02, high=0.98))
    assert stratified < counts < 0.5 * times
    assert quadrature < 0.9 * times
    assert coupled < 0.9 * times


def exhaustive(tokens: tuple[int, ...]) -> ViewRows:
    """Every subset as a view, its probability in its weight, so that means over views are expectations over
    RandomCount."""
    length = len(tokens)
    all_subsets = subsets(length)
    hidden = torch.tensor([[i in s for i in range(length)] for s in all_subsets])[None]
    labels = torch.tensor(tokens).expand(1, len(all_subsets), -1)
    chance = torch.tensor([1 / length / math.comb(length, len(s)) for s in all_subsets], dtype=torch.float64)
    weight = torch.tensor([length / len(s) for s in all_subsets], dtype=torch.float64) * chance * len(all_subsets)
    inputs = torch.where(hidden, V, labels)
    content = torch.ones(1, length, dtype=torch.bool)
    spare = torch.zeros(1, len(all_subsets), dtype=torch.long)
    return ViewRows(inputs, labels, hidden, hidden * weight[None, :, None], content, spare, "cell", 1.0)


def cells(rows: ViewRows, seed: int = 0) -> Tensor:
    policy = table(rows.inputs.shape[2], seed)
    with torch.no_grad():
        return MaskedViews(per="cell")(policy, rows, policy.condition(prompts_of([""]))).logp


def violations(length: int, power: float, networks: int = 6) -> tuple[int, int]:
    """How often the upper bound without its constant lies below the log-likelihood."""
    below = total = 0
    for seed in range(networks):
        for tokens in every(length):
            rows = exhaustive(tokens)
            total += 1
            below += float(upper_bound(cells(rows, seed), rows, power)) < exact_log_likelihood(tokens, seed) - 1e-12
    return below, total


def test_lower_and_upper_bound_from_cells() -> None:
    rows = exhaustive(Y)
    assert float(lower_bound(cells(rows), rows)) == pytest.approx(exact_elbo(Y), abs=1e-12)
    upper = 0.0
    for i in range(3):
        mean = sum(
            math.exp(1.5 * log_at(Y, s, i)) * 3 / len(s) / 3 / math.comb(3, len(s)) for s in subsets(3) if i in s
        )
        upper += math.log(mean) / 1.5
    assert float(upper_bound(cells(rows), rows, 1.5)) == pytest.approx(upper, abs=1e-12)


def test_the_upper_bound_holds_from_as_many_tokens_on_and_not_below() -> None:
    assert violations(3, 3.0)[0] == 0
    few, total = violations(3, 1.0)
    assert 0.1 < few / total < 0.8


def test_the_upper_bound_over_orders_holds_for_every_network() -> None:
    for seed in range(4):
        for tokens in every(3):
            values = orders(tokens, seed)
            renyi = math.log(sum(math.exp(1.5 * v) for v in values) / len(values)) / 1.5
            assert renyi >= exact_log_likelihood(tokens, seed) - 1e-12


def test_the_upper_bound_is_finite_where_linear_probabilities_underflow() -> None:
    rows = exhaustive(Y)
    logp = torch.full((1, rows.shape[1]), -900.0, dtype=torch.float64, requires_grad=True)
    bound = upper_bound(logp, rows, 1.5)
    bound.sum().backward()
    assert float(bound.detach()) == pytest.approx(-2700, rel=0.01)
    assert logp.grad is not None and bool(torch.isfinite(logp.grad).all()) and float(logp.grad.sum()) > 0


def test_one_full_view_makes_both_bounds_its_log_probability() -> None:
    hidden = torch.ones(1, 1, 3, dtype=torch.bool)
    labels = torch.tensor(Y)[None, None]
    rows = ViewRows(
        torch.full_like(labels, V), labels, hidden, hidden.double(), hidden[0], torch.zeros(1, 1).long(), "cell", 1.0
    )
    exact = subset_sum(Y, frozenset(range(3)))
    for power in (1.0, 1.5, 3.0):
        assert float(upper_bound(cells(rows), rows, power)) == pytest.approx(exact, abs=1e-12)
    assert float(lower_bound(cells(rows), rows)) == pytest.approx(exact, abs=1e-12)


def test_shared_views_make_ratios_and_independent_ones_noise() -> None:
    """LLaDA 1.5's common random numbers: the difference of two policies' bounds, with the same and with other views."""
    policy, count = table(4), 4000
    near = TinyText(V, 4, scale=1.5, seed=0, dtype=torch.float64)
    with torch.no_grad():
        near.table.add_(0.1 * torch.randn(near.table.shape, generator=torch.Generator().manual_seed(5)))
    rows = torch.tensor(Z).expand(count, -1)
    trace = TokenTrace(rows, rows >= 0, 1.0)
    rollout = rollout_of(policy.condition(prompts_of([""] * count)), rows, trace)
    estimator = MaskedViews(views=RandomCount(draws=2))
    first, second = (estimator.probe(rollout, policy, seeds(s, "v", count=count)) for s in (1, 2))
    with torch.no_grad():
        old = estimator(policy, first, rollout.condition).logp.mean(dim=1)
        shared = estimator(near, first, rollout.condition).logp.mean(dim=1) - old
        apart = estimator(near, second, rollout.condition).logp.mean(dim=1) - old
    assert float(shared.var()) < 0.05 * float(apart.var())
