"""Samplers of language models: laws, schedules, and independence of the batch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from flowrl.math import masking
from flowrl.math.masking import commit_counts, draw_tokens, random_subset, systematic_counts, through_end
from flowrl.math.random import seeds
from flowrl.models.tiny_text import TinyText
from flowrl.samplers.causal import CausalSampler
from flowrl.samplers.chunks import sample
from flowrl.samplers.masked import MaskedSampler
from flowrl.types import Draw, Rollout, TokenTrace, prompts_of


def draw(count: int, group: int = 1, seed: int = 0) -> Draw:
    return Draw.of(seeds(seed, "s", count=count), torch.arange(count) // group, 0, 1)


def make(sampler, policy: TinyText, count: int, rows: int | None = None, seed: int = 0) -> Rollout:
    return sample(sampler, policy, policy.condition(prompts_of([""] * count)), draw(count, seed=seed), rows or count)


def trace(rollout: Rollout) -> TokenTrace:
    assert isinstance(rollout.trace, TokenTrace)
    return rollout.trace


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_tokens_are_drawn_from_the_tempered_distribution(temperature: float) -> None:
    logits = torch.tensor([0.3, -1.0, 1.2, -torch.inf])
    numbers = (torch.arange(100_000) + 0.5) / 100_000
    heat = torch.full((100_000,), temperature)
    tokens, logp = draw_tokens(logits.expand(100_000, -1), numbers, heat)
    exact = (logits / temperature).softmax(dim=0)
    assert torch.allclose(torch.bincount(tokens, minlength=4) / 100_000, exact, atol=2e-5)
    assert torch.allclose(logp.exp(), exact[tokens], atol=1e-6)


def test_the_last_token_of_a_large_vocabulary_can_be_drawn_and_an_impossible_one_cannot() -> None:
    logits = torch.zeros(2, 50_000)
    logits[1, -1] = -torch.inf
    tokens, _ = draw_tokens(logits, torch.tensor([1 - 1e-9, 1 - 1e-9], dtype=torch.float64), torch.ones(2))
    assert tokens.tolist() == [49_999, 49_998]


def test_drawing_in_chunks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    logits, numbers = torch.randn(7, 50, generator=generator), torch.rand(7, generator=generator)
    heat = torch.tensor([1.0, 0.0, 0.5, 1.0, 2.0, 1.0, 0.0])
    whole = draw_tokens(logits, numbers, heat)
    largest: list[int] = []
    monkeypatch.setattr(masking, "_draw", lambda *part, draw=masking._draw: largest.append(len(part[0])) or draw(*part))
    monkeypatch.setattr(masking, "CELLS", 120)
    chunked = draw_tokens(logits, numbers, heat)
    assert largest == [2, 2, 2, 1]
    assert torch.equal(chunked[0], whole[0]) and torch.equal(chunked[1], whole[1])
    assert [len(part) for part in draw_tokens(logits[:0], numbers[:0], heat[:0])] == [0, 0]


def test_zero_temperature_is_greedy() -> None:
    tokens, logp = draw_tokens(torch.tensor([[0.0, 2.0, 1.0]]), torch.tensor([0.99]), torch.zeros(1))
    assert tokens.tolist() == [1] and logp.tolist() == [0.0]


def test_counts_of_commits_add_up_and_are_even() -> None:
    for masked in range(1, 12):
        for steps in range(1, 12):
            counts = commit_counts(torch.tensor([masked]), steps)[0]
            assert int(counts.sum()) == masked and int(counts.max() - counts.min()) <= 1


def test_stratified_counts_are_uniform_each_and_spread_together() -> None:
    starts = (torch.arange(6000) + 0.5) / 6000
    counts = systematic_counts(starts, 3, torch.full((6000,), 6))
    for column in counts.T:
        assert torch.bincount(column, minlength=7)[1:].float().std() < 2
    assert bool((counts.sort(dim=1).values.diff(dim=1) == 2).all())


def test_random_subsets_have_their_size_and_are_uniform() -> None:
    numbers = torch.rand(6000, 4, generator=torch.Generator().manual_seed(0))
    among = torch.tensor([True, True, False, True]).expand(6000, -1)
    chosen = random_subset(numbers, among, torch.full((6000,), 2))
    assert bool((chosen.sum(dim=1) == 2).all()) and not bool(chosen[:, 2].any())
    assert torch.allclose(chosen.double().mean(dim=0), torch.tensor([2.0, 2.0, 0.0, 2.0]).double() / 3, atol=0.03)


def test_content_goes_through_the_first_end() -> None:
    tokens = torch.tensor([[1, 0, 2, 0], [1, 2, 3, 1], [0, 1, 1, 1]])
    assert through_end(tokens, 0).sum(dim=1).tolist() == [2, 4, 1]


# --------------------------------------------------------------------------------------------------- autoregressive
def test_causal_samples_follow_the_chain_rule_and_record_their_probability() -> None:
    policy = TinyText(3, 2, causal=True, end=0)
    rollout = make(CausalSampler(length=2), policy, 20_000)
    found = trace(rollout)
    with torch.no_grad():
        scores = policy.score(rollout.condition, found.tokens, found.mask, found.tokens)
    assert torch.allclose(scores.logp, found.logp, atol=1e-6)
    whole = found.tokens[:, 0] * 3 + found.tokens[:, 1]
    for value in whole.unique():
        share = float((whole == value).double().mean())
        exact = float(scores.logp.sum(dim=1).exp()[whole == value][0])
        assert share == pytest.approx(exact, abs=0.015)
    ended = found.tokens[:, 0] == 0
    assert bool((found.mask.sum(dim=1) == torch.where(ended, 1, 2)).all())


def test_rows_that_end_leave_the_batch_and_change_nothing() -> None:
    policy = TinyText(3, 4, causal=True, end=0)
    together, apart = make(CausalSampler(length=4), policy, 64), make(CausalSampler(length=4), policy, 64, rows=1)
    assert torch.equal(together.final, apart.final)
    assert torch.allclose(trace(together).logp, trace(apart).logp, atol=1e-6)
    assert together.forwards < 64 * 4
    assert apart.forwards == int(trace(apart).mask.sum())


def test_the_first_of_each_group_is_greedy_for_remax() -> None:
    policy = TinyText(3, 3, causal=True)
    sampler = CausalSampler(length=3, greedy_first=True)
    rollout = sample(sampler, policy, policy.condition(prompts_of([""] * 12)), draw(12, group=4), 5)
    greedy = make(CausalSampler(length=3, temperature=0.0), policy, 1).final[0]
    assert bool((rollout.final[[0, 4, 8]] == greedy).all())
    assert len(rollout.final[1:4].unique(dim=0)) > 1


# ---------------------------------------------------------------------------------------------------------- masked
ORDERS = ["max_prob", "margin", "neg_entropy", "random", "origin", "leftmost", "low_confidence"]


@pytest.mark.parametrize("order", ORDERS)
def test_every_position_is_fixed_once_and_never_changed(order: str) -> None:
    policy = TinyText(3, 4, end=-1)
    rollout = make(MaskedSampler(length=4, steps=3, block=4, order=order), policy, 50)
    found = trace(rollout)
    assert bool((found.order >= 0).all()) and bool((found.order < 3).all()) and bool((found.tokens < 3).all())
    if order != "origin":
        assert [int((found.order[0] == k).sum()) for k in range(3)] == [2, 1, 1]


@pytest.mark.parametrize("order", ORDERS)
def test_masked_samples_do_not_depend_on_the_batch(order: str) -> None:
    policy = TinyText(3, 4, end=0)
    sampler = MaskedSampler(length=4, steps=4, block=2, order=order)
    together, apart = make(sampler, policy, 30), make(sampler, policy, 30, rows=1)
    assert torch.equal(together.final, apart.final) and torch.equal(trace(together).order, trace(apart).order)


def test_a_random_order_has_the_any_order_law() -> None:
    policy, count = TinyText(3, 2, dtype=torch.float64), 30_000
    rollout = make(MaskedSampler(length=2, steps=2, block=2, order="random"), policy, count)
    logp = policy.table[0].detach().log_softmax(dim=-1)
    empty = policy.state(torch.tensor([3, 3]))
    for a in range(3):
        for b in range(3):
            left = logp[empty, 0, a] + logp[policy.state(torch.tensor([a, 3])), 1, b]
            right = logp[empty, 1, b] + logp[policy.state(torch.tensor([3, b])), 0, a]
            exact = 0.5 * float(left.exp() + right.exp())
            share = float(((rollout.final[:, 0] == a) & (rollout.final[:, 1] == b)).double().mean())
            assert share == pytest.approx(exact, abs=0.012)


def test_without_temperature_the_drawn_token_and_the_state_choose_alike() -> None:
    policy = TinyText(3, 4, seed=4)
    sampler = MaskedSampler(length=4, steps=4, block=4, temperature=0.0)
    first, second = make(sampler, policy, 1), make(replace(sampler, order="low_confidence"), policy, 1)
    assert torch.equal(first.final, second.final) and torch.equal(trace(first).order, trace(second).order)


def test_blocks_are_filled_from_left_to_right_and_an_ended_row_is_done() -> None:
    policy = TinyText(3, 4, end=0)
    rollout = make(MaskedSampler(length=4, steps=4, block=2, order="random"), policy, 200)
    found = trace(rollout)
    assert bool((found.order[:, :2] < 2).all())
    ended = (found.tokens[:, :2] == 0).any(dim=1)
    assert 0 < int(ended.sum()) < 200
    assert bool((found.order[ended][:, 2:] == -1).all()) and bool((found.order[~ended][:, 2:] >= 2).all())
    assert not bool(found.mask[ended][:, 2:].any())
    assert rollout.forwards == 2 * 200 + 2 * int((~ended).sum())


def test_a_threshold_fixes_all_confident_positions_and_at_least_one() -> None:
    policy = TinyText(3, 4)
    slow = make(MaskedSampler(length=4, steps=4, block=4, threshold=1.0), policy, 20)
    assert all(sorted(row) == [0, 1, 2, 3] for row in trace(slow).order.tolist())
    fast = make(MaskedSampler(length=4, steps=4, block=4, threshold=0.0), policy, 20)
    assert bool((trace(fast).order == 0).all()) and fast.forwards == 20


def test_no_guidance_is_the_identity_and_guidance_sharpens() -> None:
    policy = TinyText(3, 2, ("a",), dtype=torch.float64)
    with torch.no_grad():
        policy.table[1].zero_()  # the masked prompt knows nothing
    sampler = MaskedSampler(length=2, steps=1, block=2)
    condition = policy.condition(prompts_of(["a"] * 5000))
    plain, strong = (replace(sampler, guidance=s)(policy, condition, draw(5000)) for s in (0.0, 3.0))
    assert strong.forwards == 2 * plain.forwards
    best = policy.table[0, -1].argmax(dim=1)
    shares = [float((r.final == best).double().mean()) for r in (plain, strong)]
    exact = (4 * policy.table[0, -1].detach()).softmax(dim=1).amax(dim=1).mean()
    assert shares[1] > shares[0] + 0.2 and shares[1] == pytest.approx(float(exact), abs=0.02)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"length": 10, "block": 4}, "not a multiple of block"),
        ({"length": 8, "block": 2, "steps": 3}, "leaves no step"),
        ({"length": 8, "block": -4}, "block=-4 should be at least 1"),
        ({"length": 8, "block": 8, "threshold": 90}, "threshold=90 is a probability"),
        ({"length": 8, "block": 8, "guidance": -1}, "guidance=-1 should be 0"),
    ],
)
def test_impossible_geometries_are_named(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        MaskedSampler(**options)


def test_held_out_sampling_changes_what_it_is_asked_to() -> None:
    masked = MaskedSampler(length=4, steps=4, block=4).heldout(2, 1.0, 0.0)
    assert (masked.steps, masked.guidance, masked.temperature) == (2, 1.0, 0.0)
    assert CausalSampler(length=4, greedy_first=True).heldout(None, None, 0.0) == CausalSampler(
        length=4, temperature=0.0
    )
    with pytest.raises(ValueError, match="no steps"):
        CausalSampler(length=4).heldout(3, None, None)
