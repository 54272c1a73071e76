"""Truncated sampling, scored as it is drawn, and Dream's schedule and order."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from flowrl import composition
from flowrl.errors import UserError
from flowrl.estimators.tokens import Tokens
from flowrl.math.masking import draw_tokens, time_counts, truncate
from flowrl.math.random import seeds
from flowrl.math.tokens import Readout, log_softmax_at, selective_log_softmax
from flowrl.models.tiny_text import TinyText
from flowrl.samplers.causal import CausalSampler
from flowrl.samplers.chunks import sample
from flowrl.samplers.masked import MaskedSampler
from flowrl.types import Draw, IncompatibleError, Rollout, TokenTrace, Truncation, prompts_of
from tests.contract.toys import roll, small, start

CHANCES = torch.tensor([0.4, 0.3, 0.2, 0.1])


# ------------------------------------------------------------------------------------------------ truncated sampling
@pytest.mark.parametrize(
    ("how", "kept"),
    [
        (Truncation(), [0, 1, 2, 3]),
        (Truncation(top_k=2), [0, 1]),
        (Truncation(top_p=0.69), [0, 1]),  # the second crosses .69, and .7 is not reached before it
        (Truncation(top_p=0.71), [0, 1, 2]),
        (Truncation(top_p=0.01), [0]),
        (Truncation(top_p=0.72, top_k=3), [0, 1]),  # of .4/.9 + .3/.9 = .78
        (Truncation(top_p=0.72, top_k=3, nucleus_first=True), [0, 1, 2]),  # of .4 + .3 = .7
    ],
)
def test_which_tokens_stay(how: Truncation, kept: list[int]) -> None:
    order = torch.tensor([2, 0, 3, 1])  # not sorted
    logits = CHANCES[order].log()[None]
    found = truncate(logits, how)[0].isfinite().nonzero()[:, 0].tolist()
    assert found == sorted(order.tolist().index(token) for token in kept)
    with_label = truncate(logits, how, torch.tensor([int((order == 3).nonzero())]))[0]
    assert bool(with_label[order == 3].isfinite().all()) and int(with_label.isfinite().sum()) == len({*kept, 3})


def test_tokens_are_drawn_from_what_stays_with_its_probabilities() -> None:
    numbers = (torch.arange(10_000) + 0.5).double() / 10_000
    logits = CHANCES.log().expand(10_000, -1)
    tokens, logp = draw_tokens(logits, numbers, torch.ones(10_000), Truncation(top_k=3))
    shares = torch.bincount(tokens, minlength=4) / 10_000
    assert torch.allclose(shares, torch.tensor([4 / 9, 3 / 9, 2 / 9, 0.0]), atol=1e-4)
    assert torch.allclose(logp, shares[tokens].log(), atol=1e-3)


def test_impossible_truncations_are_named() -> None:
    for make in (CausalSampler, MaskedSampler):
        with pytest.raises(ValueError, match="top_p=0"):
            make(top_p=0.0)
        with pytest.raises(ValueError, match="top_k=0"):
            make(top_k=0)
    with pytest.raises(UserError, match="top_p=1"):
        composition.build({"use": "grpo", "sampler": {"top_p": 1.5}})


@pytest.mark.parametrize("trained", ["hidden", "weight"])
def test_the_gradient_of_truncated_scores_is_that_of_dense_logits(trained: str) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(6, 5, generator=generator), torch.randn(11, 5, generator=generator)
    labels = torch.randint(0, 10, (6,), generator=generator)
    leaf = hidden if trained == "hidden" else weight
    leaf.requires_grad_()
    how: dict[str, Any] = {"temperature": 0.7, "excluded": (10,), "truncation": Truncation(top_p=0.6, top_k=5)}
    logp, entropy = selective_log_softmax(hidden, weight, None, labels, entropy=True, chunk=4, **how)
    (found,) = torch.autograd.grad(logp.sum(), leaf)
    dense, spread = log_softmax_at(hidden @ weight.T, labels, entropy=True, **how)
    (expected,) = torch.autograd.grad(dense.sum(), leaf)
    assert torch.allclose(logp, dense, atol=1e-5) and torch.allclose(found, expected, atol=1e-5)
    assert entropy is not None and spread is not None and torch.allclose(entropy, spread, atol=1e-5)
    assert float(entropy.max()) < math.log(5) + 1e-6  # of at most five tokens and the label's place
    full, _ = selective_log_softmax(hidden, weight, None, labels, temperature=0.7, excluded=(10,))
    gained = (logp - full).detach()  # what stays shares out the mass of the rest
    assert float(gained.min()) > -1e-6 and float(gained.max()) > 0.05


def test_the_readout_of_truncated_scores() -> None:
    hidden, weight = torch.randn(3, 4), torch.randn(7, 4)
    hidden.requires_grad_()
    cap, how = Readout(softcap=2.0), Truncation(top_k=3)
    logp, _ = selective_log_softmax(hidden, weight, None, torch.tensor([0, 1, 2]), readout=cap, truncation=how)
    dense, _ = log_softmax_at((hidden @ weight.T / 2).tanh() * 2, torch.tensor([0, 1, 2]), truncation=how)
    found, expected = (torch.autograd.grad(value.sum(), hidden)[0] for value in (logp, dense))
    assert torch.allclose(found, expected, atol=1e-5)


def drawn(policy: TinyText, sampler: Any, count: int = 400) -> Rollout:
    draw = Draw.of(seeds(3, "cut", count=count), torch.zeros(count, dtype=torch.long), 0, 0)
    return sample(sampler, policy, policy.condition(prompts_of([""] * count)), draw, 64)


def steps_of(rollout: Rollout) -> Tensor:
    assert isinstance(rollout.trace, TokenTrace) and rollout.trace.order is not None
    return rollout.trace.order


@pytest.mark.parametrize("options", [{"top_p": 0.5}, {"top_k": 1}, {"top_p": 0.8, "top_k": 2, "temperature": 0.6}])
def test_causal_samples_are_scored_by_the_distribution_they_were_drawn_from(options: dict[str, Any]) -> None:
    policy = TinyText(3, 3, causal=True, end=0)
    rollout = drawn(policy, CausalSampler(length=3, **options))
    trace = rollout.trace
    assert isinstance(trace, TokenTrace) and trace.logp is not None
    scored = Tokens()(policy, Tokens().probe(rollout, policy, torch.zeros(400)), rollout.condition)
    assert torch.allclose(scored.logp[trace.mask], trace.logp[trace.mask], atol=1e-6)  # the ratio is 1
    whole = Tokens(truncated=False)
    full = whole(policy, whole.probe(rollout, policy, torch.zeros(400)), rollout.condition)
    assert (
        float((trace.logp - full.logp)[trace.mask].detach().mean()) > 0.05
    )  # the full distribution leaves mass elsewhere
    with pytest.raises(IncompatibleError, match="trust_rollout"):
        replace(whole, trust_rollout=True).probe(rollout, policy, torch.zeros(400))


def test_a_token_that_left_the_nucleus_keeps_a_likelihood() -> None:
    algorithm = small("grpo", kl=0.0, sampler={"top_k": 1, "temperature": 1.0})
    policy = start(algorithm)
    it = roll(algorithm, policy)
    with torch.no_grad():
        policy.table.neg_()  # the best token becomes the worst
    rows = algorithm.estimator.probe(it.rollout, policy, it.draw.seeds)
    logp = algorithm.estimator(policy, rows, it.rollout.condition).logp
    assert bool(logp.isfinite().all()) and float(logp.min()) < -0.1


@pytest.mark.parametrize("order", ["max_prob", "random"])
def test_a_masked_trajectory_is_scored_by_the_distribution_it_was_drawn_from(order: str) -> None:
    """The probability of every completion is the share it is drawn with."""
    policy = TinyText(3, 2, scale=1.5, dtype=torch.float64)
    sampler = MaskedSampler(length=2, steps=2, block=2, order=order, temperature=0.8, top_k=2)
    rollout = drawn(policy, sampler, 4000)
    algorithm = composition.build({"use": "trajectory_pg", "length": 2, "steps": 2, "block": 2})
    rows = algorithm.estimator.probe(rollout, policy, torch.zeros(4000))
    logp = algorithm.estimator(policy, rows, rollout.condition).logp.sum(dim=1).exp()
    code = rollout.final[:, 0] * 3 + rollout.final[:, 1]
    for path in code.unique().tolist():
        mine = code == path
        first = steps_of(rollout)[:, 0] == 0  # which position came first
        for here in (mine & first, mine & ~first):
            if int(here.sum()):
                share = float(here.double().mean()) / (0.5 if order == "random" else 1.0)
                assert float(logp[here][0]) == pytest.approx(share, abs=0.03)


# ------------------------------------------------------------------------------------------------- Dream's sampling
def dream_counts(length: int, steps: int) -> list[int]:
    """Of a canvas, by the formula of its code in float32."""
    times, left, out = torch.linspace(1, 1e-3, steps + 1), length, []
    for i in range(steps):
        count = int(torch.tensor(float(left)) * (1 - times[i + 1] / times[i])) if i < steps - 1 else left
        out.append(count)
        left -= count
    return out


def test_dream_fixes_int_n_one_minus_s_over_t() -> None:
    assert dream_counts(8, 8) == [0, 1, 1, 1, 1, 1, 1, 2]  # the first .999 of a token is none
    for length, steps in ((8, 8), (16, 5), (256, 256), (256, 64), (7, 10)):
        left, found = torch.tensor([length]), []
        for k in range(steps):
            count = left if k == steps - 1 else time_counts(left, k, steps)
            found.append(int(count))
            left = left - count
        assert found == dream_counts(length, steps) and sum(found) == length


def dream(
    policy: TinyText, length: int, steps: int, order: str, temperature: float, top_p: float
) -> tuple[Tensor, int]:
    """One greedy row by Dream's algorithm: probabilities tempered and cut, positions by them, its counts."""
    canvas, forwards = torch.full((1, length), policy.mask_token), 0
    condition = policy.condition(prompts_of([""]))
    for count in dream_counts(length, steps):
        masked = canvas[0] == policy.mask_token
        logits = policy.logits(condition, canvas, masked[None])[:, : policy.vocabulary]
        forwards += count > 0
        logits = logits / temperature if temperature else logits
        ranked, index = logits.sort(dim=-1, descending=True)
        beyond = ranked.softmax(dim=-1).cumsum(dim=-1) > top_p
        beyond = torch.cat([torch.zeros_like(beyond[:, :1]), beyond[:, :-1]], dim=1)
        chance = logits.masked_fill(torch.zeros_like(beyond).scatter(1, index, beyond), -torch.inf).softmax(dim=-1)
        best, token = chance.max(dim=-1)
        top = chance.sort(dim=-1, descending=True).values
        sure = {
            "low_confidence": best,
            "margin": top[:, 0] - top[:, 1],
            "neg_entropy": (chance * (chance + 1e-10).log()).sum(dim=-1),
        }[order]
        for pick in sure.topk(count).indices.tolist():
            canvas[0, masked.nonzero()[pick, 0]] = token[pick]
    return canvas[0], forwards


