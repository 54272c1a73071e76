"""Several processes, as threads: shares, exchanges, one update on them, and errors that end all of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from flowrl.errors import UserError
from flowrl.parts.aggregations import DecisionMean
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.combinations import SoftProjection
from flowrl.parts.loss_masks import SecondMoment
from flowrl.parts.objectives import Clipped, ClippedMean, ObjectiveDefaults
from flowrl.parts.regularizers import KLToOld
from flowrl.parts.surrogates import SearchedClip
from flowrl.runtime.ranks import together
from flowrl.samplers.flow import FlowSampler
from flowrl.startup.workload import describe_shares
from flowrl.step import UNSCALED, UpdateSettings, _split, improve
from flowrl.types import Batch, IncompatibleError, Likelihood, OneProcess, Rollout, Rows, Scores, Share, Table, exchange
from tests.contract.toys import rollout_of
from tests.threads import ThreadRanks, in_threads
from tests.unit.test_step import Line, LineRows, Noting, Numbers, Pair, Slope, table

HERE = {1: [[0, 1, 2, 3, 4, 5]], 2: [[0, 1, 4], [2, 3, 5]], 3: [[0, 1, 5], [-1], [2, 3, 4]]}
"""Which of six samples each of so many processes holds: not in one piece, and one of three has a spare one alone."""


# --------------------------------------------------------------------------------------------------------- shares
@pytest.mark.parametrize("size", HERE)
def test_what_is_gathered_is_in_the_order_of_all_samples(size: int) -> None:
    whole = torch.arange(12.0).reshape(6, 2)

    def work(ranks: ThreadRanks) -> Any:
        here = torch.tensor(HERE[size][ranks.rank])
        share = Share.of(ranks, here)
        held = torch.where((here >= 0)[:, None], whole[here], torch.nan)  # the spare row must not arrive
        chosen = torch.tensor([4, 1, 2])
        part, rows = share.take(chosen)
        numbers, places = share.held(chosen)
        assert torch.equal(here[places], numbers) and torch.equal(rows, places)
        return share.gather(held), share.values([f"s{n}" for n in here.tolist()]), part.gather(held[rows]), len(share)

    for gathered, texts, part, count in in_threads(size, work):
        assert torch.equal(gathered, whole) and count == 6
        assert texts == [f"s{n}" for n in range(6)]
        assert torch.equal(part, whole[[4, 1, 2]])


def test_one_process_holds_everything_and_copies_nothing() -> None:
    share, rows = Share.alone(3), torch.zeros(3, 2)
    assert share.gather(rows) is rows and share.whole
    index = torch.tensor([2, 0])
    assert share.held(index)[0] is index and share.held(index)[1] is index
    assert not Share.of(OneProcess(), torch.tensor([1, 0, 2])).whole
    assert Share.of(OneProcess(), torch.tensor([1, 0, 2])).gather(torch.arange(3)).tolist() == [1, 0, 2]


def test_shares_of_different_lengths_follow_one_another() -> None:
    def work(ranks: ThreadRanks) -> list[int]:
        spare = ranks.rank == 1
        return Share.following(ranks, [2, 1, 3][ranks.rank], spare).here.tolist()

    assert in_threads(3, work) == [[0, 1], [-1], [2, 3, 4]]


def test_plain_values_are_exchanged_exactly() -> None:
    found = in_threads(2, lambda ranks: exchange(ranks, {"x": 0.1 + ranks.rank, "nan": float("nan")}))
    assert found[0][1]["x"] == 1.1 and found[1][0]["x"] == 0.1 and found[0][0]["nan"] != found[0][0]["nan"]


def test_large_fields_have_a_shape_and_no_values() -> None:
    @dataclass(frozen=True)
    class Noisy(Rows):
        large: ClassVar[frozenset[str]] = frozenset({"noise"})
        x: Tensor
        noise: Tensor

    def work(ranks: ThreadRanks) -> Rows:
        held = torch.tensor(HERE[2][ranks.rank])
        rows = Noisy(held[:, None].double(), torch.ones(len(held), 1, 2))
        known = rows.gathered(Share.of(ranks, held))
        assert known.x[:, 0].tolist() == [0, 1, 2, 3, 4, 5]
        assert known.noise.shape == (6, 1, 2) and known.noise.is_meta
        assert known.block(torch.tensor([3]), slice(0, 1)).noise.is_meta
        return known

    in_threads(2, work)


# --------------------------------------------------------------------------------------------------------- updates
@dataclass(frozen=True)
class Held(Line):
    """`Line` of the samples here."""

    here: tuple[int, ...] = ()

    def probe(self, rollout: Rollout, policy: Any, seeds: Tensor) -> LineRows:
        return LineRows(self.x[list(self.here)], self.width, None if self.mask is None else self.mask[list(self.here)])


@dataclass(frozen=True)
class BatchMean(ObjectiveDefaults):
    """Couples everything: the square of the batch's mean log-probability of good decisions, at each of them."""

    coupled: ClassVar[bool] = True
    needs_old_logp: ClassVar[bool] = False

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        assert isinstance(batch.probe, LineRows)
        good = batch.advantage > 0
        return (likelihood.logp[good].mean() * batch.probe.x.abs().max() - batch.advantage) ** 2


