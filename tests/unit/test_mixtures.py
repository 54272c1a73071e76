"""Demonstrations beside the policy's own samples: identities of the mixtures, by enumeration where there is one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from flowrl import composition
from flowrl.errors import UserError
from flowrl.parts.advantages import GroupCentred
from flowrl.parts.aggregations import DecisionMean, PerSource, SampleMean
from flowrl.parts.comparisons import AllSources
from flowrl.parts.loss_masks import TopEntropy
from flowrl.parts.mixtures import BySource, Demonstrated, GroupAlignment, ShapedProbability
from flowrl.parts.objectives import Clipped, ScoreFunction
from flowrl.parts.records import Imitate
from flowrl.parts.schedules import Linear, WarmupCosine
from flowrl.parts.selections import BySuccess
from flowrl.samplers.chunks import take
from flowrl.samplers.masked import MaskedSampler
from flowrl.samplers.mixed import Mixed
from flowrl.types import DATA, POLICY, Batch, IncompatibleError, Likelihood, Rows, Scores
from tests.contract.toys import GROUP, PROMPTS, Iteration, disturb, gradients, roll, small, start


def part_of(it: Iteration, rows: Tensor) -> Iteration:
    """Some samples of an iteration, as if no others had been made."""
    held = {
        name: getattr(it.scores, name) for name in ("rewards", "group", "prompt_ids", "valid", "source", "feedback")
    }
    cut = {name: None if value is None else value[rows] for name, value in held.items()}
    scores = replace(it.scores, nodes=None, **cut)
    return replace(it, rollout=take(it.rollout, rows), scores=scores, advantage=it.advantage[rows])


def alone(name: str, it: Iteration, rows: Tensor, **spec: Any) -> Tensor:
    """The gradient of another preset on some of the samples."""
    algorithm = small(name, **spec)
    some = part_of(it, rows)
    return gradients(algorithm, replace(some, advantage=algorithm.advantage(some.scores, {})))[0]


def rolled(name: str, **spec: Any) -> tuple[Any, Iteration, Tensor, Tensor]:
    """A preset, an iteration off policy, and the rows of own samples and of demonstrations."""
    algorithm = small(name, **spec)
    policy = start(algorithm)
    it = roll(algorithm, policy)
    data = it.rollout.source == DATA
    return algorithm, it, (~data).nonzero()[:, 0], data.nonzero()[:, 0]


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-5, atol=1e-8) and float(b.norm()) > 0


@pytest.mark.parametrize("mu", [0.0, 0.3, 1.0])
def test_chord_is_grpo_and_sft_by_mu(mu: float) -> None:
    chord, it, own, data = rolled("chord", peak=mu, valley=mu, phi=False)
    rl = alone("grpo", it, own, kl=0.0)
    sft = alone("sft", it, data, aggregation="sample_mean")
    assert close(gradients(chord, it)[0], (1 - mu) * rl + mu * sft)


def test_chord_without_demonstrations_is_grpo_on_the_same_seeds() -> None:
    """What the policy samples does not depend on the demonstrations beside it, nor does any baseline."""
    chord, grpo = small("chord", peak=0.0, valley=0.0), small("grpo", kl=0.0)
    mixed, plain = (roll(algorithm, start(algorithm)) for algorithm in (chord, grpo))
    own = (mixed.rollout.source == POLICY).nonzero()[:, 0]
    assert torch.equal(mixed.rollout.final[own], plain.rollout.final[own])
    worse = replace(mixed.scores, rewards=torch.where(mixed.scores.own[:, None], mixed.scores.rewards, 1e6))
    assert torch.equal(chord.advantage(worse, {})[own], mixed.advantage[own])
    some = part_of(plain, own)
    wanted = gradients(grpo, replace(some, advantage=grpo.advantage(some.scores, {})))[0]
    assert close(gradients(chord, mixed)[0], wanted)


def test_the_weight_of_uncertain_tokens() -> None:
    logp = torch.tensor([[0.5, 0.9, 1 - 1e-9, 1e-9]]).double().log().requires_grad_()
    known = Batch(torch.zeros(1, 4), Likelihood(torch.zeros(1, 4)), torch.ones(1, 4), torch.zeros(1).long(), Rows())
    slopes = torch.autograd.grad(Demonstrated(tokens="uncertain")(Likelihood(logp), known).sum(), logp)[0][0]
    assert slopes.tolist() == pytest.approx([-0.25, -0.09, 0, 0], abs=1e-6)


@pytest.mark.parametrize(("gate", "sft_alone"), [(-1, False), (GROUP, True)])
def test_hpt_at_the_ends_of_its_gate(gate: int, sft_alone: bool) -> None:
    hpt, it, own, data = rolled("hpt", gate=gate)
    wanted = alone("sft", it, data) if sft_alone else alone("grpo", it, own, kl=0.0, aggregation="decision_mean")
    assert close(gradients(hpt, it)[0], wanted)


def test_dypo_without_pairs_and_gate_is_grpo() -> None:
    dypo, it, own, _ = rolled("dypo", alpha=1.0, gate=False)
    disturb(it.policy, 0.02)
    assert close(gradients(dypo, it)[0], alone("grpo", it, own, kl=0.0))


def test_selection_by_success() -> None:
    rewards = torch.tensor([9, 0, 0, 9, 1, 0, 9, 1, 1]).double()[:, None]
    group, source = torch.arange(3).repeat_interleave(3), torch.tensor([DATA, POLICY, POLICY] * 3)
    scores = Scores(rewards, torch.ones(1), ("r",), group, group, torch.ones(9).bool(), source=source)
    kept = {
        gate: BySuccess(gate, drop_solved=drop)(scores, torch.zeros(9)).int().tolist()
        for gate, drop in ((-1, False), (0, False), (1, True), (2, False))
    }
    assert kept[-1] == [0, 1, 1, 0, 1, 1, 0, 1, 1]
    assert kept[0] == [1, 0, 0, 0, 1, 1, 0, 1, 1]
    assert kept[1] == [1, 0, 0, 1, 0, 0, 0, 0, 0]  # the solved group has nothing to learn from
    assert kept[2] == [1, 0, 0] * 3


def test_only_mixed_groups_make_pairs_and_each_pair_pulls_apart() -> None:
    part = GroupAlignment(ScoreFunction(), alpha=0.0, beta=1.0)
    logp = torch.zeros(5, 1, dtype=torch.float64, requires_grad=True)
    extra = {"log_ratio/reference": torch.zeros(5, 1).double()}
    advantage = torch.tensor([1.0, -1.0, 0.5, 0.5, 3.0]).double()[:, None]
    group, source = torch.tensor([0, 0, 1, 1, 0]), torch.tensor([POLICY] * 4 + [DATA])
    known = Batch(advantage, Likelihood(torch.zeros(5, 1)), torch.ones(5, 1), group, Rows(), source=source)
    loss = part(Likelihood(logp, extra), known)
    assert loss[:, 0].tolist() == pytest.approx([0.6931, 0.6931, 0, 0, 0], abs=1e-4)
    slopes = torch.autograd.grad(loss[0, 0], logp)[0][:, 0].tolist()
    assert slopes == pytest.approx([-0.5, 0.5, 0, 0, 0])  # the demonstration is nobody's rival


def test_psft_starts_as_sft_and_stops_at_its_clip() -> None:
    psft = small("psft")
    it = roll(psft, start(psft))
    assert close(gradients(psft, it)[0], gradients(small("sft"), it)[0])
    logp = torch.tensor([[1.3, 1.0, 0.2]]).double().log().requires_grad_()
    known = Batch(
        torch.ones(1, 3), Likelihood(torch.zeros(1, 3).double()), torch.ones(1, 3), torch.zeros(1).long(), Rows()
    )
    slopes = torch.autograd.grad(psft.objective(Likelihood(logp), known).sum(), logp)[0]
    assert slopes[0].tolist() == pytest.approx([0, -1, -0.2])


@pytest.mark.parametrize("wrong", [0.0, -0.1, 0.4])
def test_otr_is_the_expectation_over_sampled_tokens(wrong: float) -> None:
    """Draw one of three tokens, 1 for the demonstration's and ``wrong`` for others, times its score."""
    theta = torch.tensor([0.4, -0.3, 0.1]).double().requires_grad_()
    live, told = theta.log_softmax(dim=0), 1
    rewards = torch.full((3,), wrong).double()
    rewards[told] = 1.0
    wanted = torch.autograd.grad(-(live.exp().detach() * rewards * live).sum(), theta)[0]
    part = composition.build({"use": "otr", "wrong": wrong}).objective
    live = theta.log_softmax(dim=0)
    known = Batch(torch.ones(1, 1), Likelihood(torch.zeros(1, 1)), torch.ones(1, 1), torch.zeros(1).long(), Rows())
    found = torch.autograd.grad(part(Likelihood(live[told].view(1, 1)), known).sum(), theta)[0]
    assert torch.allclose(found, wanted, atol=1e-12)


