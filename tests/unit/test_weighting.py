"""Which samples and decisions count in an update, how much, and what weight sets follow."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from flowrl.estimators.tokens import Tokens
from flowrl.parts.advantages import GroupCentred
from flowrl.parts.aggregations import DecisionMean, FixedLength, RowMean, SampleMean, SampleSum
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.ema import Ema, Every, Ramp
from flowrl.parts.loss_weights import ByLength, EqualViews, InverseStep, Uniform
from flowrl.parts.objectives import Clipped
from flowrl.parts.regularizers import KL, Prediction, ValueLoss
from flowrl.parts.selections import AllButFirst, AllSamples, DropFlatGroups, NonzeroAdvantage, ReplaceFlatGroups
from flowrl.parts.token_advantages import GAE, KLInReward
from flowrl.samplers.causal import CausalSampler
from flowrl.types import IncompatibleError, Rows, StepRows, ViewRows
from tests.contract.toys import table_of
from tests.unit.test_parts import scores


def weigh(part, rows: Rows, shape: tuple[int, int]) -> Tensor:
    """Factors of a loss weight on rows that all count."""
    return part(table_of(torch.zeros(shape), torch.ones(shape).bool(), rows=rows))


def views(targets: Tensor, content: Tensor, per: str = "cell") -> ViewRows:
    nothing = torch.zeros_like(targets, dtype=torch.long)
    seeds = torch.zeros(targets.shape[:2], dtype=torch.long)
    return ViewRows(nothing, nothing, targets, targets.double(), content, seeds, per, 1.0)  # type: ignore[arg-type]


@pytest.mark.parametrize("part", [SampleMean(), DecisionMean(), RowMean(), SampleSum(), FixedLength()])
def test_an_empty_batch_weighs_nothing(part) -> None:
    assert part(torch.zeros(2, 4).bool(), 2).tolist() == [[0] * 4] * 2


@pytest.mark.parametrize("part", [SampleMean(), DecisionMean(), RowMean(), SampleSum(), FixedLength()])
def test_a_single_decision_has_all_the_weight(part) -> None:
    share = 1 / 3 if part == FixedLength() else 1
    assert part(torch.tensor([[False, False, False], [False, True, False]])).tolist() == [[0] * 3, [0, share, 0]]


def test_a_row_by_default_answers_one_decision() -> None:
    mask = torch.tensor([[True, True, True, False], [True, False, False, False]])
    quarter = [[0.25] * 3 + [0], [0.25, 0, 0, 0]]
    assert RowMean()(mask).tolist() == quarter
    assert RowMean()(mask, 2).tolist() == [[1 / 6, 1 / 6, 1 / 3, 0], [1 / 3, 0, 0, 0]]


def test_every_decision_counts_once() -> None:
    assert weigh(Uniform(), Rows(), (2, 3)).tolist() == [[1, 1, 1]] * 2


def test_every_view_counts_the_same() -> None:
    """Views that ask for 2, 1 and 0 positions: shares 1/2 and 1, times the mean of 1.5 per view, so their mean is 1."""
    targets = torch.tensor([[[1, 1, 0], [0, 0, 1], [0, 0, 0]], [[1, 1, 1], [1, 1, 1], [1, 1, 1]]]).bool()
    found = weigh(EqualViews(), views(targets, torch.ones(2, 3).bool()), (2, 9)).reshape(2, 3, 3)
    assert found[0, 0].tolist() == pytest.approx([0.75] * 3) and found[0, 1].tolist() == pytest.approx([1.5] * 3)
    assert found[1].tolist() == [[1] * 3] * 3
    assert float(found[targets].mean()) == pytest.approx(1)
    for wrong in (Rows(), views(targets, torch.ones(2, 3).bool(), "view")):
        with pytest.raises(IncompatibleError, match=r"set estimator\.per=cell"):
            weigh(EqualViews(), wrong, (2, 9))


def test_completions_count_by_their_length() -> None:
    content = torch.tensor([[True] * 4, [True, True, False, False]])
    rows = views(content[:, None], content, "token")
    assert weigh(ByLength(), rows, (2, 4)).tolist() == [[4 / 3] * 4, [2 / 3] * 4]
    assert weigh(ByLength(power=-1), rows, (2, 4)).tolist() == [pytest.approx([3 / 4] * 4), pytest.approx([3 / 2] * 4)]
    with pytest.raises(IncompatibleError, match="masked language model"):
        weigh(ByLength(), Rows(), (2, 4))


def test_steps_count_by_their_inverse_length() -> None:
    rows = StepRows(torch.tensor([[1.0, 0.5]]).double(), torch.tensor([[0.5, 0.4]]).double())
    assert weigh(InverseStep(), rows, (1, 2)).tolist() == [pytest.approx([2, 10])]
    assert weigh(InverseStep(normalise=True), rows, (1, 2)).tolist() == [pytest.approx([1 / 3, 5 / 3])]


def test_which_samples_take_part() -> None:
    s = scores([1.0, 1.0, 2.0, 3.0, 4.0], [0, 0, 7, 7, 7], [True, True, True, True, False])
    advantage = torch.tensor([0.0, 1.0, -1.0, 0.0, 1.0])
    chosen = {
        AllSamples(): [1, 1, 1, 1, 0],
        DropFlatGroups(): [0, 0, 1, 1, 0],
        ReplaceFlatGroups(): [0, 0, 1, 1, 0],
        NonzeroAdvantage(): [0, 1, 1, 0, 0],
        AllButFirst(): [0, 1, 0, 1, 0],
    }
    for part, expected in chosen.items():
        assert part(s, advantage).int().tolist() == expected, part


def test_only_dynamic_sampling_has_further_rounds() -> None:
    assert AllSamples().rounds == 1 and AllSamples().share == 1
    dapo = ReplaceFlatGroups()
    assert dapo.rounds == 10 and dapo.share == 1  # max_num_gen_batches of the released recipe; all groups
    ReplaceFlatGroups(rounds=1, share=0.01)
    for wrong in ({"rounds": 0}, {"share": 0.0}, {"share": 1.01}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
            ReplaceFlatGroups(**wrong)


def test_how_fast_a_weight_set_follows() -> None:
    """DiffusionNFT's decay type 1 by default: .001 per step up to .5; type 2 starts after 75 steps."""
    assert [Ramp()(steps) for steps in (0, 1, 100, 500, 501)] == pytest.approx([0, 0.001, 0.1, 0.5, 0.5])
    assert [Ramp(0.0075, 0.999, 75)(steps) for steps in (74, 75, 77, 400)] == pytest.approx([0, 0, 0.015, 0.999])
    assert Ema("old").decay == Ramp()


