"""What the nouns carry besides a policy's own samples: each seam on a toy, against numbers worked out apart."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from flowrl.composition import build
from flowrl.estimators.tokens import Tokens
from flowrl.estimators.transitions import Transitions
from flowrl.math.flow import FlowSDE
from flowrl.math.random import seeds
from flowrl.models.tiny_flow import TinyFlow
from flowrl.models.tiny_text import TinyText
from flowrl.parts.advantages import GroupCentred, LeaveOneOut, PromptTracker
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.coefficients import update_coefficients, with_coefficients
from flowrl.parts.objectives import ScoreFunction
from flowrl.parts.selections import NonzeroAdvantage
from flowrl.parts.token_advantages import spread
from flowrl.samplers.chunks import joined, sample, take
from flowrl.samplers.flow import FlowSampler
from flowrl.samplers.windows import EveryStep
from flowrl.step import UpdateSettings, improve
from flowrl.types import DATA, POLICY, Draw, IncompatibleError, Rollout, Scores, prompts_of
from tests.contract.toy_worlds import (
    Ascent,
    Closeness,
    FixedWeights,
    Growing,
    OneStep,
    PerSource,
    PerTurn,
    PointMass,
    Recorded,
    Returns,
    TopEntropy,
    TwoTurns,
    answer_of,
    recorded_prompts,
)
from tests.contract.toys import MODES, Iteration, Recorder, disturb, gradients, roll, small, start


def scores_of(rewards: Tensor, group: Tensor, rollout: Rollout | None = None) -> Scores:
    ok = torch.ones(len(group)).bool()
    made = Scores(rewards.double()[:, None], torch.ones(1).double(), ("r",), group, group, ok)
    return made if rollout is None else replace(made, source=rollout.source, feedback=rollout.feedback)


def update(
    algorithm: Algorithm, policy: Any, rollout: Rollout, scores: Scores, advantage: Tensor, **settings: Any
) -> tuple[Tensor, dict[str, float]]:
    """The gradient of one optimiser batch, and the metrics."""
    recorder = Recorder(policy.parameters())
    options = UpdateSettings(max_grad_norm=1e9, **settings)
    metrics = improve(policy, recorder, algorithm, rollout, scores, advantage, options)
    return recorder.gradients[0], metrics


def flat(policy: Any, loss: Tensor) -> Tensor:
    found = torch.autograd.grad(loss, policy.parameters(), allow_unused=True)
    pairs = zip(found, policy.parameters(), strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs])


# ------------------------------------------------------------------------------------------------------ recorded data
LATENTS = torch.tensor([[3.0, 1.0], [0.5, -2.0], [1.0, 1.0]])
RATINGS = torch.tensor([0.9, 0.1, 0.5])


def recorded(rows: int = 10) -> tuple[TinyFlow, Rollout]:
    policy = TinyFlow(MODES, prompts=("a", "b"))
    prompts = recorded_prompts(LATENTS, RATINGS) * 3
    draw = Draw.of(torch.arange(3), torch.zeros(3, dtype=torch.long), 0, 0, prompts)
    return policy, sample(Recorded(), policy, policy.condition(draw.prompts), draw, rows)


@pytest.mark.parametrize("rows", [1, 2, 10])
def test_a_recorded_sample_is_read_by_its_place_whatever_the_batch(rows: int) -> None:
    _, rollout = recorded(rows)
    assert torch.equal(rollout.final, LATENTS) and rollout.source.tolist() == [DATA] * 3
    assert rollout.feedback is not None and torch.equal(rollout.feedback, RATINGS.double())


def test_rows_of_a_rollout_are_cut_and_joined_with_all_that_belongs_to_them() -> None:
    _, rollout = recorded()
    parts = [take(rollout, torch.tensor(rows)) for rows in ([2], [0, 1])]
    again = joined(parts, rollout.condition, rollout.group)
    order = torch.tensor([2, 0, 1])
    for name in ("final", "seeds", "source", "feedback"):
        assert torch.equal(getattr(again, name), getattr(rollout, name)[order]), name


@pytest.mark.parametrize("part", [GroupCentred(), GroupCentred(scale="global"), LeaveOneOut(), PromptTracker(4, 2)])
def test_recorded_samples_do_not_move_the_baseline(part: Any) -> None:
    own = torch.tensor([0.1, 0.5, 0.9])
    alone = part(scores_of(own, torch.zeros(3).long()), {})
    rewards, group = torch.cat([own, torch.tensor([7.0])]), torch.zeros(4).long()
    source = torch.tensor([POLICY] * 3 + [DATA])
    mixed = part(replace(scores_of(rewards, group), source=source), {})
    torch.testing.assert_close(mixed[:3], alone)
    assert float(mixed[3]) > float(mixed[:3].max())  # measured by the baseline of the others
    moved = part(scores_of(rewards, group), {})
    assert not torch.allclose(moved[:3], alone, atol=1e-3)  # as one of the policy's own it would move it


def test_an_aggregation_may_weigh_sources_apart() -> None:
    """A quarter of the weight to the one recorded sample, the rest to two of the policy's."""
    mask = torch.tensor([[True, True], [True, False], [True, True]])
    weight = PerSource(0.25)(mask, 1, torch.tensor([POLICY, POLICY, DATA]))
    torch.testing.assert_close(weight, torch.tensor([[0.25, 0.25], [0.25, 0], [0.125, 0.125]]))
    algorithm = replace(build("rwr"), aggregation=PerSource(0.25))
    policy, rollout = recorded()
    rollout = replace(rollout, source=torch.tensor([POLICY, POLICY, DATA]))
    advantage = torch.tensor([1.0, 2.0, 3.0]).double()
    found, _ = update(algorithm, policy, rollout, scores_of(RATINGS, rollout.group, rollout), advantage)
    rows = algorithm.estimator.probe(rollout, policy, rollout.seeds)
    logp = algorithm.estimator(policy, rows, rollout.condition).logp.mean(dim=1)
    wanted = flat(policy, -(0.375 * logp[0] + 0.375 * 2 * logp[1] + 0.25 * 3 * logp[2]))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-7)


