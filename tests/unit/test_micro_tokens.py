"""``train.micro_tokens``: rows of similar length share a forward, whose tokens with their padding are bounded."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from flowrl import step
from flowrl.config import Config
from flowrl.coupling import Measure
from flowrl.errors import UserError
from flowrl.estimators.tokens import TokenRows, Tokens
from flowrl.models.causal.load import load_causal
from flowrl.models.text.condition import TextCondition
from flowrl.startup.preflight import check_run
from flowrl.types import Likelihood, Share, Table, token_blocks


@pytest.mark.parametrize("most", [1, 9, 30, 64, 10**6])
@pytest.mark.parametrize("per_sample", [1, 3])
def test_blocks_cover_everything_once_and_hold_at_most_so_many_tokens(most: int, per_sample: int) -> None:
    lengths = torch.tensor([5, 30, 1, 8, 8, 0, 29, 2])
    seen = torch.zeros(len(lengths), 4 * per_sample, dtype=torch.int64)
    for rows, decisions in token_blocks(lengths, 4 * per_sample, 4, most):
        seen[rows, decisions] += 1
        parts = (decisions.stop - decisions.start) // 4  # network rows of each sample
        longest = int(lengths[rows].max())
        assert parts * len(rows) * longest <= most or parts * len(rows) == 1
    assert bool((seen == 1).all())


def test_rows_of_similar_length_are_together() -> None:
    lengths = torch.tensor([100, 3, 98, 2, 4, 1])
    blocks = [rows.tolist() for rows, _ in token_blocks(lengths, 1, 1, 200)]
    assert blocks == [[0, 2], [1, 3, 4, 5]]


def test_no_forward_reads_more_tokens() -> None:
    """On a real model: prompts count, what follows a completion's end does not, and the answer is the same."""
    policy = load_causal("countdown")
    model: Any = policy.network.model
    draw = torch.Generator().manual_seed(0)
    prompts = [torch.randint(5, policy.vocabulary, (n,), generator=draw).tolist() for n in (4, 9, 2)]
    condition = TextCondition.of(prompts, torch.arange(9) % 3)
    ends = torch.tensor([1, 40, 3, 2, 38, 5, 40, 1, 0])
    tokens = torch.randint(5, policy.vocabulary, (9, 40), generator=draw)
    rows = TokenRows(tokens, torch.arange(40) < ends[:, None], None, 1.0)
    longest = int((condition.row_lengths + ends).max())
    assert rows.row_tokens(condition).tolist() == (condition.row_lengths + ends).tolist()
    table = Table(rows, torch.arange(9), torch.zeros(9), None, torch.ones(9, 40), rows.mask, torch.ones(9, 40), None)
    read: list[int] = []
    hook = model.register_forward_pre_hook(
        lambda _, args, given: read.append(given["input_ids"].numel()), with_kwargs=True
    )
    found = []
    for most in (None, 2 * longest):
        read.clear()
        measure = Measure(policy, Tokens(), condition, Share.alone(9), 9, most)
        found.append(measure.whole(table, torch.arange(9), ()).logp)
    hook.remove()
    assert max(read) <= 2 * longest and len(read) >= 2
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-5)
    assert bool((found[0] != 0).any())


def test_images_have_no_tokens() -> None:
    values = {
        "name": "x", "model": {"path": "shapes"}, "algorithm": "flow_grpo", "rewards": ["shapes"],
        "train": {"iterations": 1, "micro_tokens": 100},
    }  # fmt: skip
    with pytest.raises(UserError, match=r"train\.micro_tokens counts tokens.*train\.micro_batch"):
        check_run(Config.of(values))


@pytest.mark.parametrize(("length", "expected"), [(16, 8), (64, 4), (1000, 2)])
def test_the_replay_check_measures_fewer_of_long_completions(length: int, expected: int, monkeypatch) -> None:
    """But two, so that one is measured in company."""
    measured: list[int] = []

    def old(update: object, table: Table, some: torch.Tensor, alone: bool) -> Likelihood:
        measured.append(len(some))
        return Likelihood(torch.zeros(table.mask.shape, dtype=torch.float64))

    monkeypatch.setattr(step, "_old", old)
    ones = torch.ones(20, length)
    rows = TokenRows(ones.long(), ones.bool(), None, 1.0)
    assert step._deviation(None, Table(rows, ones[:, 0], ones[:, 0], None, ones, ones.bool(), ones, None)) == 0  # type: ignore[arg-type]
    assert measured == [expected, expected]