def test_luffy_shapes_probabilities_and_counts_demonstrations_in_the_baseline() -> None:
    logp = torch.tensor([[0.01, 0.1, 0.9]]).double().log().requires_grad_()
    known = Batch(torch.ones(1, 3), Likelihood(torch.zeros(1, 3)), torch.ones(1, 3), torch.zeros(1).long(), Rows())
    loss = ShapedProbability(0.1)(Likelihood(logp), known)
    assert loss[0].tolist() == pytest.approx([-0.01 / 0.11, -0.5, -0.9])
    slopes = torch.autograd.grad(loss.sum(), logp)[0][0]  # gamma p / (p + gamma)^2: an unlikely token has more than p
    assert slopes.tolist() == pytest.approx([-0.001 / 0.0121, -0.25, -0.09])
    luffy, it, own, _ = rolled("luffy")
    best = replace(it.scores, rewards=torch.where(it.scores.own[:, None], it.scores.rewards, 5.0))
    assert float(luffy.advantage(best, {})[own].max()) < float(
        GroupCentred(scale="none", clip=None)(best, {})[own].max()
    )
    assert torch.equal(AllSources(Imitate())(best, {}), Imitate()(best, {}))


def test_egspo_without_attenuation_is_ppo_and_with_all_of_it_forking_tokens() -> None:
    egspo = small("egspo", attenuation=1.0)
    it = roll(egspo, start(egspo))
    assert torch.equal(gradients(egspo, it)[0], gradients(small("ppo"), it)[0])
    live = Likelihood(torch.zeros(1, 4), {"entropy": torch.tensor([[0.1, 0.9, 0.2, 0.8]])})
    known = Batch(torch.ones(1, 4), live, torch.ones(1, 4), torch.zeros(1).long(), Rows())
    assert TopEntropy(0.5, rest=0.25)(live, known).tolist() == [[0.25, 1, 0.25, 1]]
    assert TopEntropy(0.5)(live, known).tolist() == [[0, 1, 0, 1]]