@dataclass(frozen=True)
class UpperHalf:
    """Decisions of more than median log-probability: the batch's."""

    coupled: ClassVar[bool] = True

    def __call__(self, live: Likelihood, batch: Batch) -> Tensor:
        return (live.logp > live.logp.median()).double()


@dataclass(frozen=True)
class Whiten:
    """Over all decisions, and divided by the largest x, which no process holds alone."""

    reference: str = ""

    def __call__(self, table: Table) -> Table:
        assert table.old is not None and isinstance(table.rows, LineRows)
        advantage = (table.advantage - table.advantage.mean()) / table.rows.x.abs().max() + 0.1 * table.old.logp
        return replace(table, advantage=advantage)


@dataclass(frozen=True)
class ByNorm:
    """Every channel divided by the norm of its gradient over all samples."""

    def __call__(self, gram: Tensor) -> Tensor:
        return 1 / gram.diagonal().sqrt().clamp(min=1e-12)


X = table([1, -2], [3, 1], [-1, 4], [2, 2], [5, -1], [0.5, 1])
ADVANTAGE = [1.0, -1.0, 0.5, 2.0, 0.0, -2.0]
GROUP = [0, 0, 1, 1, 2, 2]
CASES: dict[str, Callable[[], dict[str, Any]]] = {
    "plain": lambda: {"objective": Clipped(0.2, 0.2)},
    "penalised": lambda: {"objective": Clipped(0.2, 0.2), "regularizers": (KLToOld(weight=0.1),)},
    "coupled": lambda: {"objective": ClippedMean(0.1, 0.1)},
    "batch": lambda: {"objective": BatchMean()},
    "masked": lambda: {"objective": Clipped(0.2, 0.2), "loss_masks": (UpperHalf(),)},
    "whitened": lambda: {"objective": Clipped(0.2, 0.2), "token_advantage": (Whiten(),)},
    "channels": lambda: {
        "objective": Clipped(0.2, 0.2),
        "combination": ByNorm(),
        "regularizers": (KLToOld(weight=0.1),),
        "given": torch.stack([table(ADVANTAGE)[0], table(ADVANTAGE)[0].flip(0) ** 2], dim=1),
    },
    "terms": lambda: {
        "objective": Clipped(0.2, 0.2),
        "combination": SoftProjection(),
        "regularizers": (KLToOld(weight=3.0),),
        "given": table(ADVANTAGE)[0][:, None],
    },
    "searched": lambda: {"objective": SearchedClip(balance=1.1), "loss_masks": (SecondMoment(1e-4),)},
    "decisions": lambda: {"objective": Clipped(0.2, 0.2), "aggregation": DecisionMean(), "mask": X > -1.5},
}


