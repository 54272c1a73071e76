"""Several gradients made one, and coefficients that follow a measurement."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from flowrl.parts.advantages import GroupCentred
from flowrl.parts.coefficients import update_coefficients, with_coefficients
from flowrl.parts.combinations import (
    FixedShares,
    Influence,
    MinNorm,
    ProjectConflicts,
    SoftProjection,
    shortest,
)
from flowrl.parts.controllers import AdaptiveKL, Dual, Smoothed, Stepwise
from flowrl.parts.diagnostics import SHARE, WEIGHT
from flowrl.step import UpdateSettings, improve
from flowrl.types import IncompatibleError
from tests.contract.toys import Recorder, disturb, gradients, roll, small, start


def random_gradients(count: int, dim: int = 7, seed: int = 0) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)).double()


def length(g: Tensor, weights: Tensor) -> float:
    return float((weights @ g).norm())


@pytest.mark.parametrize("seed", range(6))
def test_the_shortest_vector_of_the_hull_is_found(seed: int) -> None:
    """Against all weights on a grid of hundredths, and the condition for a minimum: ``g_c (a g) >= |a g|^2``."""
    g = random_gradients(3, dim=2 + seed, seed=seed)
    found = shortest(g @ g.T)
    assert bool((found >= 0).all()) and float(found.sum()) == pytest.approx(1)
    grid = (torch.tensor([i, j, 100 - i - j]).double() / 100 for i in range(101) for j in range(101 - i))
    assert length(g, found) <= min(length(g, weights) for weights in grid) + 1e-9
    inner = g @ (found @ g)
    assert bool((inner >= length(g, found) ** 2 - 1e-9).all())


def test_opposite_gradients_cancel_and_equal_ones_stay() -> None:
    g = random_gradients(1)[0]
    opposite = torch.stack([g, -g])
    assert MinNorm()(opposite @ opposite.T).tolist() == pytest.approx([0.5, 0.5])
    equal = torch.stack([g, g, g])
    gram = equal @ equal.T
    assert MinNorm()(gram).tolist() == pytest.approx([1 / 3] * 3)
    for part in (MinNorm(), MinNorm(normalise=True), Influence((0.2, 0.3, 0.5)), FixedShares((0.2, 0.3, 0.5))):
        torch.testing.assert_close(part(gram) @ equal, g)
    torch.testing.assert_close(ProjectConflicts()(gram), torch.ones(3).double())


def test_unit_vectors_are_combined_and_get_their_mean_length() -> None:
    """Lengths 1 and 100 at a right angle: half of each unit vector, times 50.5; without it the long one is left out."""
    g = torch.tensor([[1.0, 0.0], [0.0, 100.0]]).double()
    weights = MinNorm(normalise=True)(g @ g.T)
    assert (weights @ g).tolist() == pytest.approx([25.25, 25.25])
    assert MinNorm()(g @ g.T).tolist() == pytest.approx([1, 1e-4], rel=1e-3)
    dead = torch.tensor([[1.0, 0.0], [0.0, 0.0]]).double()
    assert MinNorm(normalise=True)(dead @ dead.T).tolist() == pytest.approx([1, 0])
    assert MinNorm(normalise=True)(torch.zeros(2, 2).double()).tolist() == [0, 0]


def test_conflicts_are_projected_out() -> None:
    """PCGrad of two in conflict: each loses its part against the other, so neither is hurt."""
    g = torch.tensor([[1.0, 0.0], [-1.0, 1.0]]).double()
    combined = ProjectConflicts()(g @ g.T) @ g
    first = g[0] - (g[0] @ g[1]) / (g[1] @ g[1]) * g[1]
    second = g[1] - (g[0] @ g[1]) / (g[0] @ g[0]) * g[0]
    torch.testing.assert_close(combined, first + second)
    assert bool((g @ combined >= 0).all())
    aligned = torch.tensor([[1.0, 0.0], [1.0, 1.0]]).double()
    assert ProjectConflicts()(aligned @ aligned.T).tolist() == [1, 1]


def test_influence_is_the_softmax_of_agreement() -> None:
    """Orthogonal gradients of lengths 1 and 2, rate .1, from equal shares: softmax(log .5 + .1, log .5 + .4)."""
    g = torch.diag(torch.tensor([1.0, 2.0])).double()
    assert Influence((0.5, 0.5), 0.1)(g @ g.T).tolist() == pytest.approx([0.4256, 0.5744], abs=1e-4)
    with pytest.raises(IncompatibleError, match="2 shares, and there are 3 rewards"):
        Influence((0.5, 0.5))(torch.eye(3).double())


def test_a_conflict_is_softened_by_its_share() -> None:
    """PCR: the product with the penalty's gradient falls to (1 - a) of it; without conflict both are added."""
    g = torch.tensor([[1.0, 0.5], [-1.0, 1.0]]).double()  # objective, penalty: product -.5
    for share in (0.0, 0.3, 1.0):
        weights = SoftProjection(share)(g @ g.T)
        moved = weights @ g - g[1]
        assert float(moved @ g[1]) == pytest.approx((1 - share) * -0.5)
    aligned = torch.tensor([[1.0, 0.0], [1.0, 1.0]]).double()
    assert SoftProjection()(aligned @ aligned.T).tolist() == [1, 1]
    assert SoftProjection()(torch.eye(1).double()).tolist() == [1]
    with pytest.raises(ValueError, match="share=2"):
        SoftProjection(2)


