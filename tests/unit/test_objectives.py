"""Losses per decision and their gradients, by hand from the formulas of the papers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from flowrl.estimators.tokens import TokenRows
from flowrl.parts.bounds import Sandwich, lower_bound, upper_bound
from flowrl.parts.objectives import (
    AsymmetricClip,
    Clipped,
    ClippedMean,
    ClippedWeight,
    ImplicitPair,
    LinearBound,
    ScoreFunction,
    sample_mean,
)
from flowrl.parts.preferences import Preference
from flowrl.parts.regularizers import KL, KLToOld, Prediction, RouterBalance, ValueLoss
from flowrl.types import Batch, IncompatibleError, Likelihood, Rows, ViewRows


def table(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def batch(
    advantage: Tensor, old: Tensor | Likelihood, probe: Rows | None = None, weight: Tensor | None = None
) -> Batch:
    old = Likelihood(old) if isinstance(old, Tensor) else old
    weight = torch.ones_like(advantage) if weight is None else weight
    return Batch(advantage, old, weight, torch.zeros(len(advantage), dtype=torch.long), probe or Rows())


def loss(objective, ratios: list[float], advantages: list[float], **extra: list[float]) -> list[float]:
    """Losses of one row of decisions with these ratios to the old policy, whose log-probability is -1."""
    live = Likelihood(table(ratios).log() - 1, {name: table(values) for name, values in extra.items()})
    return objective(live, batch(table(advantages), torch.full((1, len(ratios)), -1.0).double()))[0].tolist()


def slope(objective, ratio: float, advantage: float) -> float:
    """d loss / d log p of one decision."""
    logp = (table([ratio]).log() - 1).requires_grad_()
    value = objective(Likelihood(logp), batch(table([advantage]), table([-1.0])))
    return float(torch.autograd.grad(value.sum(), logp)[0])


def test_score_function() -> None:
    assert loss(ScoreFunction(), [1.0, math.e], [2.0, -3.0]) == pytest.approx([2, 0])  # -A log p at log p = -1 and 0
    assert slope(ScoreFunction(), 1.7, 2.0) == pytest.approx(-2)


def test_clipped_values() -> None:
    """max(-A rho, -A clip(rho, .9, 1.3)): the pessimistic one of both."""
    part = Clipped(low=0.1, high=0.3)
    ratios, advantages = [1.2, 1.5, 0.5, 1.5, 0.5], [1.0, 1.0, 1.0, -2.0, -2.0]
    assert loss(part, ratios, advantages) == pytest.approx([-1.2, -1.3, -0.5, 3.0, 1.8])
    assert part.clip_range == (0.1, 0.3)


def test_clipped_by_default_as_in_ppo() -> None:
    assert loss(Clipped(), [1.5, 0.5], [1.0, -1.0]) == pytest.approx([-1.2, 0.8])


def test_the_second_clip_is_for_bad_decisions_alone() -> None:
    part = Clipped(0.2, 0.2, dual=3.0)
    assert loss(part, [5.0, 2.0, 5.0], [-1.0, -1.0, 1.0]) == pytest.approx([3, 2, -1.2])
    with pytest.raises(ValueError, match=r"dual=1.0 bounds a ratio from above"):
        Clipped(dual=1.0)


@pytest.mark.parametrize("part", [Clipped, ClippedMean])
def test_a_clip_range_may_be_empty_but_not_negative(part) -> None:
    part(low=0.0, high=0.0)
    for low, high in ((-0.1, 0.2), (0.2, -0.1)):
        with pytest.raises(ValueError, match="say how far a ratio may go"):
            part(low=low, high=high)


def test_one_ratio_per_sample() -> None:
    """exp(mean of the log-ratios that count): here exp((.2 + .1) / 2), clipped at 1.05; the same for each decision."""
    part = ClippedMean()  # low and high .05
    live = Likelihood(table([-0.8, -1.9, 3.0]))
    old = table([-1.0, -2.0, -2.0])
    one = batch(torch.ones(1, 3).double(), old, weight=table([0.5, 0.5, 0]))
    assert float(part.log_ratio(live, one)[0]) == pytest.approx(0.15)
    assert part(live, one)[0].tolist() == pytest.approx([-1.05] * 3)
    bad = batch(-torch.ones(1, 3).double(), old, weight=table([0.5, 0.5, 0]))
    assert part(live, bad)[0].tolist() == pytest.approx([math.exp(0.15)] * 3)
    low = part(Likelihood(table([-1.2, -2.1, 3.0])), bad)
    assert low[0].tolist() == pytest.approx([0.95] * 3)


def views(per: str, targets: Tensor, weights: Tensor, content: Tensor) -> ViewRows:
    nothing = torch.zeros_like(targets, dtype=torch.long)
    seeds = torch.zeros(targets.shape[:2], dtype=torch.long)
    return ViewRows(nothing, nothing, targets, weights, content, seeds, per, 1.0)  # type: ignore[arg-type]


def of_lengths(per: str, lengths: list[int], draws: int = 2, width: int = 4) -> ViewRows:
    """Views that ask for all of completions of these lengths."""
    content = torch.arange(width) < torch.tensor(lengths)[:, None]
    targets = content[:, None].expand(-1, draws, -1)
    return views(per, targets, targets.double(), content)


def test_a_mean_of_views_may_be_divided_by_the_length() -> None:
    part = ClippedMean(by_length=True)
    probe = of_lengths("view", [4, 2])
    live, one = table([0.3, 0.5], [0.3, 0.5]), batch(torch.ones(2, 2).double(), torch.zeros(2, 2).double(), probe)
    assert part.log_ratio(Likelihood(live), one).tolist() == pytest.approx([0.1, 0.2])
    for wrong in (Rows(), of_lengths("token", [4, 2])):
        with pytest.raises(IncompatibleError, match=r"set estimator\.per=view"):
            part.log_ratio(Likelihood(live), batch(torch.ones(2, 2).double(), torch.zeros(2, 2).double(), wrong))


def test_the_ratio_of_cispo_only_weights_the_score() -> None:
    """-sg(min(rho, 1 + 4)) A log p, with log p = log rho - 1."""
    expected = [-2 * (math.log(2) - 1), -5 * (math.log(8) - 1)]
    assert loss(ClippedWeight(), [2.0, 8.0], [1.0, 1.0]) == pytest.approx(expected)
    assert slope(ClippedWeight(), 2.0, 3.0) == pytest.approx(-6)
    assert slope(ClippedWeight(), 8.0, -1.0) == pytest.approx(5)  # no token loses its gradient
    assert slope(ClippedWeight(high=0.5), 8.0, 1.0) == pytest.approx(-1.5)


def test_a_bad_sample_is_drawn_back_to_the_edge_of_the_clip() -> None:
    """-(rho A - |A| (rho - 1)^2 / (2 clip)) at A = -2, rho = 1.03 and .9; PPO's clip for A > 0."""
    expected = [2.06 + 2 * 0.0009 / 0.1, 1.8 + 2 * 0.01 / 0.1, -1.05]
    assert loss(AsymmetricClip(), [1.03, 0.9, 1.2], [-2.0, -2.0, 1.0]) == pytest.approx(expected)
    # d loss / d log p = rho (-A + |A| (rho - 1) / clip): -A at ratio 1, 0 at 1 - clip, beyond it pulls back
    assert slope(AsymmetricClip(0.1), 1.0, -2.0) == pytest.approx(2)
    assert slope(AsymmetricClip(0.1), 0.9, -2.0) == pytest.approx(0, abs=1e-12)
    assert slope(AsymmetricClip(0.1), 0.8, -2.0) == pytest.approx(0.8 * (2 - 4))
    assert AsymmetricClip(0.1).clip_range == (0.1, 0.1)
    with pytest.raises(ValueError, match="clip=0"):
        AsymmetricClip(clip=0)


