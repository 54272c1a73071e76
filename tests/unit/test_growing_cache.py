"""The cache of a decoder grows in reserved memory: the same keys and values as by concatenation, hardly ever copied."""

from __future__ import annotations

import itertools

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

from flowrl.models.causal.growing import SPARE, GrowingLayer, grow


def states(seed: int, rows: int, columns: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values [rows, 2, columns, 3], and of another width."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 2, columns, 3, generator=draw), torch.randn(rows, 2, columns, 5, generator=draw)


def test_the_same_as_by_concatenation_through_every_change() -> None:
    plain = DynamicLayer()
    plain.update(*states(0, 3, 7))
    growing = GrowingLayer(plain)
    changes = {
        5: lambda layer: layer.batch_select_indices(torch.tensor([2, 0, 2, 1])),
        9: lambda layer: layer.reorder_cache(torch.tensor([3, 1])),
        12: lambda layer: layer.crop(-4),
        15: lambda layer: layer.batch_repeat_interleave(2),
    }
    for step in range(2 * SPARE):
        if step in changes:
            for layer in (plain, growing):
                changes[step](layer)
        assert plain.keys is not None
        new = states(step + 1, len(plain.keys))
        for ours, theirs in zip(growing.update(*new), plain.update(*new), strict=True):
            assert ours.equal(theirs)
        assert growing.get_seq_length() == plain.get_seq_length()
        assert growing.get_mask_sizes(1) == plain.get_mask_sizes(1)


def test_what_is_there_is_seldom_copied() -> None:
    layer = DynamicLayer()
    layer.update(*states(0, 2, 10))
    growing = GrowingLayer(layer)
    places = [growing.update(*states(step, 2))[0].data_ptr() for step in range(1000)]
    moves = sum(a != b for a, b in itertools.pairwise(places))
    assert moves <= 12  # of 999 by concatenation


def test_rows_that_were_chosen_do_not_write_into_the_others() -> None:
    layer = DynamicLayer()
    layer.update(*states(0, 2, 4))
    growing = GrowingLayer(layer)
    before = growing.update(*states(1, 2))[0]
    copy = before.clone()
    growing.crop(-1)
    after = growing.update(*states(2, 2))[0]
    assert before.equal(copy)  # what was shown earlier stays as it was
    assert not after.equal(before) and after[..., :4, :].equal(before[..., :4, :])


def test_only_layers_of_full_attention_are_exchanged() -> None:
    class Own(DynamicLayer):
        pass

    cache = DynamicCache()
    cache.update(*states(0, 1, 2), 0)
    cache.layers.append(Own())
    grow(cache)
    assert [type(layer) for layer in cache.layers] == [GrowingLayer, Own]
    assert cache.get_seq_length() == 2
    grow([torch.zeros(1)])  # RWKV's states
