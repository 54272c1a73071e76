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
from flowrl.types import Draw, Rollout, TokenTrace, Truncation, prompts_of


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


# ---------------------------------------------------------------------------------------------------------- by hand
def sure(policy: TinyText, prompt: int, tokens: list[int]) -> None:
    """Make a prompt's completion all but certain, whatever the canvas."""
    with torch.no_grad():
        policy.table[prompt] = -100.0
        for place, token in enumerate(tokens):
            policy.table[prompt, :, place, token] = 100.0


def chosen_prompts(policy: TinyText, sampler, prompts: list[str], group: int = 1) -> Rollout:
    return sampler(policy, policy.condition(prompts_of(prompts)), draw(len(prompts), group))


def test_rows_leave_the_batch_where_an_eighth_of_them_has_ended() -> None:
    """Network rows of 16 completions of 4 tokens, of which the first ``k`` end at once: 1 of 16 stays in, 2 leave."""
    policy = TinyText(3, 4, ("ends", "goes on"), causal=True, end=0)
    sure(policy, 0, [0, 0, 0, 0])
    sure(policy, 1, [1, 2, 1, 2])
    for ended, rows in ((0, 64), (1, 64), (2, 16 + 3 * 14), (8, 16 + 3 * 8), (16, 16)):
        rollout = chosen_prompts(policy, CausalSampler(length=4), ["ends"] * ended + ["goes on"] * (16 - ended))
        assert rollout.forwards == rows, ended
        found = trace(rollout)
        assert found.tokens[:ended].tolist() == [[0] * 4] * ended
        assert found.tokens[ended:].tolist() == [[1, 2, 1, 2]] * (16 - ended)
        assert found.ended is not None and found.ended.tolist() == [True] * ended + [False] * (16 - ended)
        assert found.mask.sum(dim=1).tolist() == [1] * ended + [4] * (16 - ended)


def test_tokens_after_the_end_are_padding_without_probability() -> None:
    policy = TinyText(3, 4, ("a",), causal=True, end=2)  # its pad token is 2 as well
    policy.pad_token = 1
    rollout = chosen_prompts(policy, CausalSampler(length=4), ["a"] * 64)
    found = trace(rollout)
    assert found.logp is not None and bool((found.tokens[~found.mask] == 1).all())
    assert bool((found.logp[~found.mask] == 0).all()) and bool((found.logp[found.mask] < 0).all())
    assert int((~found.mask).sum()) > 0


def test_an_engine_takes_every_row_to_the_end() -> None:
    class Engine:
        def generate(self, condition, keys, length, heat, truncation):
            self.asked = (len(condition), keys.tolist(), length, heat, truncation)
            tokens = torch.tensor([[1, 0, 1], [1, 1, 1]])
            return tokens, torch.full((2, 3), -0.5)

    policy, engine = TinyText(3, 3, ("a",), causal=True, end=0), Engine()
    policy.engine = lambda name: engine if name == "vllm" else None  # type: ignore[attr-defined]
    sampler = CausalSampler(length=3, engine="vllm", temperature=0.5, greedy_first=True, top_k=2)
    rollout = chosen_prompts(policy, sampler, ["a"] * 2, group=2)
    assert rollout.forwards == 6 and trace(rollout).mask.tolist() == [[True, True, False], [True] * 3]
    assert engine.asked == (2, draw(2).seeds.tolist(), 3, [0.0, 0.5], Truncation(top_k=2))
    assert trace(rollout).ended.tolist() == [True, False] and trace(rollout).temperature == 0.5  # type: ignore[union-attr]


def test_what_a_causal_sampler_records_and_costs() -> None:
    assert (CausalSampler(length=5).recorded, CausalSampler(length=5).forwards) == (5, 5)
    assert CausalSampler(length=5, temperature=0.0).recorded == 0  # greedy: nothing to choose
    assert CausalSampler(temperature=0.5).heldout(None, None, None) == CausalSampler(temperature=0.5)
    CausalSampler(length=1)
    for options in ({"length": 0}, {"temperature": -0.1}):
        with pytest.raises(ValueError, match=next(iter(options))):
            CausalSampler(**options)
    with pytest.raises(ValueError, match="no guidance"):
        CausalSampler().heldout(None, 2.0, None)