def test_pcr_combines_objective_and_penalty() -> None:
    """By the gradients of both apart; a share of 0 is GRPO."""
    algorithm = small("pcr", share=1.0, kl=5.0)
    policy = start(algorithm)
    disturb(policy, 0.5)
    it = roll(algorithm, policy)
    plain = replace(algorithm, combination=None, advantage=GroupCentred(clip=None))
    base = roll(plain, policy)
    both = gradients(plain, base)[0]
    objective = gradients(replace(plain, regularizers=()), base)[0]
    penalty = both - objective
    wanted = objective + penalty
    if objective @ penalty < 0:
        wanted = wanted - (objective @ penalty) / (penalty @ penalty) * penalty
    found = gradients(algorithm, it)[0]
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5 * float(both.norm()))
    none = gradients(replace(algorithm, combination=SoftProjection(0.0)), it)[0]
    torch.testing.assert_close(none, both, rtol=1e-3, atol=1e-5 * float(both.norm()))
    only = replace(algorithm, regularizers=())
    torch.testing.assert_close(gradients(only, it)[0], objective, rtol=1e-3, atol=1e-6 * float(objective.norm()))


# --------------------------------------------------------------------------------------------------------------- MARBLE
def marble(**spec):
    algorithm = small("marble", draws=5, refresh=3, rewards=3, **spec)  # two unit vectors always share equally
    policy = start(algorithm)
    it = roll(algorithm, policy)
    disturb(policy, 0.05)
    return algorithm, policy, it


def test_the_amortised_backward_is_the_weighted_sum_of_all_gradients() -> None:
    """The loss is affine in the advantage, and the shares sum to 1: one backward, as many as there are rewards."""
    algorithm, _, it = marble(reference=0.0)
    shares = (0.2, 0.3, 0.5)
    advantage = replace(algorithm.advantage, shares=shares)
    memory: dict = {}
    columns, amortised = advantage(it.scores, memory), advantage(it.scores, memory)
    assert columns.shape[1] == 3 and amortised.shape[1] == 1
    assert bool((columns.abs() < algorithm.objective.max_advantage).all())  # else its clip bends the loss
    it.advantage = columns
    each = gradients(replace(algorithm, combination=FixedShares(shares)), it)[0]
    it.advantage = amortised
    once = gradients(algorithm, it)[0]
    torch.testing.assert_close(once, each, rtol=1e-3, atol=1e-5 * float(each.norm()))


def test_several_rewards_are_combined_every_few_iterations() -> None:
    """Iterations 0, 3, 6 of seven have all gradients; the shares follow what they found, and are kept with the run."""
    algorithm, policy, it = marble()
    memory: dict = {}
    shares = []
    for iteration in range(7):
        present = with_coefficients(algorithm, memory)
        it.advantage = present.advantage(it.scores, memory)
        metrics = improve(
            policy, Recorder(policy.parameters()), present, it.rollout, it.scores, it.advantage, UpdateSettings()
        )
        assert it.advantage.shape[1] == (3 if iteration % 3 == 0 else 1)
        assert (f"{SHARE}0" in metrics) == (iteration % 3 == 0)
        if iteration % 3 == 0:
            shares.append([metrics[f"{SHARE}{c}"] for c in (0, 1, 2)])
            assert sum(shares[-1]) == pytest.approx(1)
        update_coefficients(algorithm, memory, metrics, iteration + 1)
        if iteration == 3:  # as released: .7 of the first, .3 of the second
            wanted = [0.7 * first + 0.3 * second for first, second in zip(*shares, strict=True)]
            assert [memory["coefficients"][f"advantage.shares.{c}"] for c in (0, 1, 2)] == pytest.approx(wanted)
        disturb(policy, 0.1)
    present = with_coefficients(algorithm, memory).advantage.shares
    assert max(abs(now - before) for now, before in zip(present, (1 / 3,) * 3, strict=True)) > 0.01