def test_the_square_of_a_bad_sample_stays_finite() -> None:
    top = math.exp(10)
    far = loss(AsymmetricClip(0.05), [math.exp(12), math.exp(9)], [-1.0, -1.0])
    assert far[0] == pytest.approx(top + (top - 1) ** 2 / 0.1)
    near = math.exp(9)
    assert far[1] == pytest.approx(near + (near - 1) ** 2 / 0.1)
    assert loss(AsymmetricClip(0.05, most=2.0), [math.exp(3)], [-1.0]) == pytest.approx(
        [math.exp(2) + (math.exp(2) - 1) ** 2 / 0.1]
    )


def test_the_linear_bound_of_bgpo() -> None:
    """-A (1 + d) for good ones, -A exp(d) for bad ones, d at most 10."""
    got = loss(LinearBound(), [math.exp(0.3), math.exp(0.3), math.exp(12)], [2.0, -2.0, -1.0])
    assert got == pytest.approx([-2.6, 2 * math.exp(0.3), math.exp(10)])
    assert loss(LinearBound(), [math.exp(12)], [0.5]) == pytest.approx([-6.5])  # no cap on what is linear
    assert LinearBound().clip_range is None


def test_the_implicit_pair_of_nft() -> None:
    """r = clip(A / 5, -1, 1) / 2 + 1/2 and -5 / b (r L+ + (1 - r) L-), for L+ = -1 and L- = -3."""
    plain = loss(ImplicitPair(), [1.0] * 4, [2.5, 0.0, 10.0, -10.0], logp_negative=[-3.0] * 4)
    assert plain == pytest.approx([7.5, 10, 5, 15])
    halved = loss(ImplicitPair(strength=2.0), [1.0], [2.5], logp_negative=[-3.0])
    assert halved == pytest.approx([3.75])
    assert not ImplicitPair().skips_zero_advantage  # the pull to the old policy remains