def test_what_a_masked_sampler_records_and_costs() -> None:
    plain = MaskedSampler(length=8, steps=6, block=4)
    assert (plain.recorded, plain.forwards, plain.width, plain.blocks) == (8, 6, 4, 2)
    assert replace(plain, threshold=0.9).forwards == 8 and replace(plain, guidance=0.5).forwards == 12
    assert replace(plain, temperature=0.0).recorded == 0 and replace(plain, block=None).width == 8
    assert plain.heldout(None, None, None) == plain
    assert plain.exact and not replace(plain, order="low_confidence").exact and not replace(plain, guidance=0.5).exact
    assert not replace(plain, temperature=0.0).exact


def test_by_default_two_tokens_are_fixed_in_a_step_in_blocks_of_32() -> None:
    """As d1 samples LLaDA (arXiv:2504.12216, section 4): blocks of 32, and half as many steps as tokens."""
    default = MaskedSampler()
    assert default.width == 32 and default.blocks == 4 and default.length == 2 * default.steps


def test_a_masked_sampler_at_its_limits() -> None:
    MaskedSampler(length=1, steps=1, block=1)
    MaskedSampler(length=4, steps=2, block=2, threshold=0.0)  # a step for each block
    MaskedSampler(length=4, steps=2, block=2, threshold=1.0, temperature=0.0, order_temperature=0.5)
    for options in (
        {"length": 0}, {"block": 0}, {"threshold": -0.1}, {"threshold": 1.1}, {"temperature": -1.0}, {"guidance": -0.1},
        {"order_temperature": -0.1}, {"order": "leftmost", "order_temperature": 0.5},
    ):  # fmt: skip
        with pytest.raises(ValueError, match=list(options)[-1]):
            MaskedSampler(**options)  # type: ignore[arg-type]


def table_of(*places: list[float]) -> TinyText:
    """One distribution per place, whatever the canvas."""
    policy = TinyText(len(places[0]), len(places), dtype=torch.float64)
    with torch.no_grad():
        for place, chances in enumerate(places):
            policy.table[:, :, place] = torch.tensor(chances, dtype=torch.float64).log()
    return policy


@pytest.mark.parametrize(
    ("order", "first"),
    [("max_prob", 1), ("margin", 2), ("neg_entropy", 0), ("leftmost", 0)],
)
def test_which_position_each_order_takes_first(order: str, first: int) -> None:
    """Best .5, .6 and .55; margins 0, .25 and .3; entropies .69, .86 and .91 nats."""
    policy = table_of([0.5, 0.5, 1e-12], [0.6, 0.35, 0.05], [0.55, 0.25, 0.2])
    sampler = MaskedSampler(length=3, steps=3, block=3, order=order)  # type: ignore[arg-type]
    found = trace(make(sampler, policy, 20)).order
    assert found is not None and bool((found[:, first] == 0).all())


def test_positions_from_the_left() -> None:
    found = trace(make(MaskedSampler(length=4, steps=2, block=4, order="leftmost"), TinyText(3, 4), 10))
    assert found.order is not None and found.order.tolist() == [[0, 0, 1, 1]] * 10


def test_the_drawn_token_decides_where_it_is_to_be_likely() -> None:
    """Place 0 draws .9 or .1, place 1 .6 or .4: the first is taken first unless it drew the unlikely one."""
    policy = table_of([0.9, 0.1], [0.6, 0.4])
    found = trace(make(MaskedSampler(length=2, steps=2, block=2, order="low_confidence"), policy, 2000))
    assert found.order is not None
    first = (found.order[:, 0] == 0).double()
    assert float(first.mean()) == pytest.approx(0.9, abs=0.02)


def test_steps_are_shared_out_among_blocks() -> None:
    """Five steps over two blocks are three and two; four positions in three steps are 2, 1, 1."""
    found = trace(make(MaskedSampler(length=8, steps=5, block=4, order="leftmost"), TinyText(2, 8), 3))
    assert found.order is not None and found.order.tolist() == [[0, 0, 1, 2, 3, 3, 4, 4]] * 3


def test_a_threshold_counts_steps_by_positions() -> None:
    """All at once in every block: steps 0 and 2, one forward of each row."""
    rollout = make(MaskedSampler(length=4, steps=2, block=2, threshold=0.0), TinyText(3, 4), 5)
    order = trace(rollout).order
    assert order is not None and order.tolist() == [[0, 0, 2, 2]] * 5 and rollout.forwards == 10


