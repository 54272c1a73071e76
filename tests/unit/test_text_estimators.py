"""Likelihood of completions by the two text estimators, against tables that can be read off."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from flowrl.estimators.masked import MaskedViews
from flowrl.estimators.tokens import Tokens
from flowrl.estimators.views import Views
from flowrl.math.random import seeds
from flowrl.models.tiny_text import TinyText
from flowrl.types import IncompatibleError, Rollout, TokenScores, TokenTrace, Truncation, ViewRows, prompts_of
from tests.contract.toys import rollout_of as rollout_of_toy

TOKENS = torch.tensor([[0, 2, 1], [1, 1, 2]])
ALL = torch.ones(2, 3, dtype=torch.bool)


def policy_of(causal: bool = False, **options: Any) -> TinyText:
    return TinyText(3, 3, ("a", "b"), causal=causal, dtype=torch.float64, **options)


def rollout_of(policy: TinyText, mask: Tensor = ALL, temperature: float = 1.0, **trace: Any) -> Rollout:
    condition = policy.condition(prompts_of(["a", "b"]))
    return rollout_of_toy(condition, TOKENS, TokenTrace(TOKENS, mask, temperature, **trace), group=torch.tensor([0, 1]))


@dataclass(frozen=True)
class Two:
    """Two views: all hidden and the outer positions asked for, with weights 2 and 3; the middle one alone, weight 4.
    The second completion's second view asks for nothing."""

    draws: int = 2

    def __call__(self, trace: TokenTrace, seeds: Tensor) -> Views:
        hidden = torch.tensor([[[1, 1, 1], [0, 1, 0]]] * 2).bool()
        targets = torch.tensor([[[1, 0, 1], [0, 1, 0]], [[1, 0, 1], [0, 0, 0]]]).bool()
        weights = torch.tensor([[2.0, 0, 3], [0, 4, 0]]).double().expand(2, 2, 3)
        return Views(hidden, targets, weights * targets)


def log_at(
    policy: TinyText, row: int, canvas: list[int], place: int, heat: float = 1.0, prompt: int | None = None
) -> float:
    """log p of a completion's token at a place, read off the table."""
    index = row if prompt is None else prompt
    state = int(policy.state(torch.tensor(canvas)))
    logits = policy.table[index, state, place].detach() / heat
    return float(logits.log_softmax(dim=-1)[TOKENS[row, place]])


def cells(policy: TinyText, **options: Any) -> list[list[float]]:
    """What the two views ask for: for both completions the outer places of an empty canvas, the middle of the first."""
    outer = [[log_at(policy, row, [3, 3, 3], place, **options) for place in (0, 2)] for row in (0, 1)]
    return [[*outer[0], log_at(policy, 0, [0, 3, 1], 1, **options)], outer[1]]


def measure(policy: TinyText, estimator: MaskedViews, references: Sequence[str] = (), **trace: Any):
    rollout = rollout_of(policy, **trace)
    rows = estimator.probe(rollout, policy, seeds(0, "s", count=2))
    return estimator(policy, rows, rollout.condition, references)


def test_a_view_is_a_weighted_sum() -> None:
    policy = policy_of()
    (a, c, b), (d, f) = cells(policy)
    found = measure(policy, MaskedViews(views=Two()))
    assert found.logp.tolist() == [pytest.approx([2 * a + 3 * c, 4 * b]), pytest.approx([2 * d + 3 * f, 0])]
    assert policy.network_calls == 3  # a view that asks for nothing is not run


def test_a_cell_is_one_log_probability() -> None:
    policy = policy_of()
    (a, c, b), (d, f) = cells(policy)
    found = measure(policy, MaskedViews(views=Two(), per="cell"))
    assert found.logp.tolist() == [pytest.approx([a, 0, c, 0, b, 0]), pytest.approx([d, 0, f, 0, 0, 0])]