def update(
    share: Share,
    policy: Any,
    options: dict[str, Any],
    lr: float = 0.05,
    scaler: Any = UNSCALED,
    forwards: list[int] | None = None,
    **settings: Any,
) -> tuple[list[float], dict[str, float], float]:
    """Gradients of every step, metrics and theta, of the samples of a share."""
    parts = dict(options)
    advantage = parts.pop("given", table(ADVANTAGE)[0])
    numbers = [number if number >= 0 else 0 for number in share.here.tolist()]
    noted = [] if forwards is None else forwards
    estimator = Held(X, mask=parts.pop("mask", None), here=tuple(numbers), forwards=noted)
    algorithm = Algorithm(
        sampler=FlowSampler(), estimator=estimator, advantage=lambda scores, memory: scores.total, **parts
    )  # fmt: skip
    ids = torch.tensor(GROUP)
    scores = Scores(table(ADVANTAGE).T, torch.ones(1).double(), ("r",), ids, ids, torch.ones(6).bool())
    rollout = rollout_of(Numbers(torch.tensor(numbers)), torch.zeros(len(numbers), 1), group=ids[numbers])
    optimizer = Noting(policy.parameters(), lr)
    how = UpdateSettings(max_grad_norm=1e9, updates=2, epochs=2, **settings)
    metrics = improve(
        policy, optimizer, algorithm, rollout, scores, advantage, how, scaler, share
    )  # fmt: skip
    return optimizer.seen, metrics, policy.theta.item()


@pytest.mark.parametrize("micro_batch", [1, 3, 64])
@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("case", CASES)
def test_an_update_is_that_of_one_process(case: str, size: int, micro_batch: int) -> None:
    steps, wanted, theta = update(Share.alone(6), Slope(0.1), CASES[case]())

    def work(ranks: ThreadRanks) -> tuple[list[float], dict[str, float], float]:
        share = Share.of(ranks, torch.tensor(HERE[size][ranks.rank]))
        return update(share, Slope(0.1), CASES[case](), micro_batch=micro_batch)

    answers = in_threads(size, work)
    for seen, metrics, value in answers:
        assert seen == pytest.approx(steps, rel=1e-12) and len(seen) == 4
        assert value == pytest.approx(theta, rel=1e-12)
        assert metrics == pytest.approx(wanted, rel=1e-9, abs=1e-12)
    assert all(repr(answer) == repr(answers[0]) for answer in answers), "processes must not drift apart"


def test_processes_exchange_little_whatever_the_micro_batch() -> None:
    """The number of exchanges of an update does not depend on how many micro-batches it takes."""

    def count(micro_batch: int) -> int:
        def work(ranks: ThreadRanks) -> int:
            update(
                Share.of(ranks, torch.tensor(HERE[2][ranks.rank])), Slope(), CASES["plain"](), micro_batch=micro_batch
            )
            return len(ranks.calls)

        return in_threads(2, work)[0]

    assert count(1) == count(64)


class Split(Slope):
    """Says that every process holds a part of its network."""

    is_split = True


@pytest.mark.parametrize("case", CASES)
def test_a_split_network_is_run_equally_often_everywhere(case: str) -> None:
    """The first process holds four samples and the second two; what is measured in the place of the missing ones adds
    nothing to the gradient."""
    steps, wanted, _ = update(Share.alone(6), Slope(0.1), CASES[case](), micro_batch=1)

    def work(ranks: ThreadRanks) -> tuple[list[float], int, dict[str, float]]:
        share, options = Share.of(ranks, torch.tensor([[0, 1, 2, 4], [3, 5]][ranks.rank])), CASES[case]()
        forwards: list[int] = []
        seen, metrics, _ = update(share, Split(0.1), options, micro_batch=1, forwards=forwards)
        return seen, len(forwards), metrics

    (first, often, metrics), (second, as_often, _) = in_threads(2, work)
    assert often == as_often > 0
    assert first == second == pytest.approx(steps, rel=1e-12)
    assert metrics == pytest.approx(wanted, rel=1e-9, abs=1e-12)


