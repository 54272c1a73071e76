"""Choices of tokens and of masks, by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from flowrl.math import masking
from flowrl.math.masking import (
    commit_counts,
    draw_tokens,
    ended,
    gauss_legendre,
    is_end,
    log_ratio_kl,
    random_subset,
    systematic_counts,
    through_end,
    time_counts,
    time_share,
    truncate,
)
from flowrl.types import Truncation

NINF = -torch.inf


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_ends_and_what_lies_before_them() -> None:
    tokens = torch.tensor([[5, 0, 5, 9], [5, 9, 0, 5], [5, 5, 5, 5], [0, 0, 5, 5]])
    assert is_end(tokens, [0, 9]).int().tolist() == [[0, 1, 0, 1], [0, 1, 1, 0], [0, 0, 0, 0], [1, 1, 0, 0]]
    assert is_end(tokens, 9).sum() == 2
    through = through_end(tokens, [0, 9])
    assert through.int().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]
    assert through_end(tokens, 0).int().tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0]]
    assert ended(tokens, through, 0).tolist() == [True, False, False, True]  # an end behind the end is none


def test_a_number_at_an_edge_draws_the_token_that_begins_there() -> None:
    """The inverse distribution function on [0, 1): of two equal tokens .5 is the second's; 0 is no impossible one's."""
    logits = torch.tensor([[0.0, 0.0], [0.0, 0.0], [NINF, 0.0]])
    tokens, logp = draw_tokens(logits, double(0.5, 0.4999, 0.0), torch.ones(3))
    assert tokens.tolist() == [1, 0, 1]
    assert logp.tolist() == pytest.approx([-math.log(2), -math.log(2), 0]) and logp.dtype == torch.float32


def test_the_largest_number_draws_a_possible_token() -> None:
    """Its product with the total may round to the total itself, beyond which there is nothing."""
    most = 1 - 2.0**-53
    for logits in (torch.tensor([[0.0, 0.0, NINF]]), torch.tensor([[0.3, 0.1, 0.2, NINF, NINF]])):
        tokens, logp = draw_tokens(logits, double(most), 1.0)
        assert tokens.tolist() == [logits.isfinite().sum() - 1] and bool(logp.isfinite().all())


def test_one_temperature_is_that_of_all_rows() -> None:
    logits = torch.randn(50, 20, generator=torch.Generator().manual_seed(0))
    numbers = torch.rand(50, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for heat in (0.0, 0.7, 1.0):
        one, each = draw_tokens(logits, numbers, heat), draw_tokens(logits, numbers, torch.full((50,), heat).double())
        assert one[0].equal(each[0]) and one[1].equal(each[1])


def test_greedy_and_tempered_rows_in_one_batch() -> None:
    logits = double(0.0, math.log(3)).expand(3, 2)
    tokens, logp = draw_tokens(logits, double(0.2, 0.2, 0.05), double(0.0, 1.0, 0.5))
    assert tokens.tolist() == [1, 0, 0]  # the best one; .2 < 1/4; .05 < 1 / (1 + 9)
    assert logp.tolist() == pytest.approx([0, math.log(1 / 4), math.log(1 / 10)])


def test_a_chunk_of_rows_has_so_many_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    draw = masking._draw
    monkeypatch.setattr(masking, "_draw", lambda *part: rows.append(len(part[0])) or draw(*part))
    for cells, expected in ((8, [4, 1]), (9, [4, 1]), (2, [1] * 5), (1, [1] * 5), (10, [5])):
        rows.clear()
        monkeypatch.setattr(masking, "CELLS", cells)
        draw_tokens(torch.zeros(5, 2), double(*[0.1] * 5), torch.ones(5))
        assert rows == expected


def test_what_is_cut_away() -> None:
    """Chances .4, .3, .2, .1 in another order; equals of the k-th stay as well; the best one always."""
    logits = double(0.1, 0.4, 0.2, 0.3).log()[None]

    def kept(**options) -> list[int]:
        return truncate(logits, Truncation(**options))[0].isfinite().int().tolist()

    assert kept() == [1, 1, 1, 1]
    assert kept(top_k=1) == [0, 1, 0, 0] and kept(top_k=3) == [0, 1, 1, 1] and kept(top_k=9) == [1, 1, 1, 1]
    assert kept(top_p=0.5) == [0, 1, 0, 1] and kept(top_p=1e-9) == [0, 1, 0, 0]
    equal = truncate(double(1.0, 2.0, 2.0, 0.0)[None], Truncation(top_k=1))[0]
    assert equal.tolist() == [NINF, 2, 2, NINF]
    faint = truncate(double(0.0, -100.0, -200.0)[None], Truncation(top_k=2))[0]
    assert faint.tolist() == [0, -100, NINF]  # by number alone, however unlikely
    two = truncate(double(0.0, 0.0)[None], Truncation(top_p=0.5))[0]
    assert two.tolist() == [0, NINF]  # before the second there is .5 already


def test_a_subset_is_of_the_smallest_numbers_among_what_may_be_chosen() -> None:
    numbers, among = double(0.3, 0.1, 0.2, 0.0), torch.tensor([True, True, True, False])
    for count, expected in ((0, []), (1, [1]), (2, [1, 2]), (3, [0, 1, 2]), (4, [0, 1, 2])):
        assert random_subset(numbers, among, torch.tensor(count)).nonzero()[:, 0].tolist() == expected
    rows = random_subset(numbers.expand(2, 2, 4), among.expand(2, 2, 4), torch.tensor([[1, 2], [3, 0]]))
    assert rows.sum(dim=-1).tolist() == [[1, 2], [3, 0]] and bool((rows <= among).all())


def test_counts_spread_from_a_random_start() -> None:
    """Places .95, .45 (past the end) of 10 and of 3: floor(place n) + 1, from 1 to n."""
    found = systematic_counts(double(0.95, 0.95, 0.0), 2, torch.tensor([10, 3, 1]))
    assert found.tolist() == [[10, 5], [3, 2], [1, 1]]
    assert systematic_counts(double(0.0), 4, torch.tensor([8])).tolist() == [[1, 3, 5, 7]]


def test_nodes_on_the_unit_interval() -> None:
    t, w = gauss_legendre(2)
    assert t.tolist() == pytest.approx([0.5 - math.sqrt(3) / 6, 0.5 + math.sqrt(3) / 6]) and w.tolist() == [0.5, 0.5]
    t, w = gauss_legendre(3)
    for power in range(6):
        assert float((w * t**power).sum()) == pytest.approx(1 / (power + 1), rel=1e-12)


def test_even_commits_take_the_remainder_first() -> None:
    assert commit_counts(torch.tensor([7, 2, 6]), 3).tolist() == [[3, 2, 2], [1, 1, 0], [2, 2, 2]]


def test_shares_of_dreams_grid() -> None:
    """Times 1, .5005, .001: first 1 - .5005, then all."""
    assert float(time_share(0, 2)) == pytest.approx(1 - 0.5005, rel=1e-6) and float(time_share(1, 2)) == 1
    assert float(time_share(1, 4)) == pytest.approx(1 - 0.5005 / 0.75025, rel=1e-6)
    assert float(time_share(0, 1)) == 1
    assert time_counts(torch.tensor([10, 3]), 0, 2).tolist() == [4, 1] and time_counts(torch.tensor([5]), 1, 2) == 5


def test_estimates_of_a_divergence() -> None:
    live, other = double(-0.5, -2.0), double(-1.0, -1.5)  # d = .5, -.5
    assert log_ratio_kl(live, other, "k1").tolist() == [0.5, -0.5]
    assert log_ratio_kl(live, other, "k2").tolist() == [0.125, 0.125]
    expected = [math.exp(-0.5) - 0.5, math.exp(0.5) - 1.5]
    assert log_ratio_kl(live, other, "k3").tolist() == pytest.approx(expected)
    with pytest.raises(ValueError, match="k1, k2 or k3"):
        log_ratio_kl(live, other, "k4")
