"""One optimisation pass on a line: ``log p = theta x`` for every decision, so that each gradient is a sum by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowrl.coupling import assemble
from flowrl.errors import UserError
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.objectives import Clipped, ClippedMean, ImplicitPair, ScoreFunction
from flowrl.parts.regularizers import KLToOld
from flowrl.samplers.flow import FlowSampler
from flowrl.step import UNSCALED, UpdateSettings, improve
from flowrl.types import Likelihood, Rollout, Rows, Scores, Table
from tests.contract.toys import rollout_of


@dataclass(frozen=True)
class LineRows(Rows):
    """One ``x`` per decision; a network row answers ``width`` of them."""

    x: Tensor
    width: int = 1
    mask: Tensor | None = None

    @property
    def unit(self) -> int:
        return self.width

    @property
    def counted(self) -> Tensor | None:
        return self.mask


@dataclass(frozen=True)
class Line:
    """Measures ``theta x``; notes how many rows each forward had."""

    x: Tensor
    width: int = 1
    mask: Tensor | None = None
    known: Tensor | None = None
    drift: Tensor | None = None
    """Added to the rows of a forward of several: an estimator whose answer depends on the micro-batch."""
    forwards: list[int] = field(default_factory=list)
    probes: list[list[int]] = field(default_factory=list)
    references: tuple[str, ...] = ()
    has_recorded_logp: bool = False

    def decisions(self, recorded: int) -> tuple[int, int]:
        return self.x.shape[1], self.x.shape[1] // self.width

    def probe(self, rollout: Rollout, policy: Any, seeds: Tensor) -> LineRows:
        self.probes.append(seeds.tolist())
        return LineRows(self.x, self.width, self.mask)

    def recorded_logp(self, rollout: Rollout, rows: LineRows) -> Likelihood | None:
        return None if self.known is None else Likelihood(self.known)

    def __call__(self, policy: Any, rows: LineRows, condition: Any, references: Sequence[str] = ()) -> Likelihood:
        self.forwards.append(len(rows.x))
        logp = policy.theta * rows.x
        if self.drift is not None and len(rows.x) > 1:
            logp = logp + self.drift[condition.numbers]
        return Likelihood(logp, {"logp_negative": -logp} if policy.pair else {})


@dataclass(frozen=True)
class Numbers:
    """A condition that knows which rows it is of."""

    numbers: Tensor

    def __len__(self) -> int:
        return len(self.numbers)

    def take(self, rows: Tensor) -> Numbers:
        return Numbers(self.numbers[rows])


class Slope:
    """A policy of one number, and a critic of another where asked for."""

    def __init__(self, theta: float = 0.0, pair: bool = False) -> None:
        self.theta = nn.Parameter(torch.tensor(theta, dtype=torch.float64))
        self.pair = pair

    def parameters(self) -> list[nn.Parameter]:
        return [self.theta]


class Noting(torch.optim.SGD):
    """SGD that notes the gradients it is given."""

    def __init__(self, parameters: list[nn.Parameter], lr: float = 0.0) -> None:
        super().__init__(parameters, lr=lr)
        self.seen: list[float] = []

    def step(self, closure=None):
        slope = self.param_groups[0]["params"][0].grad
        self.seen.append(0.0 if slope is None else float(slope))
        return super().step(closure)


def table(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def line(x: Tensor, objective: Any = None, **options: Any) -> Algorithm:
    """An algorithm on these ``x`` [N, D]; the sampler and the advantage are not used."""
    parts = {name: options.pop(name) for name in list(options) if name in Algorithm.__dataclass_fields__}
    return Algorithm(
        sampler=FlowSampler(), estimator=Line(x, **options), advantage=lambda scores, memory: scores.total,
        objective=objective or ScoreFunction(), **parts,
    )  # fmt: skip


def run(
    algorithm: Algorithm,
    advantage: list[float],
    theta: float = 0.0,
    *,
    lr: float = 0.0,
    valid: list[bool] | None = None,
    group: list[int] | None = None,
    policy: Slope | None = None,
    scaler: Any = UNSCALED,
    **settings: Any,
) -> tuple[list[float], dict[str, float], float]:
    """Gradients of every optimiser step, metrics, and theta afterwards."""
    count = len(advantage)
    policy = policy or Slope(theta)
    ids = torch.arange(count) if group is None else torch.tensor(group)
    ok = torch.ones(count).bool() if valid is None else torch.tensor(valid)
    rollout = rollout_of(Numbers(torch.arange(count)), torch.zeros(count, 1), group=ids)
    scores = Scores(table(advantage).T, torch.ones(1).double(), ("r",), ids, ids, ok)
    optimizer = Noting(policy.parameters(), lr)
    options = UpdateSettings(**{"max_grad_norm": 1e9, **settings})
    metrics = improve(policy, optimizer, algorithm, rollout, scores, table(advantage)[0], options, scaler)  # fmt: skip
    return optimizer.seen, metrics, policy.theta.item()


X = table([1, 2], [3, -1], [0.5, 4])
A = [1.0, -2.0, 0.5]
# the mean over three samples of the mean over two decisions of -A x
WHOLE = -(1 * 3 - 2 * 2 + 0.5 * 4.5) / 6


@pytest.mark.parametrize("micro_batch", [1, 2, 64])
def test_the_gradient_is_the_weighted_sum_over_decisions(micro_batch: int) -> None:
    gradients, metrics, theta = run(line(X), A, theta=0.25, lr=2.0, micro_batch=micro_batch)
    assert gradients == pytest.approx([WHOLE])
    assert theta == pytest.approx(0.25 - 2 * WHOLE)
    assert metrics["loss"] == pytest.approx(0.25 * WHOLE) and metrics["grad_norm"] == pytest.approx(abs(WHOLE))
    assert metrics["optimizer_steps"] == 1
    assert "scaler/scale" not in metrics


def test_samples_without_a_score_leave_the_mean() -> None:
    gradients, _, _ = run(line(X), A, valid=[True, False, True])
    assert gradients == pytest.approx([-(1 * 3 + 0.5 * 4.5) / 4])


def test_decisions_that_do_not_count_leave_the_mean() -> None:
    mask = torch.tensor([[True, True], [True, False], [False, True]])
    gradients, _, _ = run(line(X, mask=mask), A)
    assert gradients == pytest.approx([-(1 * 3 / 2 - 2 * 3 + 0.5 * 4) / 3])


def test_the_loss_weight_is_a_factor_of_every_decision() -> None:
    weight = table([1, 2], [0, 1], [3, 1])
    gradients, _, _ = run(line(X, loss_weight=lambda table: weight), A)
    assert gradients == pytest.approx([-(1 * 5 - 2 * -1 + 0.5 * 5.5) / 6])


def test_the_advantage_may_be_spread_over_decisions_before_the_update() -> None:
    @dataclass(frozen=True)
    class Halved:
        reference: str = ""

        def __call__(self, made: Table) -> Table:
            assert made.old is not None
            assert made.old.logp.tolist() == (0.5 * X).tolist()  # as the policy finds them before any update
            old = replace(made.old, logp=made.old.logp - 1)
            return replace(made, advantage=made.advantage * table([1, 0.5]), old=old)

    mask = torch.tensor([[True, True], [True, False], [True, True]])
    gradients, metrics, _ = run(line(X, token_advantage=(Halved(), Quartered()), mask=mask), A, 0.5)
    # advantages 1, .5 of each decision, then a quarter of it
    expected = -(1 * (1 + 0.5 * 2) / 2 - 2 * 3 + 0.5 * (0.5 + 0.5 * 4) / 2) / 3 / 4
    assert gradients == pytest.approx([expected])
    assert metrics["ratio/mean"] == pytest.approx(math.e)  # what a part says of the old policy is what is compared with


@dataclass(frozen=True)
class Quartered:
    """A second part, which sees what the first one made."""

    reference: str = ""

    def __call__(self, made: Table) -> Table:
        assert made.advantage[1].tolist() == [-2, 0]  # nothing stands at a decision that does not count
        return replace(made, advantage=made.advantage / 4)


# several updates and epochs


def test_several_updates_split_the_samples() -> None:
    x = table([1], [2], [4], [8], [16], [32])
    gradients, metrics, _ = run(line(x), [1.0] * 6, updates=3)
    parts = [round(-2 * g) for g in gradients]  # the sum of the two powers of two in each batch
    assert len(parts) == 3 and sum(parts) == 63 and all(bin(part).count("1") == 2 for part in parts)
    assert metrics["optimizer_steps"] == 3
    assert metrics["grad_norm"] == pytest.approx(sum(parts) / 2 / 3)  # the mean over the three


def test_every_epoch_splits_anew_and_a_seed_says_how() -> None:
    x = table(*([2.0**k] for k in range(8)))
    twice = [round(-4 * g) for g in run(line(x), [1.0] * 8, updates=2, epochs=2)[0]]
    assert twice[0] + twice[1] == twice[2] + twice[3] == 255 and set(twice[:2]) != set(twice[2:])
    again = [round(-4 * g) for g in run(line(x), [1.0] * 8, updates=2, seed=1)[0]]
    assert again == twice[2:]  # the order of an epoch follows from seed + epoch


def test_more_updates_than_samples_make_no_empty_batch() -> None:
    gradients, metrics, _ = run(line(table([1], [2])), [1.0, 1.0], updates=4)
    assert sorted(gradients) == [-2, -1] and metrics["optimizer_steps"] == 2


@dataclass(frozen=True)
class WholeGroups(ClippedMean):
    """A row-coupled objective without a clip that could act."""

    low: float = 0.5
    high: float = 0.5


def test_a_coupled_objective_keeps_groups_whole() -> None:
    x = table(*([2.0**k] for k in range(6)))
    gradients, _, _ = run(line(x, WholeGroups()), [1.0] * 6, group=[0, 0, 1, 1, 2, 2], updates=2)
    parts = sorted((round(-2 * g), round(-4 * g)) for g in gradients)
    alone, pair = next(p[0] for p in parts if p[0] in (3, 12, 48)), next(p[1] for p in parts if p[1] in (15, 51, 60))
    assert alone + pair == 63  # one group, and the two others


def test_a_coupled_gradient_is_that_of_the_whole_graph() -> None:
    """-A exp(mean of theta x - old): at the old policy -A times the mean of x, for each sample a third."""
    mask = torch.tensor([[True, True], [True, False], [True, True]])
    for micro_batch in (1, 2, 64):
        gradients, _, _ = run(line(X, WholeGroups(), mask=mask), A, 0.5, micro_batch=micro_batch)
        assert gradients == pytest.approx([-(1 * 1.5 - 2 * 3 + 0.5 * 2.25) / 3])


def test_the_ratio_is_to_the_policy_before_the_first_update() -> None:
    """Two epochs by hand: the second one's ratio is exp((theta_1 - theta_0) x)."""
    x, a, lr = [1.0, -2.0], [1.0, -0.5], 0.01
    first = -(a[0] * x[0] + a[1] * x[1]) / 2
    theta = 0.3 - lr * first
    ratios = [math.exp((theta - 0.3) * value) for value in x]
    second = -sum(advantage * ratio * value for advantage, ratio, value in zip(a, ratios, x, strict=True)) / 2
    gradients, metrics, end = run(line(table([1], [-2]), Clipped()), a, 0.3, lr=lr, epochs=2)
    assert gradients == pytest.approx([first, second]) and end == pytest.approx(theta - lr * second)
    assert metrics["ratio/mean"] == pytest.approx((2 + sum(ratios)) / 4)
    assert metrics["ratio/first_max_deviation"] == 0