@pytest.mark.parametrize("order", ["low_confidence", "margin", "neg_entropy"])
@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_rows_agree_with_dream_at_temperature_zero(order: str, top_p: float) -> None:
    for seed in range(20):
        policy = TinyText(3, 5, scale=1.0, seed=seed, dtype=torch.float64)
        for steps in (2, 4, 5):
            sampler = MaskedSampler(
                length=5, steps=steps, block=None, order=order, schedule="time", temperature=0.0, top_p=top_p,
                tempered_order=True,
            )  # fmt: skip
            rollout = drawn(policy, sampler, 1)
            expected, forwards = dream(policy, 5, steps, order, 0.0, top_p)
            assert torch.equal(rollout.final[0], expected) and rollout.forwards == forwards


def test_positions_are_ordered_by_what_tokens_are_drawn_from() -> None:
    """Best of three .50 against .45, best of the two that stay .52 against .62."""
    policy = TinyText(3, 2, dtype=torch.float64)
    with torch.no_grad():
        policy.table[:, :, 0] = torch.tensor([0.45, 0.28, 0.27]).log()
        policy.table[:, :, 1] = torch.tensor([0.50, 0.46, 0.04]).log()
    options: dict[str, Any] = {"length": 2, "steps": 2, "block": None, "order": "max_prob", "top_k": 2}
    for tempered, expected in ((False, [1, 0]), (True, [0, 1])):
        rollout = drawn(policy, MaskedSampler(**options, tempered_order=tempered), 1)
        assert steps_of(rollout)[0].tolist() == expected


def test_a_temperature_of_the_order_draws_positions_from_the_softmax() -> None:
    policy = TinyText(3, 2, scale=1.5, seed=2, dtype=torch.float64)
    sampler = MaskedSampler(length=2, steps=2, block=2, order="max_prob", order_temperature=0.3)
    assert not sampler.exact and MaskedSampler().exact
    rollout = drawn(policy, sampler, 6000)
    state = policy.state(torch.tensor([3, 3]))
    sure = policy.table[0, state].softmax(dim=-1).amax(dim=-1).detach()
    share = (sure / 0.3).softmax(dim=0)
    first = (steps_of(rollout)[:, 0] == 0).double().mean()
    assert float(first) == pytest.approx(float(share[0]), abs=0.025) and 0.05 < float(share[0]) < 0.95
    with pytest.raises(ValueError, match="order_temperature"):
        MaskedSampler(order="random", order_temperature=1.0)