def test_a_token_is_the_mean_over_views() -> None:
    policy = policy_of()
    (a, c, b), (d, f) = cells(policy)
    found = measure(policy, MaskedViews(views=Two(), per="token"))
    assert found.logp.tolist() == [pytest.approx([a, 2 * b, 1.5 * c]), pytest.approx([d, 0, 1.5 * f])]


@dataclass(frozen=True)
class Everything:
    """One view that hides and asks for all."""

    draws: int = 1

    def __call__(self, trace: TokenTrace, seeds: Tensor) -> Views:
        whole = torch.ones(len(trace.mask), 1, 3)
        return Views(whole.bool(), whole.bool(), whole.double())


@pytest.mark.parametrize("per", ["view", "cell"])
def test_where_every_view_is_asked_rows_are_not_spread(per: str) -> None:
    policy = policy_of()
    found = measure(policy, MaskedViews(views=Everything(), per=per))  # type: ignore[arg-type]
    exact = [[log_at(policy, row, [3, 3, 3], place) for place in range(3)] for row in (0, 1)]
    expected = exact if per == "cell" else [[sum(row)] for row in exact]
    assert found.logp.tolist() == [pytest.approx(row) for row in expected]


def test_the_entropy_is_the_mean_over_what_is_asked_for() -> None:
    policy = policy_of()

    def entropy(row: int, canvas: list[int], place: int) -> float:
        p = policy.table[row, int(policy.state(torch.tensor(canvas))), place].detach().softmax(dim=-1)
        return float(-(p * p.log()).sum())

    a, c, b = entropy(0, [3, 3, 3], 0), entropy(0, [3, 3, 3], 2), entropy(0, [0, 3, 1], 1)
    d, f = entropy(1, [3, 3, 3], 0), entropy(1, [3, 3, 3], 2)
    found = {
        per: measure(policy, MaskedViews(views=Two(), per=per)).extra["entropy"] for per in ("view", "cell", "token")
    }
    nan = float("nan")
    expected = {
        "view": [[(a + c) / 2, b], [(d + f) / 2, nan]],
        "cell": [[a, nan, c, nan, b, nan], [d, nan, f, nan, nan, nan]],
        "token": [[a, b, c], [d, nan, f]],
    }
    for per, values in expected.items():
        assert found[per].tolist() == [pytest.approx(row, nan_ok=True) for row in values], per
    assert "entropy" not in measure(policy, MaskedViews(views=Two(), entropy=False)).extra


class Routed(TinyText):
    """Reports a balance of its routers: the number of the row among those that were run, from 1."""

    def score(self, *arguments: Any, **options: Any) -> TokenScores:
        scores = super().score(*arguments, **options)
        return replace(scores, balance=torch.arange(1.0, len(scores.logp) + 1))


def test_the_balance_of_routers_is_that_of_the_views() -> None:
    """Rows 1 and 2 are the first completion's views, row 3 the second's; its other view was not run."""
    policy = Routed(3, 3, ("a", "b"), dtype=torch.float64)
    found = {
        per: measure(policy, MaskedViews(views=Two(), per=per)).extra["router/balance"]
        for per in ("view", "cell", "token")
    }
    assert found["view"].tolist() == [[1, 2], [3, 0]]
    assert found["cell"].tolist() == [[1, 1, 1, 2, 2, 2], [3, 3, 3, 0, 0, 0]]
    assert found["token"].tolist() == [[1.5] * 3, [3] * 3]  # the mean over the views that ask for something


def test_a_reference_is_measured_at_the_same_views() -> None:
    policy = policy_of()
    before = cells(policy)
    with torch.no_grad():
        policy.table[:] = torch.randn(policy.table.shape, generator=torch.Generator().manual_seed(8))
    after = cells(policy)
    found = measure(policy, MaskedViews(views=Two(), per="token", kl="k1"), ("reference",))
    gap = [new - old for new, old in zip(after[0], before[0], strict=True)]
    assert found.extra["log_ratio/reference"][0].tolist() == pytest.approx([gap[0], 2 * gap[2], 1.5 * gap[1]])
    assert found.extra["kl/reference"].tolist() == found.extra["log_ratio/reference"].tolist()
    assert found.extra["kl/reference"].requires_grad and not found.extra["log_ratio/reference"].requires_grad
    third = measure(policy, MaskedViews(views=Two(), per="token"), ("reference",)).extra["kl/reference"]
    d = found.extra["log_ratio/reference"]
    assert torch.allclose(third, (-d).exp() - 1 + d)  # k3 by default