def test_what_reaches_the_threshold_is_fixed() -> None:
    """Best probabilities .5, .7 and .9 of every canvas: at .7 the last two, then the first, which is never sure."""
    policy = table_of([0.5, 0.5], [0.7, 0.3], [0.9, 0.1])
    order = trace(make(MaskedSampler(length=3, steps=3, block=3, threshold=0.7 - 1e-7), policy, 5)).order
    assert order is not None and order.tolist() == [[1, 0, 0]] * 5
    order = trace(make(MaskedSampler(length=3, steps=3, block=3, threshold=0.95), policy, 5)).order
    assert order is not None and order.tolist() == [[2, 1, 0]] * 5  # the best one alone


@pytest.mark.parametrize(
    ("options", "shares"),
    [({}, [1 / 3, 1 / 3, 1 / 3]), ({"schedule": "time"}, [0.333, 0.333, 0.334])],
)
def test_ancestral_sampling_fixes_each_position_by_chance(options: dict, shares: list[float]) -> None:
    """Chances 1/3, 1/2 and 1 in turn, so a third in every step; on Dream's grid 1 - s / t, and the rest at the end."""
    sampler = MaskedSampler(length=4, steps=3, block=4, order="origin", **options)
    order = trace(make(sampler, TinyText(2, 4), 3000)).order
    assert order is not None
    found = torch.bincount(order.flatten(), minlength=3).double() / order.numel()
    assert found.tolist() == pytest.approx(shares, abs=0.015)


def test_what_is_fixed_is_drawn_from_the_tempered_distribution() -> None:
    policy = table_of([0.8, 0.2], [0.5, 0.5])
    for temperature, share in ((1.0, 0.8), (0.5, 16 / 17), (2.0, 2 / 3)):
        sampler = MaskedSampler(length=2, steps=1, block=2, temperature=temperature)
        final = make(sampler, policy, 4000).final
        assert float((final[:, 0] == 0).double().mean()) == pytest.approx(share, abs=0.02)


def test_readers_are_told_what_is_settled() -> None:
    policy, settled = TinyText(3, 6), []
    reader = policy.reader

    def noting(condition):
        read = reader(condition)

        def note(rows, tokens, targets, done):
            settled.append((done, int(targets[0].int().argmax()), len(rows)))
            return read(rows, tokens, targets, done)

        return note

    policy.reader = noting  # type: ignore[method-assign]
    make(MaskedSampler(length=6, steps=3, block=2, order="leftmost"), policy, 4)
    assert settled == [(0, 0, 4), (2, 2, 4), (4, 4, 4)]


@pytest.mark.parametrize("order", ["leftmost", "random", "origin"])
def test_only_positions_that_are_fixed_are_asked_for_where_they_are_known_before(order) -> None:
    """Of 6 masked positions 2 in each of 3 steps: 6 predictions a row instead of 12, and the same tokens."""
    policy, asked = TinyText(3, 6), []
    reader = policy.reader

    def watched(condition):
        read = reader(condition)

        def note(rows, tokens, targets, done):
            asked.append(int(targets.sum()))
            return read(rows, tokens, targets, done)

        return note

    policy.reader = watched  # type: ignore[method-assign]
    rollout = make(MaskedSampler(length=6, steps=3, block=6, order=order), policy, 20)
    assert sum(asked) == 20 * 6
    assert bool((trace(rollout).order >= 0).all())


def test_a_completion_of_blocks_ends_with_padding() -> None:
    policy = TinyText(3, 6, ("a", "b"), end=0)
    policy.pad_token = 2
    sure(policy, 0, [1, 0, 1, 1, 1, 1])
    sure(policy, 1, [1, 1, 1, 1, 0, 1])
    rollout = chosen_prompts(policy, MaskedSampler(length=6, steps=3, block=2, temperature=0.0), ["a", "b"])
    assert rollout.final.tolist() == [[1, 0, 2, 2, 2, 2], [1, 1, 1, 1, 0, 2]]
    found = trace(rollout)
    assert found.tokens.tolist() == [[1, 0, 2, 2, 2, 2], [1, 1, 1, 1, 0, 1]]  # what stands behind the end was shown
    assert found.order is not None and found.order.tolist() == [[0, 0, -1, -1, -1, -1], [0, 0, 1, 1, 2, 2]]
    assert found.ended is not None and found.ended.tolist() == [True, True] and rollout.forwards == 2 + 1 + 1