def test_the_old_policy_is_measured_only_where_it_is_needed() -> None:
    """One forward per row and epoch, one more of each row for the old policy; a known one costs nothing."""
    for objective, options, extra in (
        (Clipped(), {"epochs": 2}, 3),
        (Clipped(), {"updates": 2}, 3),
        (ScoreFunction(), {"epochs": 2}, 9),  # the check instead: the samples together, their six decisions one by one
        (Clipped(), {}, 9),
    ):
        algorithm = line(X, objective)
        run(algorithm, A, **options)
        assert sum(algorithm.estimator.forwards) == 3 * options.get("epochs", 1) + extra, (objective, options)
    algorithm = line(X, Clipped(), known=torch.zeros(3, 2).double())
    run(algorithm, A, 0.5, epochs=2)
    assert sum(algorithm.estimator.forwards) == 6


def test_what_the_rollout_tells_of_the_old_policy_is_compared_with() -> None:
    _, metrics, _ = run(line(X, Clipped(), known=0.5 * X - 0.1), A, 0.5)
    assert metrics["ratio/mean"] == pytest.approx(math.exp(0.1))
    assert metrics["ratio/first_max_deviation"] == pytest.approx(math.exp(0.1) - 1)


def test_probes_may_be_drawn_anew_for_every_epoch() -> None:
    once, anew = line(X), line(X, redraw=True)
    run(once, A, epochs=3)
    run(anew, A, epochs=3)
    assert once.estimator.probes == [[0, 1, 2]]
    assert len(anew.estimator.probes) == 3 and anew.estimator.probes[0] == [0, 1, 2]
    assert len({seed for probe in anew.estimator.probes for seed in probe}) == 9