def test_prompts_are_hidden_by_chance() -> None:
    policy = policy_of()
    whole = measure(policy, MaskedViews(views=Everything(), per="cell", corrupt=1.0))
    exact = [[log_at(policy, row, [3, 3, 3], place, prompt=2) for place in range(3)] for row in (0, 1)]
    assert whole.logp.tolist() == [pytest.approx(row) for row in exact]
    assert MaskedViews().corrupt == 0
    MaskedViews(corrupt=0.0)
    for corrupt in (-0.1, 1.1):
        with pytest.raises(ValueError, match="should be a probability"):
            MaskedViews(corrupt=corrupt)


def test_every_view_hides_its_own_prompt_tokens() -> None:
    estimator, policy = MaskedViews(views=Two(), corrupt=0.5), policy_of()
    rows = estimator.probe(rollout_of(policy), policy, seeds(0, "s", count=2))
    assert rows.prompt_seeds.shape == (2, 2) and len(rows.prompt_seeds.unique()) == 4


def test_the_distribution_that_tokens_were_drawn_from() -> None:
    policy = policy_of()
    options = {"temperature": 0.5, "truncation": Truncation(top_k=1)}
    hot = measure(policy, MaskedViews(views=Everything(), per="cell", tempered=True), temperature=0.5)
    exact = [[log_at(policy, row, [3, 3, 3], place, heat=0.5) for place in range(3)] for row in (0, 1)]
    assert hot.logp.tolist() == [pytest.approx(row) for row in exact]
    plain = measure(policy, MaskedViews(views=Everything(), per="cell"), **options)
    exact = [[log_at(policy, row, [3, 3, 3], place) for place in range(3)] for row in (0, 1)]
    assert plain.logp.tolist() == [pytest.approx(row) for row in exact]
    greedy = measure(policy, MaskedViews(views=Everything(), per="cell", tempered=True), temperature=0.0)
    assert greedy.logp.tolist() == plain.logp.tolist()
    cut = measure(policy, MaskedViews(views=Everything(), per="cell", tempered=True), **options)
    best = policy.table[:2, int(policy.state(torch.tensor([3, 3, 3])))].argmax(dim=-1) == TOKENS
    assert torch.equal(cut.logp == 0, best)  # of the one token that stays; another one keeps its share of two
    rows = MaskedViews(tempered=True).probe(rollout_of(policy, **options), policy, seeds(0, "s", count=2))
    assert rows.truncation == Truncation(top_k=1) and rows.temperature == 0.5


def test_hidden_positions_are_masked_and_labels_are_not() -> None:
    policy = policy_of()
    rows = MaskedViews(views=Two()).probe(rollout_of(policy), policy, seeds(0, "s", count=2))
    assert rows.inputs.tolist() == [[[3, 3, 3], [0, 3, 1]], [[3, 3, 3], [1, 3, 2]]]
    assert rows.labels.tolist() == [[[0, 2, 1]] * 2, [[1, 1, 2]] * 2]
    assert isinstance(rows, ViewRows) and torch.equal(rows.content, ALL)


def test_decisions_of_views_and_tokens() -> None:
    per = {name: MaskedViews(per=name).decisions(6) for name in ("view", "cell", "token")}  # type: ignore[arg-type]
    assert per == {"view": (4, 4), "cell": (24, 4), "token": (6, 4)}
    assert Tokens().decisions(6) == (6, 1)
    for estimator in (MaskedViews(), Tokens()):
        with pytest.raises(IncompatibleError, match="greedy completions"):
            estimator.decisions(0)