def test_mean_over_the_decisions_that_count() -> None:
    mask = torch.tensor([[True, True, False], [False, True, False], [False, False, False]])
    assert sample_mean(table([1, 3, 100], [7, 5, 7], [7, 7, 7]), mask).tolist() == [2, 5, 0]


# bounds of masked language models, from cells


def test_a_lower_bound_is_the_mean_over_views_of_weighted_sums() -> None:
    weights = table([2, 0, 1], [0, 3, 1])[None]
    probe = views("cell", weights > 0, weights, torch.ones(1, 3).bool())
    # (2 (-1) + 1 (-3) + 3 (-.5) + 1 (-.2)) / 2
    assert float(lower_bound(table([-1, -9, -3, -9, -0.5, -0.2]), probe)) == pytest.approx(-3.35)


def test_an_upper_bound_by_hand() -> None:
    """1/b log((w p^b + w' p'^b) / 2) of each position asked for, times 3 / 2: one position of three is never asked."""
    b = 1.5
    targets = torch.tensor([[[True, True, False], [True, False, False]]])
    probe = views("cell", targets, torch.where(targets, 2.0, 0.0).double(), torch.ones(1, 3).bool())
    p = table([0.5, 0.25, 1.0, 0.8, 1.0, 1.0])
    first = math.log((2 * 0.5**b + 2 * 0.8**b) / 2) / b
    second = math.log(2 * 0.25**b / 2) / b
    logp = p.log().requires_grad_()
    found = upper_bound(logp, probe, b)
    assert found.tolist() == pytest.approx([(first + second) * 3 / 2])
    # the gradient is each view's share of the mean, and none where nothing is asked
    share = 0.5**b / (0.5**b + 0.8**b)
    got = torch.autograd.grad(found.sum(), logp)[0][0].tolist()
    assert got == pytest.approx([1.5 * share, 1.5, 0, 1.5 * (1 - share), 0, 0])