# the check of the ratio


def test_an_answer_that_depends_on_the_micro_batch_shows_in_the_check() -> None:
    """Rows measured together drift by -.5 and .3: max |ratio - 1| is 1 - exp(-.5), not exp(.3) - 1."""
    drift = table([-0.5], [0.3], [0.0])
    _, metrics, _ = run(line(table([1], [1], [1]), drift=drift), A)
    assert metrics["ratio/first_max_deviation"] == pytest.approx(1 - math.exp(-0.5))
    _, metrics, _ = run(line(table([1], [1], [1]), drift=-drift), A)
    assert metrics["ratio/first_max_deviation"] == pytest.approx(math.exp(0.5) - 1)


def test_the_check_leaves_out_what_does_not_count() -> None:
    drift = table([9.0, 9.0], [0.0, 9.0], [0.1, 0.1])
    mask = torch.tensor([[False, False], [True, False], [True, True]])
    _, metrics, _ = run(line(X, drift=drift, mask=mask), A)
    assert metrics["ratio/first_max_deviation"] == pytest.approx(math.exp(0.1) - 1)
    nothing = line(X, drift=drift, mask=torch.zeros(3, 2).bool())
    _, metrics, _ = run(nothing, A)
    assert metrics["ratio/first_max_deviation"] == 0 and nothing.estimator.forwards == []


