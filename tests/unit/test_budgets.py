"""Thoughts that are cut at budgets, answers to them, and BRPO's advantages."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from flowrl import composition
from flowrl.errors import UserError
from flowrl.evaluation.decoding import Decoding, sampler_of_algorithm
from flowrl.math.random import derive, seeds
from flowrl.models.tiny_text import TinyText
from flowrl.parts.advantages import GroupCentred
from flowrl.parts.tree_advantages import BudgetRelative
from flowrl.samplers.budgets import BudgetSampler
from flowrl.samplers.causal import CausalSampler
from flowrl.samplers.chunks import sample
from flowrl.samplers.masked import MaskedSampler
from flowrl.types import Draw, IncompatibleError, Rollout, Scores, TokenTrace, prompts_of
from tests.contract.toys import gradients, roll, small, start

SMALL = {"length": 6, "budgets": (1, 2, 4), "answers": 2, "think_end": "", "cut": "", "bridge": ""}


def draw_of(each: int, groups: int = 2) -> Draw:
    group = torch.arange(groups).repeat_interleave(each)
    prompts = prompts_of(["ab"[g] for g in group])
    return Draw.of(seeds(0, "budget", count=len(group)), group, 0, derive(0, "shared"), prompts)


def made_by(sampler: CausalSampler, draw: Draw, rows: int = 1000, end: int = -1) -> tuple[Rollout, TokenTrace]:
    policy = TinyText(3, sampler.length, ("a", "b"), causal=True, end=end)
    made = sample(sampler, policy, policy.condition(draw.prompts), draw, rows)
    assert isinstance(made.trace, TokenTrace)
    return made, made.trace


def scores_of(reward: Tensor, budgets: int, answers: int, group: Tensor) -> Scores:
    place = torch.arange(len(reward)) % int((group == 0).sum())
    nodes = torch.stack([place // (budgets * answers) * budgets * answers, place // answers * answers, place], dim=1)
    every = torch.ones(len(reward), dtype=torch.bool)
    return Scores(reward[:, None], torch.ones(1).double(), ("r",), group, group, every, nodes=nodes)


def test_a_thought_is_drawn_once_and_cut_at_its_budgets() -> None:
    sampler = BudgetSampler(**SMALL)
    made, trace = made_by(sampler, draw_of(12))
    assert sampler.tree == 6 and sampler.room == 2
    tokens = trace.tokens.view(4, 3, 2, 6)
    for budget, cut in enumerate((1, 2, 4)):
        whole = tokens[:, 2, :1, :cut]
        assert torch.equal(tokens[:, budget, :, :cut], whole.expand(-1, 2, -1))
    # of each thought, what a budget adds counts once, in its first answer
    wanted = torch.zeros(3, 2, 6, dtype=torch.int64) - 1
    wanted[0, 0, 0], wanted[1, 0, 1], wanted[2, 0, 2:4] = 0, 0, 0
    for budget, cut in enumerate((1, 2, 4)):
        wanted[budget, :, cut : cut + 2] = 1
    assert trace.event is not None
    assert torch.equal(trace.event.view(4, 3, 2, 6), wanted.expand(4, -1, -1, -1))
    assert torch.equal(trace.mask, trace.event >= 0)
    assert trace.node is not None and trace.node[:7].tolist() == [
        [0, 0, 0], [0, 0, 1], [0, 2, 2], [0, 2, 3], [0, 4, 4], [0, 4, 5], [6, 6, 6]
    ]  # fmt: skip
    assert made.forwards == 4 * (4 + 3 * 2 * 2)  # instead of 24 x 6
    assert len({tuple(row) for row in trace.tokens.tolist()}) > 12


def test_samples_do_not_depend_on_the_batch() -> None:
    sampler = BudgetSampler(**SMALL)
    whole, _ = made_by(sampler, draw_of(12), end=0)
    for rows in (1, 5, 12):
        pieces, trace = made_by(sampler, draw_of(12), rows=rows, end=0)
        assert torch.equal(whole.final, pieces.final) and torch.equal(whole.trace.mask, trace.mask)
        assert pieces.forwards >= whole.forwards


def test_logp_is_that_of_the_distributions_drawn_from() -> None:
    made, trace = made_by(BudgetSampler(**SMALL), draw_of(12), end=0)
    policy = TinyText(3, 6, ("a", "b"), causal=True, end=0)
    found = policy.score(made.condition, trace.tokens, trace.mask, trace.tokens).logp
    assert trace.logp is not None
    assert torch.allclose(torch.where(trace.mask, trace.logp, 0.0), found, atol=1e-6)


def test_one_budget_and_one_answer_are_a_plain_sampler_bit_for_bit() -> None:
    draw = draw_of(6)
    cut = BudgetSampler(length=6, budgets=(3,), answers=1, think_end="", cut="", bridge="")
    for end in (-1, 0):
        found, wanted = made_by(cut, draw, end=end)[1], made_by(CausalSampler(length=6), draw, end=end)[1]
        assert torch.equal(found.mask, wanted.mask) or end == 0
        inside = found.mask & wanted.mask
        assert torch.equal(found.tokens[inside], wanted.tokens[inside])
        assert torch.equal(found.logp[inside], wanted.logp[inside])


def test_a_thought_that_ends_is_whole_for_later_budgets_and_the_bridge_is_not_trained() -> None:
    sampler = BudgetSampler(length=7, budgets=(1, 3), answers=2, think_end="2", cut="12", bridge="0")
    _, trace = made_by(sampler, draw_of(40, groups=1))
    assert trace.event is not None
    seen = set()
    for row in range(0, 40, 4):
        thought = trace.tokens[row + 2, :3].tolist()
        length = thought.index(2) + 1 if 2 in thought else 3
        whole = 2 in thought
        seen.add((length, whole))
        for place, budget in enumerate((1, 3)):
            for answer in range(2):
                tokens, event = (value[row + 2 * place + answer].tolist() for value in (trace.tokens, trace.event))
                end = min(budget, length)
                behind = [0] if whole and length <= budget else [1, 2, 0]
                assert tokens[:end] == thought[:end] and tokens[end : end + len(behind)] == behind
                assert event[end : end + len(behind)] == [-1] * len(behind)
                last = min(end + sampler.room, 7)
                assert event[end + len(behind) : last] == [1] * (last - end - len(behind))
                fresh = [0 if answer == 0 and k >= (0, 1)[place] else -1 for k in range(end)]
                assert event[:end] == fresh
    assert (1, True) in seen and (3, False) in seen


def test_the_worked_case() -> None:
    reward = torch.tensor([0.0, 1.0, 1.0, 1.0]).double()
    scores = scores_of(reward, 2, 1, torch.zeros(4, dtype=torch.int64))
    found = BudgetRelative(prior=(0.5, 0.5))(scores, {})
    assert found[:, 0].tolist() == pytest.approx([-0.25, 0.25, 0.25, 0.0])
    assert found[:, 1].tolist() == pytest.approx([-0.5, 0.0, 0.5, 0.0])  # one answer: compared with the group's


def test_advantages_against_loops() -> None:
    torch.manual_seed(0)
    groups, thoughts, budgets, answers = 2, 3, 4, 2
    reward = torch.rand(groups, thoughts, budgets, answers).double()
    group = torch.arange(groups).repeat_interleave(thoughts * budgets * answers)
    prior = torch.tensor([1.0, 2.0, 3.0, 4.0]).double()
    found = BudgetRelative(prior=tuple(prior.tolist()))(scores_of(reward.flatten(), budgets, answers, group), {})
    p, r = prior / prior.sum(), reward.mean(dim=3)
    for b in range(groups):
        for g in range(thoughts):
            for s in range(budgets):
                earned = (r[b, g, s:] * p[s:]).sum()
                others = (r[b, :, s:] * p[s:]).sum(dim=1).mean()
                weights = 2.0 ** torch.arange(s)
                own = (r[b, g, :s] * weights).sum() / weights.sum() * p[s:].sum() if s else 0.0
                wanted = float(earned - (s * own + (budgets - s) * others) / budgets)
                for a in range(answers):
                    row = ((b * thoughts + g) * budgets + s) * answers + a
                    assert float(found[row, 0]) == pytest.approx(wanted, abs=1e-12)
                    assert float(found[row, 1]) == pytest.approx(float(reward[b, g, s, a] - r[b, g, s]), abs=1e-12)


def test_one_budget_is_dr_grpo() -> None:
    group = torch.arange(2).repeat_interleave(4)
    scores = scores_of(torch.rand(8).double(), 1, 1, group)
    plain = GroupCentred(scale="none", clip=None)(scores, {})
    assert torch.allclose(BudgetRelative()(scores, {}), plain[:, None].expand(-1, 2), atol=1e-15)
    one = small("brpo", budgets=(2,), answers=1, think_end="")
    policy = start(one)
    it = roll(one, policy)
    dr = small("dr_grpo")
    other = replace(it, advantage=dr.advantage(it.scores, {}))
    wanted = gradients(dr, other)[0]
    assert float((gradients(one, it)[0] - wanted).norm()) <= 1e-6 * float(wanted.norm())


def test_mistakes_are_told_before_a_model_is_loaded() -> None:
    for spec, words in (
        ({"budgets": [4, 2]}, "should rise"),
        ({"budgets": [100], "length": 100}, "leave room"),
        ({"answers": 0}, "at least 1"),
        ({"sampler": {"engine": "vllm"}}, "share tokens"),
    ):
        with pytest.raises(UserError, match=words):
            composition.build({"use": "brpo", **spec})
    with pytest.raises(IncompatibleError, match="are 2 tokens, and an answer has 2"):
        made_by(BudgetSampler(**{**SMALL, "bridge": "12"}), draw_of(6))
    with pytest.raises(IncompatibleError, match="think_end='12' is 2 tokens"):
        made_by(BudgetSampler(**{**SMALL, "think_end": "12"}), draw_of(6))
    with pytest.raises(IncompatibleError, match="3 weights, and there are 2"):
        BudgetRelative(prior=(1, 1, 1))(scores_of(torch.rand(4).double(), 2, 1, torch.zeros(4).long()), {})


def test_held_out_completions_are_plain() -> None:
    plain = BudgetSampler(**SMALL).heldout(None, None, 0.0)
    assert type(plain) is CausalSampler and (plain.length, plain.temperature) == (6, 0.0)
    for name in ("brpo", "d_treerpo"):  # of other lengths, too short for budgets and levels
        shorter = sampler_of_algorithm(name, Decoding(), Decoding(length=16))
        assert type(shorter) in (CausalSampler, MaskedSampler) and shorter.length == 16