# ---------------------------------------------------------------------------------------------------------- errors
def test_what_one_process_raises_ends_all() -> None:
    def work(ranks: ThreadRanks) -> str:
        try:
            with together(ranks):
                if ranks.rank == 1:
                    raise IncompatibleError("no such thing")
        except IncompatibleError as error:
            return f"own: {error}"
        except UserError as error:
            return f"other: {error}"
        return "nothing"

    other = "other: rank 1: no such thing"
    assert in_threads(3, work) == [other, "own: no such thing", other]
    assert in_threads(2, lambda ranks: "fine" if _fine(ranks) else "") == ["fine", "fine"]


def _fine(ranks: ThreadRanks) -> bool:
    with together(ranks):
        return True


def test_a_loss_that_is_not_finite_on_one_process_stops_all() -> None:
    """theta is infinite there: the others know it from the sum."""

    def work(ranks: ThreadRanks) -> str:
        policy = Slope(float("inf") if ranks.rank else 0.0)
        with pytest.raises(UserError, match="the loss is") as caught:
            update(Share.of(ranks, torch.tensor(HERE[2][ranks.rank])), policy, {"objective": Clipped(0.2, 0.2)})
        return str(caught.value)

    assert len(set(in_threads(2, work))) == 1


@dataclass(frozen=True)
class SteepAtFive(ObjectiveDefaults):
    """Its gradient is infinite at the decision of ``x = 5``, which one process has; the loss is finite."""

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        assert isinstance(batch.probe, LineRows)
        gap = likelihood.logp - batch.old.logp
        return torch.where(batch.probe.x == 5, gap.abs().sqrt(), gap)


def test_a_step_that_overflows_on_one_process_is_skipped_by_all() -> None:
    def work(ranks: ThreadRanks) -> tuple[float, float, float]:
        share = Share.of(ranks, torch.tensor(HERE[2][ranks.rank]))
        scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
        options = {"objective": SteepAtFive(), "given": torch.ones(6).double()}
        _, metrics, theta = update(share, Slope(0.1), options, scaler=scaler)
        return metrics["scaler/skipped_steps"], metrics["scaler/scale"], theta

    first, second = in_threads(2, work)
    assert first == second and first[0] >= 1 and first[1] < 64


class Loose(Slope):
    """A policy whose parameters are not those that the network computes with."""

    def parameters(self) -> list[torch.nn.Parameter]:
        self.lost = getattr(self, "lost", None) or torch.nn.Parameter(torch.tensor(0.0, dtype=torch.float64))
        return [self.lost]


@pytest.mark.parametrize("size", [1, 2])
def test_weights_without_a_gradient_are_an_error(size: int) -> None:
    def work(ranks: ThreadRanks) -> None:
        share = Share.of(ranks, torch.tensor(HERE[size][ranks.rank]))
        with pytest.raises(UserError, match="no trained weight has a gradient"):
            update(share, Loose(), {"objective": Clipped(0.2, 0.2)})

    in_threads(size, work)


def test_a_batch_of_no_consequence_is_none() -> None:
    """Every advantage is 0: no gradient, and no error."""
    algorithm = Algorithm(
        sampler=FlowSampler(), estimator=Line(X), advantage=lambda scores, memory: scores.total, objective=Clipped()
    )  # fmt: skip
    ids = torch.tensor(GROUP)
    scores = Scores(torch.zeros(6, 1).double(), torch.ones(1).double(), ("r",), ids, ids, torch.ones(6).bool())
    rollout = rollout_of(Numbers(torch.arange(6)), torch.zeros(6, 1), group=ids)
    policy: Any = Slope()
    metrics = improve(
        policy, Noting(policy.parameters()), algorithm, rollout, scores, torch.zeros(6).double(), UpdateSettings()
    )  # fmt: skip
    assert metrics["grad_norm"] == 0 and policy.theta.grad is None