# ---------------------------------------------------------------------------------------------------------- two turns
def conversation(mask: tuple[bool, ...] = (True, False, True)) -> tuple[TinyText, Rollout]:
    policy = TinyText(3, 3, ("a", "b"), causal=True, end=-1, scale=0.8)
    draw = Draw.of(seeds(0, "t", count=12), torch.zeros(12, dtype=torch.long), 0, 0, [prompts_of("ab")[0]] * 12)
    rollout = sample(TwoTurns(), policy, policy.condition(draw.prompts), draw, 5)
    trace = replace(rollout.trace, mask=torch.tensor(mask).expand(12, 3))
    return policy, replace(rollout, trace=trace)


def dialogue(**parts: Any) -> Algorithm:
    return Algorithm(sampler=TwoTurns(), estimator=Tokens(), advantage=PerTurn(), objective=ScoreFunction(), **parts)


def test_one_row_holds_both_turns_and_the_environment_between_them() -> None:
    policy, rollout = conversation()
    tokens, trace = rollout.final, rollout.trace
    assert torch.equal(tokens[:, 1], answer_of(tokens[:, 0])) and trace.event.tolist() == [[0, -1, 1]] * 12
    scores = scores_of(torch.zeros(12), rollout.group, rollout)
    algorithm = replace(build("grpo"), sampler=TwoTurns(), estimator=Tokens(), advantage=PerTurn(), regularizers=())
    _, metrics = update(algorithm, policy, rollout, scores, PerTurn()(scores, {}), updates=2)
    assert metrics["ratio/first_max_deviation"] < 1e-6


def test_a_token_of_the_environment_has_exactly_no_gradient() -> None:
    """Of the table's entries that only the second place reads; as a decision it would have one."""
    policy, rollout = conversation()
    scores = scores_of(torch.zeros(12), rollout.group, rollout)
    advantage = torch.arange(12.0).double()
    count = policy.table.numel()
    found = update(dialogue(), policy, rollout, scores, advantage)[0][:count].view_as(policy.table)
    assert bool((found[:, :, 1] == 0).all()) and bool((found[:, :, 0] != 0).any()) and bool((found[:, :, 2] != 0).any())
    _, counted = conversation((True, True, True))
    wrong = update(dialogue(), policy, counted, scores, advantage)[0][:count].view_as(policy.table)
    assert bool((wrong[:, :, 1] != 0).any())