# --------------------------------------------------------------------------------------------------------------- parts
def test_shares_per_source_do_not_depend_on_counts() -> None:
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0]]).bool()
    source = torch.tensor([DATA, POLICY, POLICY])
    weights = PerSource(SampleMean(), 0.3)(mask, source=source)
    assert weights.sum(dim=1).tolist() == pytest.approx([0.3, 0.35, 0.35])
    weights = PerSource(DecisionMean(), 0.3)(mask, source=source)
    assert weights.sum(dim=1).tolist() == pytest.approx([0.3, 0.7 / 3, 1.4 / 3])
    lone = PerSource(SampleMean(), 0.3)(mask, source=torch.zeros(3).long())
    assert float(lone.sum()) == pytest.approx(0.7) and bool(torch.isfinite(lone).all())  # no demonstrations: no NaN
    assert float(PerSource(SampleMean(), 0.3)(mask).sum()) == pytest.approx(0.7)


def test_schedules() -> None:
    line = Linear(sets="aggregation.share", start=1.0, end=0.2, iterations=4)
    assert [round(line(0.0, {}, i), 6) for i in range(7)] == [1, 0.8, 0.6, 0.4, 0.2, 0.2, 0.2]
    wave = WarmupCosine(sets="x", peak=1.0, valley=0.0, warmup=2, decay=4)
    assert [round(wave(0.0, {}, i), 4) for i in range(8)] == [0, 0.5, 1, 0.8536, 0.5, 0.1464, 0, 0]