def test_text_estimators_need_completions() -> None:
    policy = policy_of()
    for estimator in (MaskedViews(), Tokens()):
        with pytest.raises(IncompatibleError, match="sampler"):
            estimator.probe(replace(rollout_of(policy), trace=None), policy, seeds(0, "s", count=2))  # type: ignore[arg-type]


# one token after another


def chain(policy: TinyText, row: int, heat: float = 1.0) -> list[float]:
    canvases = [[3, 3, 3], [int(TOKENS[row, 0]), 3, 3], [int(TOKENS[row, 0]), int(TOKENS[row, 1]), 3]]
    return [log_at(policy, row, canvas, place, heat) for place, canvas in enumerate(canvases)]


def token_rows(policy: TinyText, estimator: Tokens, **trace: Any):
    rollout = rollout_of(policy, **trace)
    return rollout, estimator.probe(rollout, policy, seeds(0, "s", count=2))


def test_tokens_follow_the_chain_rule_at_the_sampler_s_temperature() -> None:
    policy = policy_of(causal=True)
    with torch.no_grad():
        policy.critic[:] = 0.25
    for temperature, heat in ((1.0, 1.0), (0.5, 0.5), (0.0, 1.0)):
        rollout, rows = token_rows(policy, Tokens(), temperature=temperature)
        found = Tokens()(policy, rows, rollout.condition)
        assert found.logp.tolist() == [pytest.approx(chain(policy, row, heat)) for row in (0, 1)]
        assert found.extra["value"].tolist() == [[0.25] * 3] * 2
        assert float(found.extra["entropy"].min()) > 0 and float(found.extra["entropy"].max()) < math.log(3)
    assert "entropy" not in Tokens(entropy=False)(policy, rows, rollout.condition).extra


def test_tokens_that_do_not_count_are_zero() -> None:
    policy = policy_of(causal=True)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    rollout, rows = token_rows(policy, Tokens(), mask=mask)
    found = Tokens()(policy, rows, rollout.condition)
    assert found.logp[~mask].tolist() == [0, 0, 0] and rows.counted is mask and rows.unit == 3
    assert found.logp[0, :2].tolist() == pytest.approx(chain(policy, 0)[:2])


def test_what_is_cut_is_scored_as_drawn_or_whole() -> None:
    policy = policy_of(causal=True)
    cut = Truncation(top_k=2)
    assert token_rows(policy, Tokens(), truncation=cut)[1].truncation == cut
    assert token_rows(policy, Tokens(truncated=False), truncation=cut)[1].truncation == Truncation()


def test_the_rollout_may_be_trusted() -> None:
    policy, told = policy_of(causal=True), torch.full((2, 3), -0.7)
    trusting = Tokens(trust_rollout=True)
    rollout, rows = token_rows(policy, trusting, logp=told)
    old = trusting.recorded_logp(rollout, rows)
    assert old is not None and old.logp.dtype == torch.float64 and torch.equal(old.logp, told.double())
    assert trusting.has_recorded_logp and not Tokens().has_recorded_logp
    assert Tokens().recorded_logp(rollout, rows) is None
    with pytest.raises(IncompatibleError, match="records log-probabilities"):
        trusting.recorded_logp(*token_rows(policy, trusting))
    whole = Tokens(trust_rollout=True, truncated=False)
    token_rows(policy, whole, logp=told)  # nothing was cut
    token_rows(policy, trusting, logp=told, truncation=Truncation(top_k=2))
    with pytest.raises(IncompatibleError, match="change one of them"):
        token_rows(policy, whole, logp=told, truncation=Truncation(top_k=2))


def test_the_balance_of_a_row_is_that_of_its_tokens() -> None:
    policy = Routed(3, 3, ("a", "b"), causal=True, dtype=torch.float64)
    rollout, rows = token_rows(policy, Tokens())
    assert Tokens()(policy, rows, rollout.condition).extra["router/balance"].tolist() == [[1] * 3, [2] * 3]
