"""Likelihoods of steps and of matching errors by hand, and the times they look at."""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from flowrl.estimators.matching import ContrastedMatching, Matching, MatchingRows
from flowrl.estimators.times import GridTimes, LogitNormalTimes, UniformTimes, shifted
from flowrl.estimators.transitions import TransitionRows, Transitions
from flowrl.math.random import seeds
from flowrl.models.tiny_flow import TinyCondition
from flowrl.models.weights import PointerWeights
from flowrl.types import IncompatibleError, Likelihood, Rollout, Steps
from tests.contract.toys import matching_rows, rollout_of

GRID = torch.linspace(1, 0, 11).double()


class Constant:
    """A velocity of ``theta`` everywhere; its reference is 0."""

    latent_shape = (2,)
    device = torch.device("cpu")

    def __init__(self, *theta: float) -> None:
        self.theta = nn.Parameter(torch.zeros(2, dtype=torch.float64))
        self.weights = PointerWeights({"theta": self.theta})
        self.weights.update_ema("old", 0.0)
        self.asked: list[tuple] = []
        with torch.no_grad():
            self.theta += torch.tensor(theta or (0.0, 0.0), dtype=torch.float64)

    @contextmanager
    def using(self, name: str):
        with self.weights.using(name):
            yield self

    def snap(self, t: Tensor) -> Tensor:
        return t

    def velocity(self, x: Tensor, t: Tensor, condition, *, guidance=None, cfg_grad="cond") -> Tensor:
        self.asked.append((self.weights.active, t.tolist(), condition.index.tolist(), guidance, cfg_grad))
        return self.theta.expand(x.shape)