def test_the_schedule_of_chord_starts_where_the_algorithm_does() -> None:
    for spec in ({"warmup": 5, "peak": 0.8}, {"peak": 0.8, "valley": 0.1}):
        made = composition.build({"use": "chord", **spec})
        mu = made.coefficients[0]
        assert made.aggregation.share == mu(0.0, {}, 0) and mu.sets == "aggregation.share"


def test_an_objective_for_each_source() -> None:
    part = BySource(Clipped(0.1, 0.1), ShapedProbability())
    assert (part.coupled, part.needs_old_logp, part.skips_zero_advantage, part.reference) == (False, True, True, "")
    assert not BySource(ScoreFunction()).needs_old_logp and not BySource(ScoreFunction()).skips_zero_advantage
    aligned = BySource(GroupAlignment(Clipped()))
    assert aligned.coupled and aligned.reference == "reference" and aligned.clip_range == (0.2, 0.2)
    live = Likelihood(torch.full((2, 1), -1.0))
    known = Batch(torch.ones(2, 1), live, torch.ones(2, 1), torch.zeros(2).long(), Rows(), source=torch.tensor([0, 1]))
    assert part(live, known)[:, 0].tolist() == pytest.approx([-1.0, -0.3679 / 0.4679], abs=1e-3)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"use": "chord", "sampler": {"columns": []}}, "columns"),
        ({"use": "chord", "peak": 2.0, "valley": 2.0}, "share=2.0"),
        ({"use": "chord", "warmup": -1}, "warmup=-1"),
        ({"use": "otr", "wrong": 1.0}, "wrong=1.0"),
        ({"use": "luffy", "gamma": 0.0}, "gamma=0.0"),
        ({"use": "dypo", "alpha": 3.0}, "alpha=3.0"),
        ({"use": "hpt", "sampler": {"use": "mixed", "sampler": "masked_sampler"}}, "autoregressive"),
    ],
)
def test_bad_options_are_named(spec: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        composition.build(spec)
    with pytest.raises(ValueError, match="MaskedSampler"):
        Mixed(sampler=MaskedSampler())


def test_the_record_of_a_mixture() -> None:
    algorithm, it, own, data = rolled("chord")
    trace = it.rollout.trace
    assert bool(trace.logp[data].isnan().all()) and not bool(trace.logp[own].isnan().any())
    assert bool(it.rollout.feedback[own].isnan().all()) and it.rollout.feedback[data].tolist() == [1.0] * len(PROMPTS)
    texts = it.policy.decode(it.rollout.final[data])
    assert texts == [it.draw.prompts[int(row)].columns["completion"] for row in data]
    assert algorithm.min_group == 3 and type(algorithm.sampler.heldout(None, None, None)).__name__ == "CausalSampler"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"estimator": {"trust_rollout": True}}, "trust_rollout"),
        ({"token_advantage": [{"use": "truncated_importance"}]}, "TruncatedImportance"),
    ],
)
@pytest.mark.parametrize("name", ["chord", "nash_md"])
def test_probabilities_that_are_not_known_are_not_taken_for_the_samplers(name: str, changes: dict, words: str) -> None:
    algorithm = small(name, **changes)
    it = roll(algorithm, start(algorithm))
    if name == "nash_md" and "estimator" not in changes:
        gradients(algorithm, it)  # rivals are masked: only what is trained has to be known
        return
    with pytest.raises(IncompatibleError, match=words):
        gradients(algorithm, it)