def test_an_upper_bound_of_nothing_is_zero() -> None:
    nothing = torch.zeros(1, 2, 3)
    probe = views("cell", nothing.bool(), nothing.double(), torch.ones(1, 3).bool())
    assert float(upper_bound(table([-1.0] * 6), probe, 1.5)) == 0


def test_the_sandwich_presses_on_the_mixture_for_bad_completions() -> None:
    probe = of_lengths("cell", [4, 2, 2])
    probe = views("cell", probe.targets, 2 * probe.weights, probe.content)
    logp = torch.full((3, 8), -1.0, dtype=torch.float64)
    low = [-8.0, -4.0, -4.0]  # two views alike: 2 (-1) at each position
    high = (math.log(2) / 1.5 - 1) * 2  # per position log 2 / b - 1, over two positions
    got = Sandwich()(Likelihood(logp), batch(table([2] * 8, [-3] * 8, [0] * 8), logp, probe))
    assert got[0].tolist() == pytest.approx([-2 * low[0] / 4] * 8)
    assert got[1].tolist() == pytest.approx([3 * (0.5 * high + 0.5 * low[1]) / 2] * 8)
    assert got[2].tolist() == [0] * 8
    quarter = Sandwich(omega=0.25)(Likelihood(logp), batch(table([2] * 8, [-3] * 8, [0] * 8), logp, probe))
    assert quarter[1].tolist() == pytest.approx([3 * (0.25 * high + 0.75 * low[1]) / 2] * 8)
    plain = Sandwich(omega=0.0)(Likelihood(logp), batch(table([2] * 8, [-3] * 8, [0] * 8), logp, probe))
    assert plain[1].tolist() == pytest.approx([3 * low[1] / 2] * 8)


def test_the_sandwich_has_its_ranges() -> None:
    Sandwich(omega=1.0)
    for omega in (-0.1, 1.1):
        with pytest.raises(ValueError, match="should be a share"):
            Sandwich(omega=omega)
    with pytest.raises(ValueError, match="power=0"):
        Sandwich(power=0)
    for probe in (Rows(), of_lengths("view", [2])):
        with pytest.raises(IncompatibleError, match=r"set estimator\.per=cell"):
            Sandwich()(Likelihood(table([-1, -1])), batch(table([1, 1]), table([-1, -1]), probe))


def test_a_preferred_pair_by_hand() -> None:
    """-log sigmoid(.2 (s_w - s_l)) - .05 B_w / length, s the mean over views of log p / p_ref; twice, at the winner."""
    probe = of_lengths("view", [4, 4, 4, 2])
    logp = table([-1, -3], [-2, -2], [-4, -6], [-3, -5]).requires_grad_()
    ratio = table([1, 3], [0, 0], [-1, 1], [2, 4])
    advantage = table([1, 1], [-1, -1], [-1, -1], [1, 1])
    one = Batch(advantage, Likelihood(logp), torch.ones(4, 2), torch.tensor([0, 0, 1, 1]), probe)
    got = Preference(beta=0.2, sft=0.05)(Likelihood(logp, {"log_ratio/reference": ratio}), one)
    # group 0: s_w - s_l = 2 - 0, B_w = -2, length 4; group 1: 3 - 0, B_w = -4, length 2
    first = 2 * (math.log1p(math.exp(-0.4)) + 0.05 * 2 / 4)
    second = 2 * (math.log1p(math.exp(-0.6)) + 0.05 * 4 / 2)
    expected = [first, 0, 0, second]
    assert got.tolist() == [pytest.approx([value] * 2) for value in expected]
    slope = torch.autograd.grad(got[:, 0].sum(), logp)[0]
    # d / d B_w = -2 (.2 sigmoid(-.4) + .05 / 4), d / d B_l = 2 (.2 sigmoid(-.4)); half to each view
    push = 0.2 / (1 + math.exp(0.4))
    assert slope[0].tolist() == pytest.approx([-(push + 0.05 / 4)] * 2)
    assert slope[1].tolist() == pytest.approx([push] * 2)