def test_a_parameter_moved_by_samples_elsewhere_alone_has_a_zero_here() -> None:
    """AdamW moves a weight whose gradient is 0 and leaves one without: all processes must do the same."""

    @dataclass(frozen=True)
    class Sixth(Held):
        def __call__(self, policy: Any, rows: LineRows, condition: Any, references: Sequence[str] = ()) -> Likelihood:
            sixth = (rows.x[:, :1] == 0.5).any()
            return Likelihood(policy.theta * rows.x + (policy.other * rows.x if bool(sixth) else 0.0))

    def work(ranks: ThreadRanks) -> list[float]:
        share = Share.of(ranks, torch.tensor(HERE[2][ranks.rank]))
        policy: Any = Pair()
        ids = torch.tensor(GROUP)
        estimator = Sixth(X, here=tuple(share.here.tolist()))
        algorithm = Algorithm(
            sampler=FlowSampler(), estimator=estimator, advantage=lambda scores, memory: scores.total,
            objective=Clipped(),
        )  # fmt: skip
        scores = Scores(table(ADVANTAGE).T, torch.ones(1).double(), ("r",), ids, ids, torch.ones(6).bool())
        rollout = rollout_of(Numbers(share.here), torch.zeros(3, 1), group=ids[share.here])
        optimizer = torch.optim.AdamW(policy.parameters(), lr=0.1, weight_decay=0.5)
        settings = UpdateSettings(micro_batch=2)
        improve(policy, optimizer, algorithm, rollout, scores, table(ADVANTAGE)[0], settings, share=share)
        return [policy.theta.item(), policy.other.item()]

    first, second = in_threads(2, work)
    assert first == second and first[1] != 0


def test_a_rank_that_makes_another_exchange_is_noticed_by_the_threads() -> None:
    with pytest.raises(AssertionError, match=re.escape("different calls")):
        in_threads(2, lambda ranks: ranks.wait() if ranks.rank else ranks.largest(1))


# ------------------------------------------------------------------------------------------------ optimiser batches
@pytest.mark.parametrize("coupled", [False, True])
@pytest.mark.parametrize("updates", [2, 3, 5])
def test_an_even_split_gives_every_process_as_much_of_each_batch(updates: int, coupled: bool) -> None:
    """12 groups of 6 samples on 2, 3 or 4 processes."""
    group = torch.arange(12).repeat_interleave(6)
    grid = torch.ones(72, 1)
    table = Table(LineRows(grid), group, group, None, grid, grid.bool(), grid, None)
    objective = ClippedMean() if coupled else Clipped()
    algorithm = Algorithm(
        sampler=FlowSampler(), estimator=Line(grid), advantage=lambda scores, memory: scores.total, objective=objective
    )  # fmt: skip
    settings = UpdateSettings(updates=updates, split="even", seed=3)
    batches = list(_split(table, algorithm, settings, 0))
    assert len(batches) == updates and torch.cat(batches).sort().values.tolist() == list(range(72))
    assert any(a.tolist() != b.tolist() for a, b in zip(batches, _split(table, algorithm, settings, 1), strict=True))
    unit = 6 if coupled else 1
    for batch in batches:
        for size in (1, 2, 3, 4):
            held = [int(((batch >= start) & (batch < start + 72 // size)).sum()) for start in range(0, 72, 72 // size)]
            assert max(held) - min(held) <= (2 * unit if coupled else 12 // size)
            assert abs(sum(held) - 72 / updates) < unit
        if not coupled:
            each = group[batch].bincount(minlength=12)
            assert int(each.max() - each.min()) <= 1


# --------------------------------------------------------------------------------------------------- unequal shares
@pytest.mark.parametrize(
    ("size", "groups", "each", "grouped", "words"),
    [
        (1, 5, 4, True, None),
        (4, 8, 4, True, None),
        (4, 5, 4, False, "1 make 2, and the others, which make 1, wait .* data.prompts=8"),
        (4, 2, 4, False, None),  # four processes share eight samples
        (4, 2, 4, True, "2 of 4 processes .* compares the samples of a group.* to 4 or more"),
        (8, 2, 3, False, "6 of 8 processes .* no more samples"),
    ],
)
def test_unequal_shares_are_said(size: int, groups: int, each: int, grouped: bool, words: str | None) -> None:
    ranks = ThreadRanks.__new__(ThreadRanks)
    ranks.size = size
    said = describe_shares(ranks, groups, each, grouped)
    assert len(said) == (words is not None)
    assert words is None or re.search(words, said[0])