def test_the_check_takes_about_eight_network_rows() -> None:
    """Each twice: eight samples of one row, two of four rows, one of more than eight."""
    for decisions, width, samples in ((1, 1, 8), (4, 4, 8), (4, 1, 2), (8, 2, 2), (9, 1, 1), (12, 1, 1)):
        algorithm = line(torch.ones(10, decisions).double(), width=width)
        run(algorithm, [0.0] * 10)  # no sample is trained
        rows = decisions // width
        assert sum(algorithm.estimator.forwards) >= 2 * samples
        first = algorithm.estimator.forwards[: len(algorithm.estimator.forwards) - samples * rows]
        assert sum(first) == samples and algorithm.estimator.forwards[len(first) :] == [1] * samples * rows


# what is skipped, refused and reported


def test_samples_without_advantage_need_no_forward() -> None:
    plain = line(X, known=torch.zeros(3, 2).double())
    gradients, _, _ = run(plain, [1.0, 0.0, 0.5], micro_batch=1)
    assert sum(plain.estimator.forwards) == 2 * 2 and gradients == pytest.approx([-(3 + 0.5 * 4.5) / 6])
    held = line(X, known=torch.zeros(3, 2).double(), regularizers=(KLToOld(weight=0.1),))
    run(held, [1.0, 0.0, 0.5], micro_batch=2)
    assert sum(held.estimator.forwards) == 3  # a penalty holds on to every sample
    off = line(X, known=torch.zeros(3, 2).double(), regularizers=(KLToOld(weight=0.0),))
    run(off, [1.0, 0.0, 0.5], micro_batch=2)
    assert sum(off.estimator.forwards) == 2