def test_how_often_a_reference_is_renewed() -> None:
    """TR-DPO's soft update keeps .4; a multiple of 64 steps has to be reached within the iteration."""
    assert [Every()(steps, before) for steps, before in ((63, 0), (64, 63), (65, 64), (130, 127), (64, 64))] == [
        1, 0.4, 1, 0.4, 1,
    ]  # fmt: skip
    assert Every(1, keep=0.0)(1, 0) == 0
    for wrong in ({"steps": 0}, {"keep": 1.0}, {"keep": -0.1}):
        with pytest.raises(ValueError, match="a share from 0 to below 1"):
            Every(**wrong)


@dataclass(frozen=True)
class AgainstBase(Clipped):
    """An objective that reads a weight set of its own."""

    reference: str = "base"  # type: ignore[misc]


def test_an_algorithm_knows_its_weight_sets() -> None:
    plain = Algorithm(
        sampler=CausalSampler(), estimator=Tokens(), advantage=GroupCentred(), objective=Clipped(),
    )  # fmt: skip
    assert plain.references == () and plain.weight_sets == () and not plain.valued
    rich = replace(
        plain,
        objective=AgainstBase(),
        behaviour="old",
        regularizers=(KL(0.1), KL(0.0, to="unused"), Prediction(0.1, to="old"), ValueLoss()),
        token_advantage=(GAE(), KLInReward(to="teacher")),
        ema_weights=(Ema("slow"),),
    )
    assert rich.valued and rich.references == ("reference", "old", "base")
    assert rich.weight_sets == ("old", "reference", "base", "teacher", "slow")
    assert replace(plain, families=("causal", "masked")).family == "causal"