def test_the_first_solution_is_taken_whole() -> None:
    algorithm, policy, it = marble()
    memory: dict = {}
    it.advantage = algorithm.advantage(it.scores, memory)
    metrics = improve(
        policy, Recorder(policy.parameters()), algorithm, it.rollout, it.scores, it.advantage, UpdateSettings()
    )
    update_coefficients(algorithm, memory, metrics, 1)
    shares = with_coefficients(algorithm, memory).advantage.shares
    assert shares == pytest.approx(tuple(metrics[f"{SHARE}{c}"] for c in (0, 1, 2)))


def test_as_many_rewards_as_there_are() -> None:
    algorithm, _, it = marble()
    with pytest.raises(IncompatibleError, match=r"algorithm\.rewards=2 gradients are combined, and there are 3"):
        replace(algorithm.advantage, shares=(0.5, 0.5))(it.scores, {})
    assert small("marble", rewards=1).advantage.shares == (1.0,)


def test_weights_by_gradients_are_those_of_the_weighted_reward() -> None:
    """drw_grad: with centred rewards, the weighted sum of gradients is the gradient of the weighted reward."""
    algorithm = small("drw_grad")
    policy = start(algorithm)
    it = roll(algorithm, policy)
    columns = it.advantage
    metrics = improve(
        policy, Recorder(policy.parameters()), algorithm, it.rollout, it.scores, columns, UpdateSettings()
    )
    weights = torch.tensor([metrics[f"{WEIGHT}{c}"] for c in (0, 1)]).double()
    assert float(weights.sum()) == pytest.approx(1)
    found = gradients(algorithm, it)[0]
    it.advantage = GroupCentred(scale="none", clip=None)(replace(it.scores, weights=weights), {})
    scalar = gradients(replace(algorithm, combination=None), it)[0]
    torch.testing.assert_close(found, scalar, rtol=1e-3, atol=1e-6 * float(scalar.norm()))
    memory: dict = {}
    update_coefficients(algorithm, memory, metrics, 5)
    assert with_coefficients(algorithm, memory).combination.shares == pytest.approx(tuple(weights.tolist()))


# ------------------------------------------------------------------------------------------------------- controllers
def test_an_adaptive_kl_moves_towards_its_target() -> None:
    part = AdaptiveKL(target=2.0)
    kl = {"kl/reference": 2.0}
    assert part(0.5, kl, 1) == 0.5
    assert part(0.5, {"kl/reference": 2.2}, 1) == pytest.approx(0.5 * 1.01)
    assert (
        part(0.5, {"kl/reference": 9.0}, 1) == pytest.approx(0.5 * 1.02) and part(0.5, {"kl/reference": 0.0}, 1) == 0.49
    )
    with pytest.raises(IncompatibleError, match="kl/reference"):
        part(0.5, {}, 1)


def test_a_multiplier_rises_while_its_constraint_is_violated() -> None:
    part = Dual(target=0.1, metric="x", rate=2.0, most=0.5)
    assert [part(v, {"x": x}, 1) for v, x in ((0.1, 0.2), (0.1, 0.0), (0.4, 0.9))] == pytest.approx([0.3, 0.0, 0.5])


def test_a_stepwise_coefficient_and_a_smoothed_one() -> None:
    part = Stepwise("sampler.temperature", target=0.2, most=0.01)
    assert [part(v, {"entropy": h}, 1) for v, h in ((0.0, 0.1), (0.002, 0.3), (0.01, 0.1))] == pytest.approx(
        [0.005, 0, 0.01]
    )
    smooth = Smoothed("advantage.shares.0", "x", 0.7)
    assert smooth(0.5, {"x": 1.0}, 1) == 1.0 and smooth(0.5, {"x": 1.0}, 2) == pytest.approx(0.65)
    assert smooth(0.5, {}, 1) == 0.5


@pytest.mark.parametrize(
    ("make", "message"), [(lambda: AdaptiveKL(0.0), "target=0.0"), (lambda: Smoothed("a", "b", 1.0), "decay=1.0")]
)
def test_coefficients_that_mean_nothing_are_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_r2vpo_raises_its_multiplier_where_the_ratio_varies_too_much() -> None:
    algorithm = small("r2vpo", target=1e-6, rate=5.0)
    memory: dict = {}
    update_coefficients(algorithm, memory, {"ratio/variance": 0.01}, 1)
    assert with_coefficients(algorithm, memory).regularizers[0].weight == pytest.approx(0.04 + 5 * (0.01 - 1e-6))
    assert small("r2vpo").coefficients == ()


def test_more_channels_than_subsets_can_be_tried_for_are_refused() -> None:
    with pytest.raises(IncompatibleError, match="13 are too many"):
        shortest(torch.eye(13).double())