@pytest.mark.parametrize("micro_batch", [1, 100])
def test_every_turn_has_its_own_advantage(micro_batch: int) -> None:
    policy, rollout = conversation()
    scores = scores_of(torch.zeros(12), rollout.group, rollout)
    advantage = PerTurn()(scores, {})
    assert advantage.shape == (12, 2) and not torch.equal(advantage[:, 0], advantage[:, 1])
    found, _ = update(dialogue(), policy, rollout, scores, advantage, micro_batch=micro_batch)
    logp = policy.score(rollout.condition, rollout.final, rollout.trace.mask, rollout.final).logp
    wanted = flat(policy, -(advantage[:, 0] * logp[:, 0] + advantage[:, 1] * logp[:, 2]).sum() / (12 * 2))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-7)
    even, _ = update(dialogue(), policy, rollout, scores, advantage[:, :1].expand(12, 2))
    whole, _ = update(dialogue(), policy, rollout, scores, advantage[:, 0])
    assert torch.equal(even, whole)  # the same of both turns is that of the sample


def test_advantages_of_events_reach_their_decisions() -> None:
    _, rollout = conversation()
    rows = Tokens().probe(rollout, TinyText(3, 3, causal=True), rollout.seeds)
    advantage = torch.arange(24.0).view(12, 2)
    wide = spread(advantage, rows)
    assert torch.equal(wide[:, 0], advantage[:, 0]) and torch.equal(wide[:, 2], advantage[:, 1])
    assert bool((wide[:, 1] == 0).all())  # of no event
    assert spread(advantage[:, 0], rows)[3].tolist() == [6, 6, 6]
    both = spread(advantage, rows, channels=True)
    assert both.shape == (12, 3, 2) and both[3].tolist() == [[6, 7]] * 3
    with pytest.raises(IncompatibleError, match=r"that of 1 events, and the decisions are of 2"):
        spread(advantage[:, :1], rows)
    with pytest.raises(IncompatibleError, match="no channels without a combination"):
        spread(advantage[..., None], rows)
    with pytest.raises(IncompatibleError, match="one column per channel, because combination is set"):
        spread(advantage[:, 0], rows, channels=True)


def test_a_part_of_the_recorded_steps_knows_which_steps_they_are() -> None:
    """Every decision is its own event; of a random half the step that it was."""
    policy = TinyFlow(MODES, prompts=("a",))
    sampler = FlowSampler(steps=9, dynamics=FlowSDE(0.7), window=EveryStep())
    draw = Draw.of(seeds(0, "s", count=6), torch.zeros(6, dtype=torch.long), 0, 0, prompts_of(["a"] * 6))
    rollout = sampler(policy, policy.condition(draw.prompts), draw)
    every = Transitions().probe(rollout, policy, draw.seeds)
    half = Transitions(fraction=0.5).probe(rollout, policy, draw.seeds)
    assert every.events.tolist() == [list(range(8))] * 6 and half.shape == (6, 4)
    assert torch.equal(every.t.gather(1, half.events), half.t)
    assert len({tuple(row) for row in half.events.tolist()}) > 1
    advantage = torch.arange(48.0).view(6, 8)
    assert torch.equal(spread(advantage, half), advantage.gather(1, half.events))
    cut = half.block(torch.tensor([4, 1]), slice(1, 3))
    assert torch.equal(cut.events, half.events[[4, 1], 1:3])


def test_a_sample_with_one_event_of_some_advantage_takes_part() -> None:
    scores = scores_of(torch.zeros(3), torch.zeros(3).long())
    advantage = torch.tensor([[0.0, 0.0], [0.0, 1.0], [2.0, -2.0]])
    assert NonzeroAdvantage()(scores, advantage).tolist() == [False, True, True]