@dataclass(frozen=True)
class Fixed:
    """mean = x + b v, one s per step."""

    b: float
    s: float

    def coefficients(self, t: Tensor, t_next: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return torch.ones_like(t), torch.full_like(t, self.b), torch.full_like(t, self.s)


def condition(count: int) -> TinyCondition:
    return TinyCondition(torch.arange(count))


def table(*rows: list) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


# recorded steps: from 0 to (.1, .3) and on to (.1, -.1), with mean x - .5 v and s = .25


def steps(mean: Tensor | None = None) -> Rollout:
    states = table([[0.0, 0.0], [0.1, 0.3], [0.1, -0.1]])
    squared = table([0.1 / 0.0625, 0.16 / 0.0625])  # under the sampling policy, whose velocity was 0
    t, t_next = table([0.8, 0.5]), table([0.5, 0.1])
    trace = Steps(states, t, t_next, squared, Fixed(-0.5, 0.25), 3.0, mean)
    return rollout_of(condition(1), torch.zeros(1, 2), trace)


def replay(estimator: Transitions, policy: Constant, mean: Tensor | None = None) -> tuple[Likelihood, Likelihood]:
    rollout = steps(mean)
    rows = estimator.probe(rollout, policy, seeds(0, "s", count=1))  # type: ignore[arg-type]
    old = estimator.recorded_logp(rollout, rows)
    return estimator(policy, rows, rollout.condition, ("reference",)), old  # type: ignore[arg-type]


POLICY = (0.2, -0.4)  # its means are x + (-.1, .2), so x' - mean is (.2, .1) and (.1, -.6)


@pytest.mark.parametrize(("reduction", "factor"), [("sum", 1.0), ("mean", 0.5), ("sqrt", math.sqrt(0.5))])
def test_the_density_of_a_step(reduction, factor: float) -> None:
    live, old = replay(Transitions(reduction=reduction), Constant(*POLICY))
    constant = -2 * math.log(0.25) - math.log(2 * math.pi)  # of two elements
    expected = [factor * (-0.5 * error / 0.0625 + constant) for error in (0.05, 0.37)]
    assert live.logp[0].tolist() == pytest.approx(expected)
    assert old.logp[0].tolist() == pytest.approx([factor * (-0.5 * e / 0.0625 + constant) for e in (0.1, 0.16)])


def test_the_squared_distance_of_a_step() -> None:
    live, old = replay(Transitions(measure="unit"), Constant(*POLICY))
    assert live.logp[0].tolist() == pytest.approx([-0.05 / 2, -0.37 / 2])
    assert old.logp[0].tolist() == pytest.approx([-0.1 / 2, -0.16 / 2])


def test_the_normalised_log_ratio_of_a_step() -> None:
    """z . (mean - old mean) / 2 with z = (x' - old mean) / s, the old mean x and x + .1."""
    estimator = Transitions(measure="noise")
    live, old = replay(estimator, Constant(*POLICY), table([[0.0, 0.0], [0.2, 0.4]]))
    first = (0.1 * -0.1 + 0.3 * 0.2) / 0.25 / 2
    second = (-0.1 * -0.2 + -0.5 * 0.1) / 0.25 / 2
    assert live.logp[0].tolist() == pytest.approx([first, second])
    assert old.logp.tolist() == [[0, 0]]
    with pytest.raises(IncompatibleError, match=r"sampler\.record_mean=true"):
        replay(estimator, Constant(*POLICY))


def test_divergences_of_two_kernels() -> None:
    """The reference's velocity is 0, so the means differ by (-.1, .2): squares .05."""
    found = {kl: replay(Transitions(kl=kl), Constant(*POLICY))[0].extra for kl in ("exact", "per_time", "shift")}  # type: ignore[arg-type]
    exact = 0.05 / (2 * 0.0625) / 2
    assert found["exact"]["kl/reference"][0].tolist() == pytest.approx([exact, exact])
    assert found["per_time"]["kl/reference"][0].tolist() == pytest.approx([0.3 * exact, 0.4 * exact])
    assert found["shift"]["kl/reference"][0].tolist() == pytest.approx([0.025, 0.025])
    assert found["shift"]["prediction/reference"][0].tolist() == pytest.approx([0.1, 0.1])  # of the velocity itself
    assert Transitions().kl == "per_time" and Transitions().reduction == "mean"  # Flow-GRPO's code


def test_steps_are_replayed_as_they_were_made() -> None:
    policy = Constant(*POLICY)
    replay(Transitions(), policy)
    reference, live = policy.asked
    assert (
        reference == ("reference", [0.8, 0.5], [0, 0], 3.0, "both") and live[0] == "live" and live[1:] == reference[1:]
    )


def test_a_share_of_the_steps() -> None:
    assert Transitions().decisions(10) == (10, 10) and Transitions(fraction=0.6).decisions(10) == (6, 6)
    assert Transitions(fraction=0.01).decisions(10) == (1, 1) and Transitions(fraction=2.0).decisions(10) == (10, 10)
    with pytest.raises(IncompatibleError, match="give it a window"):
        Transitions().decisions(0)
    rollout, policy = steps(), Constant()
    half = [Transitions(fraction=0.5).probe(rollout, policy, torch.tensor([seed])) for seed in range(40)]  # type: ignore[arg-type]
    assert all(isinstance(rows, TransitionRows) and rows.shape == (1, 1) for rows in half)
    taken = [float(rows.t[0, 0]) for rows in half]
    assert 8 < taken.count(0.8) < 32 and taken.count(0.8) + taken.count(0.5) == 40
    least = Transitions(fraction=0.01).probe(rollout, policy, torch.tensor([0]))  # type: ignore[arg-type]
    assert least.shape == (1, 1)
    with pytest.raises(IncompatibleError, match="give the sampler a window"):
        Transitions().probe(rollout_of(condition(1), torch.zeros(1, 2)), policy, torch.tensor([0]))  # type: ignore[arg-type]


def test_which_weights_vanish() -> None:
    assert Transitions(measure="unit").weight_vanishes and not Transitions().weight_vanishes
    vanishing = {w for w in ("uniform", "t", "t2", "noise", "huber", "ghuber") if Matching(weight=w).weight_vanishes}  # type: ignore[arg-type]
    assert vanishing == {"t", "t2", "huber", "ghuber"} and ContrastedMatching().weight_vanishes


# matching errors: clean (1, 0), noise (0, 2), so the right velocity is (-1, 2)


def rows_at(*times: float) -> MatchingRows:
    count = len(times)
    clean, noise = (table([value]).expand(1, count, 2) for value in ([1.0, 0.0], [0.0, 2.0]))
    return matching_rows(clean, noise, table(list(times)))


def test_the_error_of_a_velocity_and_its_weights() -> None:
    """v = (0, 1) errs by (1, -1): q = 1. With v = (1, 2) q = 2; e = 1e-10 hardly matters here."""
    t, q = 0.4, 2.0
    expected = {
        "uniform": q, "t": t * q, "t2": t**2 * q, "noise": (1 - t) ** 2 * q,
        "huber": t * math.sqrt(q), "ghuber": t / 0.25 * q**0.25,
    }  # fmt: skip
    small = {"huber": t * 1e-5, "ghuber": t / 0.25 * 1e-10**0.25}
    for weight, value in expected.items():
        found = Matching(weight=weight)(Constant(1.0, 2.0), rows_at(t), condition(1))  # type: ignore[arg-type]
        assert found.logp.tolist() == [[pytest.approx(-value + small.get(weight, 0.0), rel=1e-9)]], weight
    two = Matching(weight="t")(Constant(0.0, 1.0), rows_at(0.4, 0.9), condition(1))  # type: ignore[arg-type]
    assert two.logp.tolist() == [pytest.approx([-0.4, -0.9])]


def test_small_errors_are_smoothed() -> None:
    """At q = 3e-10, four times e: t (2 - 1) 1e-5; at q = 15e-10, 16 times e: (t / p) (2 - 1) e^p with p = 1/4."""
    q, t = table([3e-10, 15e-10])[0], table([0.5, 0.5])[0]
    assert float(Matching(weight="huber").link(q, t)[0]) == pytest.approx(0.5e-5)
    assert float(Matching(weight="ghuber").link(q, t)[1]) == pytest.approx(2 * 1e-10**0.25)
    half = Matching(weight="ghuber", power=0.5).link(q, t)
    assert float(half[1]) == pytest.approx(0.5 / 0.5 * 3e-5)


def test_predictions_are_compared_with_the_reference() -> None:
    policy = Constant(1.0, 2.0)
    found = Matching(guidance=None, cfg_grad="both")(policy, rows_at(0.4, 0.6), condition(1), ("reference",))  # type: ignore[arg-type]
    assert found.extra["prediction/reference"].tolist() == [[2.5, 2.5]]
    assert policy.asked == [
        ("reference", [0.4, 0.6], [0, 0], None, "cond"), ("live", [0.4, 0.6], [0, 0], None, "both"),
    ]  # fmt: skip
    Matching()(policy, rows_at(0.4), condition(1))  # type: ignore[arg-type]
    assert policy.asked[-1][3:] == (1.0, "cond")  # the conditional branch, as the papers train it


def test_the_pair_of_policies_around_the_old_one() -> None:
    """v_old = 0, v = (1, 2), t = .5: x0+ - x0 = t ((-1, 2) - v) = (-1, 0) and x0- - x0 = t ((-1, 2) + v) = (0, 2)."""
    found = ContrastedMatching(adaptive=False)(Constant(1.0, 2.0), rows_at(0.5), condition(1))  # type: ignore[arg-type]
    assert found.logp.tolist() == [[-0.5]] and found.extra["logp_negative"].tolist() == [[-2]]
    assert found.extra["prediction/old"].tolist() == [[2.5]]
    adaptive = ContrastedMatching()(Constant(1.0, 2.0), rows_at(0.5), condition(1))  # type: ignore[arg-type]
    assert adaptive.logp.tolist() == [[-1]] and adaptive.extra["logp_negative"].tolist() == [[-2]]  # over .5 and 1
    half = ContrastedMatching(adaptive=False, strength=0.5)(Constant(1.0, 2.0), rows_at(0.5), condition(1))  # type: ignore[arg-type]
    # t ((-1, 2) -+ v / 2): (-.75, .5) and (-.25, 1.5)
    assert half.logp.tolist() == [[pytest.approx(-(0.5625 + 0.25) / 2)]]
    assert half.extra["logp_negative"].tolist() == [[pytest.approx(-(0.0625 + 2.25) / 2)]]
    right = ContrastedMatching()(Constant(-1.0, 2.0 + 4e-6), rows_at(0.5), condition(1))  # type: ignore[arg-type]
    assert right.logp.item() == pytest.approx(-(2e-6**2) / 2 / 1e-5, rel=1e-3)  # the divisor is at least 1e-5
    policy = Constant(1.0, 2.0)
    ContrastedMatching(guidance=2.0)(policy, rows_at(0.5), condition(1))  # type: ignore[arg-type]
    assert [asked[0] for asked in policy.asked] == ["old", "live"] and [asked[3] for asked in policy.asked] == [
        2.0,
        2.0,
    ]
    assert ContrastedMatching().references == ("old",) and ContrastedMatching().decisions(0) == (9, 9)
    both = ContrastedMatching()(Constant(1.0, 2.0), rows_at(0.5), condition(1), ("reference", "old"))  # type: ignore[arg-type]
    assert set(both.extra) == {"logp_negative", "prediction/old", "prediction/reference"}


def test_what_a_matching_estimator_draws() -> None:
    final = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    rollout = rollout_of(condition(2), final, times=GRID)
    rows = Matching(draws=3).probe(rollout, Constant(), seeds(0, "m", count=2))  # type: ignore[arg-type]
    assert rows.t.shape == (2, 3) and rows.noise.shape == (2, 3, 2)
    assert bool((rows.clean == final[:, None]).all()) and len(rows.noise.unique()) == 12
    assert Matching(draws=3).decisions(0) == (3, 3) and Matching().draws == 4
    with pytest.raises(IncompatibleError, match="time grid"):
        Matching().probe(rollout_of(condition(2), final), Constant(), seeds(0, "m", count=2))  # type: ignore[arg-type]


# times


def test_which_times_of_a_grid_may_be_drawn() -> None:
    def usable(**options) -> list[float]:
        return [round(10 * t) for t in GridTimes(**options).usable(GRID).tolist()]

    assert usable() == [10, 9, 8, 7, 6, 5, 4, 3, 2]  # the first int(10 .99)
    assert usable(fraction=1.0) == [10, 9, 8, 7, 6, 5, 4, 3, 2, 1]  # the 0 at the end is no time to look at
    assert usable(fraction=0.3, skip=1) == [9, 8] and usable(fraction=0.3, skip=5) == [5]  # one at least
    assert usable(fraction=1.0, least=0.6 - 1e-9) == [10, 9, 8, 7, 6]
    exact = torch.tensor([1.0, 0.5, 0.25, 0.0]).double()
    assert GridTimes(fraction=1.0, least=0.5).usable(exact).tolist() == [1, 0.5]  # the limit itself may be drawn
    assert GridTimes(fraction=1.0).share_below(0.5, exact) == pytest.approx(1 / 3)
    assert GridTimes(fraction=1.0).share_below(0.51, exact) == pytest.approx(2 / 3)


def test_times_are_distinct_while_there_are_enough() -> None:
    keys = seeds(1, "t", count=200)
    times = GridTimes(fraction=0.4)(6, GRID, keys)  # four times for six draws
    assert times.shape == (200, 6)
    assert torch.allclose(times[:, :4].sort(dim=1).values, torch.tensor([0.7, 0.8, 0.9, 1.0]).double())
    assert bool((times[:, 4] != times[:, 5]).all())
    assert len(times[:, 0].unique()) == 4
    assert all(len(set(row)) == 4 for row in GridTimes(fraction=0.4)(4, GRID, keys).tolist())


def test_strata_are_the_parts_between_evenly_spaced_bounds() -> None:
    """Nine times in four parts: indices 0-1, 2-3, 4-5 and 6-8. After one that is skipped the bounds are those of 1 to
    10: indices 1-2, 3-4, 5-6 and 7-9 of the whole."""
    keys = seeds(1, "t", count=400)
    times = (10 * GridTimes(stratified=True)(4, GRID, keys)).round()
    assert [sorted(column.unique().tolist()) for column in times.T] == [[9, 10], [7, 8], [5, 6], [2, 3, 4]]
    times = (10 * GridTimes(fraction=1.0, stratified=True, skip=1)(4, GRID, keys)).round()
    assert [sorted(column.unique().tolist()) for column in times.T] == [[8, 9], [6, 7], [4, 5], [1, 2, 3]]
    more = (10 * GridTimes(fraction=0.2, stratified=True)(4, GRID, keys)).round()  # of two times, one for two parts
    assert [sorted(column.unique().tolist()) for column in more.T] == [[10], [10], [9], [9]]


def test_uniform_times_are_stratified_and_shifted() -> None:
    keys = seeds(1, "t", count=500)
    times = UniformTimes(0.2, 0.6)(4, GRID, keys)
    for part in range(4):
        low = 0.2 + 0.1 * part
        assert (
            low <= float(times[:, part].min()) < low + 0.005 and low + 0.095 < float(times[:, part].max()) <= low + 0.1
        )
    assert torch.allclose(UniformTimes(0.2, 0.6, 3.0)(4, GRID, keys), 3 * times / (1 + 2 * times))
    plain = UniformTimes()(1, GRID, keys)
    assert (
        float(plain.min()) < 0.01 and float(plain.max()) > 0.99 and float(plain.mean()) == pytest.approx(0.5, abs=0.03)
    )


def test_shares_of_uniform_times() -> None:
    assert UniformTimes(0.2, 0.6).share_below(0.3, GRID) == pytest.approx(0.25)
    assert UniformTimes(0.2, 0.6).share_below(0.1, GRID) == 0 and UniformTimes(0.2, 0.6).share_below(0.7, GRID) == 1
    assert UniformTimes(0.0, 1.0, 3.0).share_below(0.75, GRID) == pytest.approx(0.5)  # 3/4 is where 1/2 is moved to
    assert UniformTimes(0.5, 0.5).share_below(0.6, GRID) == 1 and UniformTimes(0.5, 0.5).share_below(0.4, GRID) == 0


def test_logit_normal_times() -> None:
    keys = seeds(1, "t", count=4000)
    times = LogitNormalTimes(mean=1.0, std=0.5)(1, GRID, keys)
    logit = (times / (1 - times)).log()
    assert float(logit.mean()) == pytest.approx(1, abs=0.03) and float(logit.std()) == pytest.approx(0.5, abs=0.02)
    moved = LogitNormalTimes(mean=1.0, std=0.5, shift=3.0)(1, GRID, keys)
    assert torch.allclose(moved, 3 * times / (1 + 2 * times))
    low = LogitNormalTimes(mean=-8.0)(1, GRID, keys)
    assert float(low.min()) == 0.01 and float((low == 0.01).double().mean()) > 0.9
    # SD3's density by default: mean 0, std 1
    plain = LogitNormalTimes()(1, GRID, keys)
    assert float((plain < 0.5).double().mean()) == pytest.approx(0.5, abs=0.03)
    assert float((plain < 1 / (1 + math.e)).double().mean()) == pytest.approx(0.1587, abs=0.02)


def test_shares_of_logit_normal_times() -> None:
    assert LogitNormalTimes().share_below(1 / (1 + math.e), GRID) == pytest.approx(0.158655, abs=1e-6)
    assert LogitNormalTimes(mean=-1.0, std=2.0).share_below(1 / (1 + math.exp(3)), GRID) == pytest.approx(
        0.158655, abs=1e-6
    )
    assert LogitNormalTimes(shift=3.0).share_below(0.75, GRID) == pytest.approx(0.5)
    assert LogitNormalTimes(low=0.3).share_below(0.3, GRID) == 0  # the lower tail lies at .3 itself
    assert LogitNormalTimes(low=0.3).share_below(0.31, GRID) > 0.2


def test_the_shift_of_times_has_its_inverse() -> None:
    assert shifted(0.25, 3.0) == pytest.approx(0.5) and shifted(0.5, 1 / 3) == pytest.approx(0.25)
    assert shifted(0.3, 1.0) == pytest.approx(0.3) and shifted(1.0, 7.0) == 1 and shifted(0.0, 7.0) == 0