def test_a_pair_of_policies_pulls_at_advantage_zero_too() -> None:
    """-5 (r L+ + (1 - r) L-) with L- = -L+ has slope -5 (2 r - 1) x: nothing at r = 1/2, but measured all the same."""
    algorithm = line(table([1], [3]), ImplicitPair(), known=torch.zeros(2, 1).double())
    gradients, _, _ = run(algorithm, [2.5, 0.0], policy=Slope(pair=True), micro_batch=1)
    assert gradients == pytest.approx([-5 * 0.5 / 2]) and algorithm.estimator.forwards == [1, 1]


def test_a_penalty_is_weighted_and_reported() -> None:
    """exp(-d) - 1 + d has slope (1 - exp(-d)) x."""
    known = 0.5 * X - 0.2
    gradients, metrics, _ = run(line(X, known=known, regularizers=(KLToOld(weight=3.0),)), A, 0.5)
    penalty = 3 * (1 - math.exp(-0.2)) * (1 + 2 + 3 - 1 + 0.5 + 4) / 6
    assert gradients == pytest.approx([WHOLE + penalty])
    assert metrics["kl/old"] == pytest.approx(math.exp(-0.2) - 0.8)
    assert metrics["loss"] == pytest.approx(0.5 * WHOLE + 3 * (math.exp(-0.2) - 0.8))


def test_a_long_gradient_is_cut_to_its_norm() -> None:
    gradients, metrics, _ = run(line(table([30.0])), [1.0], max_grad_norm=2.0)
    assert gradients == pytest.approx([-2], rel=1e-5) and metrics["grad_norm"] == pytest.approx(30)


def test_a_gradient_has_norm_one_at_most_by_default() -> None:
    assert UpdateSettings().max_grad_norm == 1  # as the released codes of DDPO, Flow-GRPO and TRL have it
    gradients, _, _ = run(line(table([30.0])), [1.0], max_grad_norm=UpdateSettings().max_grad_norm)
    assert gradients == pytest.approx([-1], rel=1e-5)


def test_blocks_are_put_back_where_they_come_from() -> None:
    """Rows 2 and 0 of three, the first of them in two parts; what nothing covers is 0."""

    def part(rows: list[int], decisions: slice, *values: list[float]) -> tuple[Tensor, slice, Likelihood]:
        return torch.tensor(rows), decisions, Likelihood(table(*values), {"twice": 2 * table(*values)})

    blocks = [part([2], slice(0, 1), [5]), part([2], slice(1, 2), [6]), part([0], slice(None), [1, 2])]
    whole = assemble(blocks, torch.Size((3, 2)))
    assert whole.logp.tolist() == [[1, 2], [0, 0], [5, 6]]
    assert whole.extra["twice"].tolist() == [[2, 4], [0, 0], [10, 12]]
    assert assemble([], torch.Size((1, 2))).logp.tolist() == [[0, 0]]