# --------------------------------------------------------------------------------------------------------- point mass
def test_a_sampler_may_return_other_rows_than_were_drawn() -> None:
    """Two episodes of three steps and a last state: eight rows, each with its own stream, of which two have no action
    to learn from. Returns over rows, against a loop."""
    policy = TinyFlow(MODES, prompts=("a", "b"))
    draw = Draw.of(seeds(0, "e", count=2), torch.tensor([5, 6]), 0, 0, prompts_of("ab"))
    rollout = sample(PointMass(), policy, policy.condition(draw.prompts), draw, 10)
    assert rollout.seeds.shape == (8,) and len(set(rollout.seeds.tolist())) == 8
    assert rollout.group.tolist() == [5] * 4 + [6] * 4
    feedback = rollout.feedback
    assert feedback is not None and feedback.isnan().tolist() == [False, False, False, True] * 2
    algorithm = Algorithm(
        sampler=PointMass(),
        estimator=build("awm").estimator,
        advantage=LeaveOneOut(),
        token_advantage=(Returns(0.5),),
        objective=ScoreFunction(),
    )
    scores = replace(scores_of(torch.zeros(8), rollout.group, rollout), valid=~feedback.isnan())
    found, _ = update(algorithm, policy, rollout, scores, torch.zeros(8).double(), micro_batch=5)
    r = feedback.view(2, 4)[:, :3]
    returns = torch.stack([r[:, 0] + 0.5 * r[:, 1] + 0.25 * r[:, 2], r[:, 1] + 0.5 * r[:, 2], r[:, 2]], dim=1)
    rows = algorithm.estimator.probe(rollout, policy, rollout.seeds)
    logp = algorithm.estimator(policy, rows, rollout.condition).logp.mean(dim=1).view(2, 4)[:, :3]
    torch.testing.assert_close(found, flat(policy, -(returns * logp).mean()), rtol=1e-5, atol=1e-7)
    with pytest.raises(ValueError, match="PointMass returns other rows than were drawn"):
        sample(PointMass(), policy, policy.condition(draw.prompts), draw, 1)


# -------------------------------------------------------------------------------------------------------------- judge
@pytest.mark.parametrize("micro_batch", [1, 3, 100])
def test_the_gradient_of_a_judge_is_autograd_through_sampling_and_decoding(micro_batch: int) -> None:
    policy = TinyFlow(MODES, prompts=("a",))
    disturb(policy)
    draw = Draw.of(seeds(0, "j", count=7), torch.zeros(7, dtype=torch.long), 0, 0, prompts_of(["a"] * 7))
    sampler = FlowSampler(steps=1)
    rollout = sample(sampler, policy, policy.condition(draw.prompts), draw, 4)
    targets = torch.arange(14.0).view(7, 2) / 7
    rollout = replace(rollout, judge=Closeness(policy.decode, targets))
    algorithm = Algorithm(sampler=sampler, estimator=OneStep(), advantage=LeaveOneOut(), objective=Ascent())
    advantage = torch.ones(7).double()
    found, metrics = update(
        algorithm, policy, rollout, scores_of(torch.zeros(7), rollout.group), advantage, micro_batch=micro_batch
    )
    noise = OneStep().probe(rollout, policy, draw.seeds).noise[:, 0]
    pictures = policy.decode(noise - policy.velocity(noise, torch.ones(7), rollout.condition))
    wanted = flat(policy, (pictures[:, 0, 0] - targets).square().sum(dim=1).mean())
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-7)
    assert metrics["ratio/first_max_deviation"] < 1e-9  # the replay ends at what was sampled


def test_a_rollout_with_a_judge_is_neither_cut_nor_joined() -> None:
    policy, rollout = recorded()
    judged = replace(rollout, judge=Closeness(policy.decode, LATENTS))
    with pytest.raises(AssertionError, match="judge"):
        take(judged, torch.tensor([0]))
    with pytest.raises(AssertionError, match="judge"):
        joined([judged, judged], judged.condition, judged.group)


# --------------------------------------------------------------------------------------------------------- loss masks
def text_iteration(**spec: Any) -> tuple[Algorithm, Iteration]:
    algorithm = small("grpo", **{"kl": 0.0, **spec})
    policy = start(algorithm)
    it = roll(algorithm, policy)
    disturb(policy, 0.02)
    return algorithm, it


def test_a_loss_mask_at_its_neutral_setting_is_the_base() -> None:
    algorithm, it = text_iteration()
    base = gradients(algorithm, it)[0]
    everything = gradients(replace(algorithm, loss_masks=(TopEntropy(1.0),)), it)[0]
    torch.testing.assert_close(everything, base, rtol=1e-5, atol=1e-8)
    some = gradients(replace(algorithm, loss_masks=(TopEntropy(0.3),)), it)[0]
    assert float((some - base).norm()) > 0.1 * float(base.norm())


@pytest.mark.parametrize("micro_batch", [1, 3, 50])
def test_a_quantile_is_that_of_the_batch_whatever_the_micro_batch(micro_batch: int) -> None:
    algorithm, it = text_iteration()
    masked = replace(algorithm, loss_masks=(TopEntropy(0.3),))
    assert masked.coupled and not algorithm.coupled
    whole = gradients(masked, it, micro_batch=100_000)[0]
    pieces = gradients(masked, it, micro_batch=micro_batch)[0]
    torch.testing.assert_close(pieces, whole, rtol=2e-4, atol=2e-6 * float(whole.norm()))