def test_a_sample_of_no_advantage_is_in_no_preferred_pair() -> None:
    probe = of_lengths("view", [4, 4, 4])
    logp, ratio = table([-1, -3], [-2, -2], [-5, -5]), table([1, 3], [0, 0], [9, 9])
    one = Batch(table([1, 1], [-1, -1], [0, 0]), Likelihood(logp), torch.ones(3, 2), torch.zeros(3).long(), probe)
    got = Preference(beta=0.2, sft=0.05)(Likelihood(logp, {"log_ratio/reference": ratio}), one)
    assert got[0].tolist() == pytest.approx([2 * (math.log1p(math.exp(-0.4)) + 0.05 * 2 / 4)] * 2)
    assert got[1:].tolist() == [[0, 0]] * 2


# penalties


def test_penalties_read_what_the_estimator_measured() -> None:
    extra = {"kl/reference": table([1.0]), "prediction/old": table([2.0]), "router/balance": table([3.0])}
    live, one = Likelihood(table([0.0]), extra), batch(table([1.0]), table([0.0]))
    assert float(KL()(live, one)) == 1
    assert float(Prediction(to="old")(live, one)) == 2
    assert float(RouterBalance()(live, one)) == 3


@pytest.mark.parametrize("part", [KL, KLToOld, RouterBalance])
def test_a_penalty_is_not_rewarded(part) -> None:
    part(weight=0.0)
    with pytest.raises(ValueError, match="would be rewarded"):
        part(weight=-0.1)


def test_the_divergence_from_the_old_policy() -> None:
    """exp(-d) - 1 + d, never negative; summed: times the decisions that its network row answers."""
    live, old = table([0.5, -0.5, 0.0, 0.2]), torch.zeros(1, 4).double()
    each = [math.exp(-0.5) - 0.5, math.exp(0.5) - 1.5, 0, math.exp(-0.2) - 0.8]
    mask = torch.tensor([[True, True, True, False]])
    rows = TokenRows(torch.zeros(1, 4).long(), mask, None, 1.0)
    assert KLToOld()(Likelihood(live), batch(torch.ones(1, 4), old, rows))[0].tolist() == pytest.approx(each)
    summed = KLToOld(summed=True)(Likelihood(live), batch(torch.ones(1, 4), old, rows))
    assert summed[0].tolist() == pytest.approx([3 * value for value in each])
    with pytest.raises(IncompatibleError, match="counts decisions"):
        KLToOld(summed=True)(Likelihood(live), batch(torch.ones(1, 4), old, of_lengths("view", [4])))


def test_the_error_of_the_critic_is_clipped_around_its_old_answer() -> None:
    """max((V - R)^2, (clip(V, V_old +- .2) - R)^2) / 2 at V_old = 1: the worse one of both."""
    value, old, returns = table([1.1, 2.0, 0.0, 2.0]), table([1.0] * 4), table([2.0, 2.0, 2.0, 0.0])
    one = batch(torch.ones(1, 4), Likelihood(torch.zeros(1, 4), {"value": old, "returns": returns}))
    got = ValueLoss()(Likelihood(torch.zeros(1, 4), {"value": value}), one)
    # inside the clip; the clipped 1.2 is further from 2 than 2; .0 is further than .8; 2 is further from 0 than 1.2
    assert got[0].tolist() == pytest.approx([0.81 / 2, 0.64 / 2, 4 / 2, 4 / 2])
    low = ValueLoss(clip=0.5)(Likelihood(torch.zeros(1, 1), {"value": table([0.0])}), batch(
        torch.ones(1, 1), Likelihood(torch.zeros(1, 1), {"value": table([1.0]), "returns": table([-1.0])})
    ))  # fmt: skip
    assert float(low) == pytest.approx(1.5**2 / 2)
