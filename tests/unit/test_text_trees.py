"""Trees of completions."""

from __future__ import annotations

import pytest
import torch

from flowrl import composition
from flowrl.errors import UserError
from flowrl.estimators.masked import MaskedViews
from flowrl.estimators.tree_views import TreeLevels
from flowrl.math.random import derive, seeds
from flowrl.models.tiny_text import TinyText
from flowrl.samplers.chunks import sample
from flowrl.samplers.masked import MaskedSampler
from flowrl.samplers.masked_tree import MaskedTreeSampler
from flowrl.types import Draw, IncompatibleError, TokenTrace, prompts_of


def draw_of(each: int, groups: int = 2) -> Draw:
    group = torch.arange(groups).repeat_interleave(each)
    prompts = prompts_of(["ab"[g] for g in group])
    return Draw.of(seeds(0, "text", count=len(group)), group, 0, derive(0, "shared"), prompts)


def made_by(sampler: MaskedSampler, draw: Draw, rows: int = 1000, end: int = -1):
    policy = TinyText(3, sampler.length, ("a", "b"), end=end)
    return sample(sampler, policy, policy.condition(draw.prompts), draw, rows), policy


TREE = MaskedTreeSampler(length=4, steps=4, block=1, levels=2, branches=3)


def test_branches_share_what_comes_before_they_part() -> None:
    made, _ = made_by(TREE, draw_of(9))
    trace = made.trace
    assert isinstance(trace, TokenTrace) and trace.node is not None and trace.event is not None
    tokens = trace.tokens.view(2, 3, 3, 4)
    assert torch.equal(tokens[:, :, :, :2], tokens[:, :, :1, :2].expand(-1, -1, 3, -1))
    assert len({tuple(row) for row in trace.tokens.tolist()}) > 6
    assert trace.event.tolist() == [[0, 0, 1, 1]] * 18
    assert trace.node[:9].tolist() == [[0, place // 3 * 3, place] for place in range(9)]
    assert made.forwards == 2 * (3 * 2 + 9 * 2)  # instead of 2 x 9 x 4


def test_completions_do_not_depend_on_the_batch() -> None:
    whole, _ = made_by(TREE, draw_of(9))
    for rows in (1, 4, 9):
        pieces, _ = made_by(TREE, draw_of(9), rows=rows)
        assert torch.equal(whole.final, pieces.final) and torch.equal(whole.nodes, pieces.nodes)
        assert pieces.forwards >= whole.forwards


def test_one_level_is_a_sampler_without_a_tree_bit_for_bit() -> None:
    sizes = {"length": 4, "steps": 4, "block": 2}
    tree, _ = made_by(MaskedTreeSampler(**sizes, levels=1, branches=6), draw_of(6), end=0)
    plain, _ = made_by(MaskedSampler(**sizes), draw_of(6), end=0)
    assert torch.equal(tree.final, plain.final) and torch.equal(tree.trace.order, plain.trace.order)
    assert tree.forwards == plain.forwards


def test_a_view_shows_the_start_of_its_branch() -> None:
    made, policy = made_by(TREE, draw_of(9))
    rows = MaskedViews(views=TreeLevels(levels=2), per="cell").probe(made, policy, made.seeds)
    mask = policy.mask_token
    assert rows.inputs[0, 0].tolist() == [mask] * 4
    assert rows.inputs[5, 1].tolist() == [*made.trace.tokens[5, :2].tolist(), mask, mask]
    assert rows.targets[5].tolist() == [[True, True, False, False], [False, False, True, True]]
    assert rows.events[0].tolist() == [0] * 4 + [1] * 4
    assert rows.node is not None and rows.node[5].tolist() == [3] * 4 + [5] * 4
    part = rows.block(torch.tensor([5, 7]), slice(4, 8))
    assert part.node is not None and part.node.tolist() == [[5] * 4, [7] * 4]


class Remembering(TinyText):
    """Its reader knows the rows of the reading before alone, as one that keeps keys and values of finished blocks."""

    def reader(self, condition):
        plain, known = super().reader(condition), []

        def read(rows, tokens, targets, settled):
            assert not known or set(rows.tolist()) <= known[-1], "rows that were not read before"
            if settled:
                known.append(set(rows.tolist()))
            return plain(rows, tokens, targets, settled)

        return read


def test_a_reader_is_asked_about_rows_that_it_has_read() -> None:
    draw = draw_of(9)
    policy = Remembering(3, 4, ("a", "b"), end=0)
    made = TREE(policy, policy.condition(draw.prompts), draw)
    deeper = MaskedTreeSampler(length=6, steps=6, block=1, levels=3, branches=2)
    assert torch.equal(made.final, made_by(TREE, draw, end=0)[0].final)
    policy = Remembering(2, 6, ("a", "b"))
    deeper(policy, policy.condition(draw_of(8).prompts), draw_of(8))


def test_an_ended_branch_stays_as_it_is() -> None:
    made, _ = made_by(TREE, draw_of(9, groups=2), end=0)
    trace = made.trace
    assert isinstance(trace, TokenTrace) and trace.event is not None
    early = ((trace.tokens[:, :2] == 0) & trace.mask[:, :2]).any(dim=1)
    assert 0 < int(early.sum()) < 18
    assert bool((trace.event[early][:, 2:] == -1).all()) and not bool(trace.mask[early][:, 2:].any())
    rows = TreeLevels(levels=2)(trace, made.seeds)
    assert not bool(rows.targets[early, 1].any()) and bool(rows.targets[~early, 1].any(dim=1).all())


def test_held_out_completions_are_by_themselves() -> None:
    plain = TREE.heldout(None, None, 0.0)
    assert type(plain) is MaskedSampler and plain.temperature == 0 and plain.length == 4


def test_mistakes_are_told_before_a_model_is_loaded() -> None:
    with pytest.raises(UserError, match="each of levels=3"):
        composition.build({"use": "d_treerpo", "block": 128, "levels": 3})
    with pytest.raises(ValueError, match="at least 1 level of 2"):
        MaskedTreeSampler(branches=1)
    made, policy = made_by(TREE, draw_of(9))
    with pytest.raises(IncompatibleError, match="levels=2"):
        MaskedViews(views=TreeLevels(levels=1), per="cell").probe(made, policy, made.seeds)
    plain, policy = made_by(MaskedSampler(length=4, steps=4, block=1), draw_of(2))
    with pytest.raises(IncompatibleError, match="MaskedTreeSampler"):
        MaskedViews(views=TreeLevels(levels=1), per="cell").probe(plain, policy, plain.seeds)