def test_a_loss_mask_leaves_the_regularizers_alone() -> None:
    """Where the objective has no advantage, only the penalty moves anything."""
    algorithm, it = text_iteration(kl=0.5)
    it.advantage = torch.zeros_like(it.advantage)
    penalty = gradients(algorithm, it)[0]
    assert float(penalty.norm()) > 0
    masked = gradients(replace(algorithm, loss_masks=(TopEntropy(0.3),)), it)[0]
    torch.testing.assert_close(masked, penalty, rtol=1e-5, atol=1e-9)


# -------------------------------------------------------------------------------------------------------- combination
def channels(it: Iteration) -> Tensor:
    """[N, 2] the iteration's advantage, and another one."""
    return torch.stack([it.advantage, it.advantage.flip(0) + 0.5], dim=1)


@pytest.mark.parametrize("name", ["grpo", "gspo", "flow_grpo"])  # gspo couples the decisions of a sample
@pytest.mark.parametrize("micro_batch", [3, 1000])
def test_fixed_weights_of_channels_are_the_weighted_sum_of_their_gradients(name: str, micro_batch: int) -> None:
    algorithm = small(name)
    policy = start(algorithm)
    it = roll(algorithm, policy)
    disturb(policy, 0.01)
    both = channels(it)
    single = []
    for column in both.T:
        it.advantage = column
        single.append(gradients(replace(algorithm, regularizers=()), it)[0])
    penalty = torch.zeros_like(single[0])
    if algorithm.penalised:
        it.advantage = torch.zeros_like(both[:, 0])
        penalty = gradients(algorithm, it)[0]
    it.advantage, weights = both, FixedWeights((0.25, 2.0))
    found = gradients(replace(algorithm, combination=weights), it, micro_batch=micro_batch)[0]
    wanted = 0.25 * single[0] + 2.0 * single[1] + penalty
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5 * float(wanted.norm()))
    gram = torch.tensor([[float(a.double() @ b.double()) for b in single] for a in single]).double()
    torch.testing.assert_close(weights.seen[0], gram, rtol=1e-3, atol=1e-5 * float(gram.abs().max()))


def test_the_inner_products_are_those_without_the_scale_of_the_loss() -> None:
    algorithm, it = text_iteration()
    it.advantage, plain, scaled = channels(it), FixedWeights((1.0, 1.0)), FixedWeights((1.0, 1.0))
    gradients(replace(algorithm, combination=plain), it)
    recorder = Recorder(it.policy.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    settings = UpdateSettings(max_grad_norm=1e9)
    algorithm = replace(algorithm, combination=scaled)
    improve(it.policy, recorder, algorithm, it.rollout, it.scores, it.advantage, settings, scaler)
    torch.testing.assert_close(scaled.seen[0], plain.seen[0], rtol=1e-5, atol=1e-12)


def test_channels_need_a_combination_and_no_token_advantage() -> None:
    algorithm, it = text_iteration()
    with pytest.raises(ValueError, match="combination takes an advantage per channel"):
        replace(build("reinforce_pp"), combination=FixedWeights((1.0,)))
    with pytest.raises(IncompatibleError, match="one column per channel"):
        gradients(replace(algorithm, combination=FixedWeights((1.0, 1.0))), it)


# ------------------------------------------------------------------------------------------------------- coefficients
def test_a_constant_coefficient_is_the_number() -> None:
    algorithm = small("flow_grpo", kl=0.04)
    constant = replace(algorithm, coefficients=(Growing("regularizers.0.weight"), Growing("objective.high")))
    memory: dict[str, Any] = {}
    for iteration in range(3):
        now = with_coefficients(constant, memory)
        assert (now.regularizers, now.objective) == (algorithm.regularizers, algorithm.objective)
        used = update_coefficients(constant, memory, {}, iteration)
        assert used == {"coefficient/regularizers.0.weight": 0.04, "coefficient/objective.high": 1e-4}
    assert with_coefficients(algorithm, {}) is algorithm and update_coefficients(algorithm, memory, {}, 0) == {}


def test_a_coefficient_goes_on_after_a_kill_and_reaches_the_loss() -> None:
    """Its state is plain values, which a checkpoint keeps as JSON."""
    algorithm = replace(small("flow_grpo", kl=0.04), coefficients=(Growing("regularizers.0.weight", 2.0),))
    memory: dict[str, Any] = {}
    for iteration in range(2):
        update_coefficients(algorithm, memory, {}, iteration)
    memory = json.loads(json.dumps(memory))
    assert with_coefficients(algorithm, memory).regularizers[0].weight == 0.16
    policy = start(algorithm)
    it = roll(algorithm, policy)
    disturb(policy, 0.05)
    later = gradients(with_coefficients(algorithm, memory), it)[0]
    assert torch.equal(later, gradients(small("flow_grpo", kl=0.16), it)[0])
    assert not torch.equal(later, gradients(algorithm, it)[0])


def test_a_coefficient_of_a_weight_that_starts_at_zero_has_its_reference() -> None:
    algorithm = replace(small("flow_grpo"), coefficients=(Growing("regularizers.0.weight"),))
    term = replace(algorithm.regularizers[0], weight=0.0)
    assert replace(algorithm, regularizers=(term,)).weight_sets == ("reference",)
    assert replace(algorithm, regularizers=(term,), coefficients=()).weight_sets == ()


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("regularizers.1.weight", "this algorithm has no 1 there"),
        ("objective.higher", "this algorithm has no higher there"),
        ("objective", "no number"),
        ("sampler.guidance", "None and no number"),
    ],
)
def test_a_coefficient_of_nothing_is_refused(path: str, sentence: str) -> None:
    algorithm = replace(small("flow_grpo"), coefficients=(Growing(path),))
    with pytest.raises(IncompatibleError, match=sentence):
        with_coefficients(algorithm, {})