class Pair(Slope):
    """With a second parameter, in the place of a critic."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Parameter(torch.tensor(0.0, dtype=torch.float64))

    def parameters(self) -> list[nn.Parameter]:
        return [self.theta, self.other]


def test_a_critic_is_clipped_by_itself() -> None:
    @dataclass(frozen=True)
    class Both(Line):
        def __call__(self, policy: Any, rows: LineRows, condition: Any, references: Sequence[str] = ()) -> Likelihood:
            return Likelihood((policy.theta + 0.1 * policy.other) * rows.x)

    algorithm = replace(line(table([30.0])), estimator=Both(table([30.0])))
    policy = Pair()
    optimizer = torch.optim.SGD([{"params": [policy.theta]}, {"params": [policy.other]}], lr=1.0)
    one = torch.zeros(1, dtype=torch.long)
    rollout = rollout_of(Numbers(one), torch.zeros(1, 1))
    scores = Scores(torch.ones(1, 1).double(), torch.ones(1).double(), ("r",), one, one, torch.ones(1).bool())
    settings = UpdateSettings(max_grad_norm=2.0)
    metrics = improve(policy, optimizer, algorithm, rollout, scores, torch.ones(1).double(), settings)
    assert [policy.theta.item(), policy.other.item()] == pytest.approx([2, 2], rel=1e-5)
    assert metrics["grad_norm"] == pytest.approx(30)  # the policy's alone


@pytest.mark.parametrize(("x", "theta", "words"), [(1.0, math.inf, "the loss is"), (math.inf, 0.0, "the loss is nan")])
def test_a_loss_that_is_not_finite_changes_nothing(x: float, theta: float, words: str) -> None:
    policy = Slope(theta)
    with pytest.raises(UserError, match=words):
        run(line(table([x]), known=torch.zeros(1, 1).double()), [1.0], policy=policy, lr=1.0)
    assert policy.theta.item() == theta and policy.theta.grad is None


@dataclass(frozen=True)
class Steep(ScoreFunction):
    """A finite loss whose gradient is infinite."""

    def __call__(self, likelihood: Likelihood, batch: Any) -> Tensor:
        return (likelihood.logp - batch.old.logp).abs().sqrt()


def test_a_gradient_that_is_not_finite_changes_nothing() -> None:
    policy = Slope()
    with pytest.raises(UserError, match="the gradient is not finite"):
        run(line(table([2.0]), Steep(), known=torch.zeros(1, 1).double()), [1.0], policy=policy, lr=1.0)
    assert policy.theta.item() == 0 and policy.theta.grad is None


def test_one_group_whose_gradient_is_not_finite_is_enough() -> None:
    """Of the critic alone: the policy's own step is not taken either."""

    @dataclass(frozen=True)
    class Both(Line):
        def __call__(self, policy: Any, rows: LineRows, condition: Any, references: Sequence[str] = ()) -> Likelihood:
            return Likelihood(policy.theta * rows.x + policy.other.abs().sqrt() * 0 + policy.other.sqrt())

    policy = Pair()
    optimizer = torch.optim.SGD([{"params": [policy.theta]}, {"params": [policy.other]}], lr=1.0)
    one = torch.zeros(1, dtype=torch.long)
    scores = Scores(torch.ones(1, 1).double(), torch.ones(1).double(), ("r",), one, one, torch.ones(1).bool())
    algorithm = replace(line(table([2.0])), estimator=Both(table([2.0]), known=torch.zeros(1, 1).double()))
    rollout = rollout_of(Numbers(one), torch.zeros(1, 1))
    with pytest.raises(UserError, match="the gradient is not finite"):
        improve(policy, optimizer, algorithm, rollout, scores, torch.ones(1).double(), UpdateSettings())
    assert policy.theta.item() == 0


def test_a_scaled_loss_has_the_same_step_and_an_overflow_none() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    _, metrics, theta = run(line(X), A, lr=1.0, scaler=scaler)
    assert theta == pytest.approx(-WHOLE)
    assert metrics["scaler/scale"] == 8 and metrics["scaler/skipped_steps"] == 0
    _, metrics, theta = run(line(table([2.0]), Steep(), known=torch.zeros(1, 1).double()), [1.0], lr=1.0, scaler=scaler)
    assert theta == 0 and metrics["scaler/skipped_steps"] == 1 and metrics["optimizer_steps"] == 0
    assert metrics["scaler/scale"] == 4  # halved, until it is 1
    low = torch.amp.GradScaler("cpu", init_scale=1.0)
    with pytest.raises(UserError, match="the gradient is not finite"):
        run(line(table([2.0]), Steep(), known=torch.zeros(1, 1).double()), [1.0], lr=1.0, scaler=low)


def test_nothing_to_learn_from_is_no_step_of_weights() -> None:
    _, metrics, theta = run(line(X, known=torch.zeros(3, 2).double()), [0.0, 0.0, 0.0], 0.5, lr=1.0)
    assert theta == 0.5 and metrics["loss"] == 0 and metrics["grad_norm"] == 0