def test_a_value_that_a_part_refuses_is_one_sentence() -> None:
    algorithm = replace(small("flow_grpo"), coefficients=(Growing("regularizers.0.weight", -1.0),))
    memory: dict[str, Any] = {}
    update_coefficients(algorithm, memory, {}, 0)
    with pytest.raises(IncompatibleError, match=r"sets regularizers\.0\.weight to -0\.04, which its part refuses"):
        with_coefficients(algorithm, memory)


def test_a_coefficient_of_a_whole_number_stays_one() -> None:
    algorithm = replace(small("flow_grpo"), coefficients=(Growing("sampler.steps", 1.3),))
    memory: dict[str, Any] = {}
    update_coefficients(algorithm, memory, {}, 0)
    assert with_coefficients(algorithm, memory).sampler.recorded == 7  # 6 times 1.3 is 8 steps, the last not trained


# --------------------------------------------------------------------------------------------------------------- using
class Peered:
    """A policy that knows another one by the name of a weight set."""

    def __init__(self, policy: Any, name: str, peer: Any) -> None:
        self._policy, self._name, self._peer = policy, name, peer

    @contextmanager
    def using(self, name: str) -> Iterator[Any]:
        if name != self._name:
            with self._policy.using(name) as asked:
                yield asked
            return
        with torch.no_grad():
            yield self._peer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._policy, name)


@pytest.mark.parametrize("name", ["flow_grpo", "diffusion_nft", "grpo", "coupled_grpo"])
def test_estimators_ask_whom_using_yields(name: str) -> None:
    """A peer gives the distances that its weights give as a set of the policy's own; those of equal weights are 0."""
    algorithm = small(name)
    policy, peer = start(algorithm), start(algorithm)
    it = roll(algorithm, policy)
    disturb(peer, 0.3)
    reference = algorithm.references[0]
    rows = algorithm.estimator.probe(it.rollout, policy, it.rollout.seeds)

    def distances(asked: Any) -> dict[str, Tensor]:
        extra = algorithm.estimator(asked, rows, it.rollout.condition, (reference,)).extra
        return {key: value.detach() for key, value in extra.items() if key.endswith(f"/{reference}")}

    own = distances(policy)
    assert own and all(float(value.abs().max()) < 1e-9 for value in own.values())
    from_peer = distances(Peered(policy, reference, peer))
    with torch.no_grad():
        swapped = [parameter.clone() for parameter in policy.parameters()]
        for mine, other in zip(policy.parameters(), peer.parameters(), strict=True):
            mine.copy_(other)
    policy.update_ema(reference, 0.0)
    with torch.no_grad():
        for mine, before in zip(policy.parameters(), swapped, strict=True):
            mine.copy_(before)
    as_set = distances(policy)
    for key, value in from_peer.items():
        assert float(value.abs().max()) > 1e-4
        torch.testing.assert_close(value, as_set[key])
