"""Advantages, objectives and aggregation against hand-computed values and identities."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from flowrl import composition
from flowrl.errors import UserError
from flowrl.parts.advantages import BestOfGroup, ExponentialWeight, GroupCentred, LeaveOneOut, PromptTracker
from flowrl.parts.aggregations import DecisionMean, SampleMean
from flowrl.parts.diagnostics import StepMetrics
from flowrl.parts.loss_weights import InverseStep
from flowrl.parts.objectives import Clipped, ClippedMean, ObjectiveDefaults
from flowrl.parts.regularizers import KLToOld
from flowrl.parts.selections import AllSamples, DropFlatGroups
from flowrl.samplers.windows import EveryStep, RandomWindow, SlidingWindow
from flowrl.types import Batch, Draw, Likelihood, Rows, Scores, StepRows
from tests.contract.toys import gradients, matching_rows, roll, small, start, table_of


def scores(rewards: list, group: list[int], valid: list[bool] | None = None, weights: list | None = None) -> Scores:
    table = torch.tensor(rewards, dtype=torch.float64)
    table = table[:, None] if table.ndim == 1 else table
    ids = torch.tensor(group)
    ok = torch.ones(len(ids)).bool() if valid is None else torch.tensor(valid)
    names = tuple(f"r{k}" for k in range(table.shape[1]))
    return Scores(table, torch.tensor(weights or [1.0] * len(names)).double(), names, ids, ids, ok)


def test_group_advantage_with_each_scale() -> None:
    s = scores([1.0, 3.0, 10.0, 10.0, 4.0, 8.0], [0, 0, 1, 1, 2, 2])
    group = GroupCentred(scale="group", ddof=1, eps=0.0, clip=None)(s, {})
    assert group.tolist() == pytest.approx([-(0.5**0.5), 0.5**0.5, 0, 0, -(0.5**0.5), 0.5**0.5])
    whole = GroupCentred(scale="global", ddof=0, eps=0.0, clip=None)(s, {})
    std = float(s.total.std(correction=0))
    assert whole.tolist() == pytest.approx([-1 / std, 1 / std, 0, 0, -2 / std, 2 / std])
    assert GroupCentred(scale="none", clip=None)(s, {}).tolist() == [-1, 1, 0, 0, -2, 2]
    assert GroupCentred(scale="none", clip=1.5)(s, {}).tolist() == [-1, 1, 0, 0, -1.5, 1.5]
    assert GroupCentred(scale="none", clip=2.0, scaled_to=1.0)(s, {}).tolist() == [-0.5, 0.5, 0, 0, -1, 1]


def test_a_group_without_spread_gets_exactly_zero_despite_rounding() -> None:
    s = scores([0.1 + 0.2, 0.3 + 0.0, 0.1, 0.1], [0, 0, 1, 1])
    advantage = GroupCentred(scale="group", eps=1e-8)(scores([0.1, 0.1, 0.1], [5, 5, 5]), {})
    assert advantage.tolist() == [0, 0, 0]
    assert GroupCentred(eps=1e-8)(s, {})[2:].tolist() == [0, 0]


def test_rows_that_could_not_be_scored_leave_the_group_unbiased() -> None:
    s = scores([1.0, 3.0, float("nan"), 5.0], [0, 0, 0, 0], [True, True, False, True])
    for part in (GroupCentred(scale="none"), LeaveOneOut()):
        advantage = part(s, {})
        assert advantage[2] == 0 and float(advantage.sum()) == pytest.approx(0)
    assert GroupCentred(scale="none")(s, {}).tolist() == [-2, 0, 0, 2]


def test_leave_one_out_is_the_centred_reward_times_g_over_g_minus_one() -> None:
    generator = torch.Generator().manual_seed(0)
    rewards = torch.randn(12, generator=generator, dtype=torch.float64).tolist()
    s = scores(rewards, [0] * 4 + [1] * 8)
    centred = GroupCentred(scale="none", clip=None)(s, {})
    factor = torch.tensor([4 / 3] * 4 + [8 / 7] * 8, dtype=torch.float64)
    assert torch.allclose(LeaveOneOut()(s, {}), factor * centred, atol=1e-12)
    assert LeaveOneOut()(scores([3.0, 1.0, 2.0], [0, 1, 1]), {}).tolist() == [0, -1, 1]  # a lone sample has no siblings


def test_groups_are_ids_not_texts() -> None:
    """Two prompts of the same text are two groups (as ids they differ), with their own means."""
    advantage = GroupCentred(scale="none")(scores([0.0, 2.0, 10.0, 14.0], [7, 7, 3, 3]), {})
    assert advantage.tolist() == [-1, 1, -2, 2]


def test_several_rewards_before_or_after_normalising() -> None:
    table = [[0.0, 0.0], [1.0, 100.0], [0.0, 300.0], [1.0, 200.0]]
    s = scores(table, [0] * 4, weights=[1.0, 1.0])
    summed = GroupCentred(scale="group", eps=0.0)(s, {})
    apart = GroupCentred(scale="group", eps=0.0, merge="advantages")(s, {})
    columns = s.rewards
    z = (columns - columns.mean(dim=0)) / columns.std(dim=0)
    assert torch.allclose(apart, z.sum(dim=1), atol=1e-12)
    assert summed[1] < 0 < apart[1]  # the large reward drowns the small one only in the sum


def test_a_watched_reward_does_not_count() -> None:
    s = scores([[0.0, 9.0], [1.0, float("nan")]], [0, 0], weights=[1.0, 0.0])
    assert s.total.tolist() == [0, 1]
    assert GroupCentred(scale="none", merge="advantages")(s, {}).tolist() == [-0.5, 0.5]


def test_prompt_tracker_uses_the_batch_until_a_prompt_has_history() -> None:
    part, memory = PromptTracker(buffer=4, min_count=3, eps=0.0, clip=None), {}
    first = part(scores([1.0, 3.0, 5.0, 7.0], [0, 0, 1, 1]), memory)
    batch = torch.tensor([1.0, 3, 5, 7]).double()
    assert torch.allclose(first, (batch - 4) / batch.std(correction=0))
    second = part(scores([5.0, 9.0], [0, 0]), memory)
    history = torch.tensor([1.0, 3, 5, 9]).double()
    assert torch.allclose(second, (torch.tensor([5.0, 9]).double() - history.mean()) / history.std(correction=0))
    assert memory["rewards"]["0"] == [1, 3, 5, 9]
    part(scores([2.0], [0]), memory)
    assert memory["rewards"]["0"] == [3, 5, 9, 2]  # the buffer keeps the last ones


def test_best_of_group_shares_among_ties_and_ignores_flat_groups() -> None:
    advantage = BestOfGroup()(scores([1.0, 4.0, 4.0, 2.0, 2.0, 0.0, 3.0], [0, 0, 0, 1, 1, 2, 2]), {})
    assert advantage.tolist() == [0, 0.5, 0.5, 0, 0, 0, 1]


def test_exponential_weights_have_mean_one_and_the_right_ratio() -> None:
    advantage = ExponentialWeight(0.5)(scores([0.0, 1.0, 700.0, 701.0], [0, 0, 1, 1]), {})
    assert advantage.tolist() == pytest.approx([0.238406, 1.761594] * 2, abs=1e-6)
    assert float(advantage[1] / advantage[0]) == pytest.approx(7.389056, abs=1e-5)


def block(logp: Tensor, old: Tensor, advantage: Tensor) -> tuple[Likelihood, Batch]:
    live = Likelihood(logp)
    return live, Batch(advantage, Likelihood(old), torch.ones_like(logp), torch.zeros(len(logp)), Rows())


@pytest.mark.parametrize(
    ("ratio", "advantage", "slope"),
    [(1.0, 2.0, -2.0), (1.3, 2.0, 0.0), (0.5, 2.0, -1.0), (0.5, -2.0, 0.0), (1.3, -2.0, 2.6), (1.1, 2.0, -2.2)],
)
def test_clipped_slope(ratio: float, advantage: float, slope: float) -> None:
    """d loss / d logp is -A rho, and 0 only where the clip stops a move that would go further."""
    logp = torch.tensor([[ratio]], dtype=torch.float64).log().requires_grad_()
    live, b = block(logp, torch.zeros(1, 1).double(), torch.tensor([[advantage]]).double())
    grad = torch.autograd.grad(Clipped(0.2, 0.2)(live, b).sum(), logp)[0]
    assert float(grad) == pytest.approx(slope)


def test_mean_then_exp_is_below_exp_then_mean() -> None:
    logp = torch.tensor([[0.4, -0.4, 0.1]], dtype=torch.float64)
    live, b = block(logp, torch.zeros_like(logp), torch.ones_like(logp))
    averaged, each = -ClippedMean(9.0, 9.0)(live, b).mean(), -Clipped(9.0, 9.0)(live, b).mean()
    assert float(averaged) == pytest.approx(float(logp.mean().exp()))
    assert averaged < each
    one = Likelihood(logp[:, :1])
    single = replace(b, advantage=b.advantage[:, :1], old=Likelihood(b.old.logp[:, :1]))
    assert torch.equal(ClippedMean(0.2, 0.2)(one, single), Clipped(0.2, 0.2)(one, single))


def test_aggregations() -> None:
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]]).bool()
    assert SampleMean()(mask).tolist() == [[0.25, 0.25, 0, 0], [0.125] * 4, [0] * 4]
    assert torch.allclose(DecisionMean()(mask), mask.double() / 6)


def test_inverse_step_needs_steps_and_divides_by_their_length() -> None:
    rows = StepRows(torch.tensor([[1.0, 0.5]]).double(), torch.tensor([[0.5, 0.4]]).double())
    table = table_of(torch.ones(1, 2), torch.ones(1, 2).bool(), rows=rows)
    assert InverseStep()(table).tolist() == [pytest.approx([2, 10])]
    assert InverseStep(normalise=True)(table).tolist() == [pytest.approx([1 / 3, 5 / 3])]
    with pytest.raises(ValueError, match="transitions"):
        InverseStep()(table_of(torch.ones(1, 2), torch.ones(1, 2).bool()))


def draw(iteration: int) -> Draw:
    return Draw.of(torch.zeros(1).long(), torch.zeros(1).long(), iteration, 17 + iteration)


def test_windows() -> None:
    assert EveryStep(drop=1)(10, draw(0)).recorded == range(9)
    sliding = SlidingWindow(size=4, stride=1, every=2)
    starts = [sliding(10, draw(i)).recorded.start for i in range(16)]
    assert starts == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 0, 0, 1, 1]  # back to the start, never the last step
    for window in (sliding, RandomWindow(size=3, stop=0.9), SlidingWindow(size=3, order="random")):
        for iteration in range(40):
            plan = window(10, draw(iteration))
            assert plan.stochastic == plan.recorded and len(plan.recorded) in (3, 4) and plan.recorded.stop <= 9
    assert {RandomWindow(size=3)(10, draw(i)).recorded.start for i in range(60)} == {0, 1, 2}  # ends in the first half
    assert {RandomWindow(size=3)(6, draw(i)).recorded.start for i in range(20)} == {0}  # FLUX: six steps, one place
    with pytest.raises(ValueError, match="does not fit into the first 2 of 5 steps"):
        RandomWindow(size=3)(5, draw(0))
    with pytest.raises(ValueError, match="size=10"):
        SlidingWindow(size=10)(10, draw(0))


def test_no_noise_outside_the_window() -> None:
    """Deterministic steps agree with the plain solver up to the window, bit by bit."""
    algorithm = small("mix_grpo", 8, size=2, every=1)
    plain = replace(algorithm.sampler, window=None)
    policy = start(algorithm)
    it = roll(algorithm, policy, iteration=3)  # window [3, 5)
    steps = it.rollout.trace
    start_of_window = replace(plain, steps=8)
    x = policy.initial(start_of_window._noise(policy, it.draw), policy.times(8))
    for k in range(3):
        t = policy.times(8)[k].expand(len(x))
        with torch.no_grad():
            x = x + (policy.times(8)[k + 1] - policy.times(8)[k]).float() * policy.velocity(x, t, it.rollout.condition)
    assert torch.equal(steps.x[:, 0], x)
    assert steps.t.shape[1] == 2


def test_a_window_over_all_steps_is_flow_grpo() -> None:
    """MixGRPO with w = T - 1 and Flow-GRPO without its untrained noisy last step: the same gradient, bit by bit."""
    flow = small("flow_grpo", 6, kl=0.0, clip=0.2)
    last_step_plain = replace(flow.sampler, window=SlidingWindow(size=5))
    mix = replace(small("mix_grpo", 6, clip=0.2), sampler=last_step_plain, advantage=flow.advantage)
    flow = replace(flow, sampler=last_step_plain, estimator=mix.estimator)
    policy = start(flow)
    assert torch.equal(gradients(flow, roll(flow, policy))[0], gradients(mix, roll(mix, policy))[0])


def test_loop_is_ddpo_with_centred_advantage_times_k_over_k_minus_one() -> None:
    loop = small("loop", 5, clip=0.2)
    centred = replace(loop, advantage=GroupCentred(scale="none", clip=None))
    policy = start(loop)
    first = gradients(loop, roll(loop, policy))[0]
    second = gradients(centred, roll(centred, policy))[0]
    assert torch.allclose(first, second * 16 / 15, rtol=1e-5, atol=1e-9)


def test_score_function_is_importance_sampling_with_one_update() -> None:
    ddpo, plain = small("ddpo", 5, clip=0.2), small("ddpo_sf", 5)
    policy = start(ddpo)
    first, second = gradients(ddpo, roll(ddpo, policy))[0], gradients(plain, roll(plain, policy))[0]
    assert torch.allclose(first, second, rtol=1e-4, atol=1e-8)


@dataclass(frozen=True)
class Pairs(ObjectiveDefaults):
    """A loss that couples every row with every other: mean over rows of logsumexp over rows."""

    coupled: ClassVar[bool] = True
    skips_zero_advantage: ClassVar[bool] = False
    needs_old_logp: ClassVar[bool] = False

    def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
        row = likelihood.logp.sum(dim=1)
        score = (row[:, None] - row[None, :] + batch.advantage[:, :1]).logsumexp(dim=1)
        return score[:, None].expand_as(likelihood.logp) + likelihood.need("prediction/reference")


def test_the_gradient_of_a_coupled_loss_is_exact_for_every_micro_batch() -> None:
    """Two passes with the memory of one micro-batch against the whole graph at once."""
    base = small("awm", 4, ema=0.0, reference=0.1)
    algorithm = replace(base, objective=Pairs())
    policy = start(algorithm)
    it = roll(algorithm, policy)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.03)
    rows = algorithm.estimator.probe(it.rollout, policy, it.draw.seeds)
    live = algorithm.estimator(policy, rows, it.rollout.condition, ("reference",))
    weight = algorithm.aggregation(torch.ones_like(live.logp).bool())
    b = Batch(it.advantage[:, None].expand_as(live.logp), live, weight, it.rollout.group, rows)
    loss = (weight * (algorithm.objective(live, b) + 0.1 * live.need("prediction/reference"))).sum()
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, policy.parameters())])
    for micro_batch in (5, 32, 10_000):
        got = gradients(algorithm, it, micro_batch=micro_batch)[0]
        assert torch.allclose(got, expected, rtol=1e-4, atol=1e-6 * float(expected.norm()))


def test_flat_groups_can_be_left_out_of_the_mean() -> None:
    algorithm = small("flow_grpo", 4, kl=0.0, clip=0.2)
    policy = start(algorithm)
    it = roll(algorithm, policy)
    half = it.scores.group == 1
    table = torch.where(half[:, None], torch.ones_like(it.scores.rewards), it.scores.rewards)
    it.scores = replace(it.scores, rewards=table)
    it.advantage = algorithm.advantage(it.scores, {})
    kept = gradients(replace(algorithm, selection=AllSamples()), it)[0]
    dropped = gradients(replace(algorithm, selection=DropFlatGroups()), it)[0]
    assert algorithm.selection == DropFlatGroups()  # the released default
    assert torch.allclose(dropped, 2 * kept, rtol=1e-5, atol=1e-9)  # half the rows, so each weighs twice


def test_the_log_ratio_is_reported_where_the_ratio_is_0_or_infinite() -> None:
    logp = torch.tensor([[-2000.0, 0.0, 2000.0]]).double()
    it = small("ddpo_sf", 4)
    rows = matching_rows(logp, logp, logp)
    batch = Batch(torch.ones(1, 3), Likelihood(torch.zeros(1, 3)), torch.ones(1, 3) / 3, torch.zeros(1).long(), rows)
    step_metrics = StepMetrics()
    step_metrics.add_block(it, Likelihood(logp), batch, torch.zeros(()))
    step_metrics.close_batch()
    assert step_metrics.metrics()["ratio/log_square"] == pytest.approx(2 * 2000.0**2 / 3)


def test_a_loss_term_without_gradient_is_an_error() -> None:
    @dataclass(frozen=True)
    class Dead:
        weight: float = 1.0
        to: str = "reference"
        name: str = "dead"

        def __call__(self, likelihood: Likelihood, batch: Batch) -> Tensor:
            return likelihood.need("prediction/reference").detach()

    algorithm = replace(small("awm", 4), regularizers=(Dead(),))
    policy = start(algorithm)
    it = roll(algorithm, policy)
    with pytest.raises(UserError, match="'dead' has no gradient"):
        gradients(algorithm, it)


def test_a_preference_pair_needs_bounds_of_whole_samples() -> None:
    algorithm = small("vrpo", estimator={"per": "cell"})
    policy = start(algorithm)
    with pytest.raises(ValueError, match=r"whole samples: set estimator\.per=view"):
        gradients(algorithm, roll(algorithm, policy))


def test_a_likelihood_that_is_not_measured_is_explained() -> None:
    algorithm = small("awm", 4, regularizers=[{"use": "kl"}])
    policy = start(algorithm)
    with pytest.raises(ValueError, match="'kl/reference' is not measured by this estimator"):
        gradients(algorithm, roll(algorithm, policy))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("flow_gropo", "did you mean 'flow_grpo'"),
        ({"use": "flow_grpo", "clp": 1}, "algorithm.clp: no such option of flow_grpo; did you mean 'algorithm.clip'"),
        ({"use": "flow_grpo", "objective": {"lo": 1}}, "algorithm.objective.lo: Clipped has no such field"),
        ({"use": "flow_grpo", "sampler": {"steps": "ten"}}, "algorithm.sampler.steps: 'ten' will not do"),
        ({"use": "flow_grpo", "objective": "clipd"}, "algorithm.objective.use: there is no 'clipd'"),
        ({"kl": 1}, "algorithm.use"),
        (
            {"use": "grpo", "objective": ["clipped"]},
            "algorithm.objective: ['clipped'] names no part; known: A",
        ),
        ({"use": "grpo", "sampler": None}, "algorithm.sampler: None names no part"),
        ({"use": "grpo", "token_advantage": None}, "algorithm.token_advantage.0: None names no part"),
        ({"use": "grpo", "regularizers": [{"weight": 0.1}]}, "algorithm.regularizers.0: {'weight': 0.1} names no part"),
        ({"use": "bgpo", "draws": 0}, "algorithm.bgpo: draws=0 should be at least 1"),
        ({"use": "gdpo_dllm", "nodes": 0}, "algorithm.gdpo_dllm: nodes=0 should be at least 1"),
        ({"use": "tracerl", "merge": 0}, "algorithm.tracerl: merge=0 should be at least 1"),
        ({"use": "diffu_grpo", "corrupt": 1.5}, "corrupt=1.5 should be a probability"),
        (
            {"use": "coupled_grpo", "estimator": {"views": {"high": 80}}},
            "algorithm.estimator.views: low=0.2 and high=80",
        ),
        ({"use": "elbo_pg", "estimator": {"views": {"use": "block_random", "block": 0}}}, "block=0 should be at least"),
        (
            {"use": "elbo_pg", "estimator": {"views": {"use": "trajectory", "limit": 0}}},
            "estimator.views: limit=0 should",
        ),
        (
            {"use": "elbo_pg", "estimator": {"views": {"use": "trajectory", "limit": "x"}}},
            "views.limit: 'x' will not do",
        ),
        ({"use": "spg", "power": 0}, "power=0.0 should be above 0"),
        ({"use": "wd1", "weight_temperature": 0}, "temperature of the weights should be above 0, found 0"),
        ({"use": "grpo", "kl": -0.1}, "algorithm.grpo: a divergence of weight -0.1 would be rewarded"),
        ({"use": "grpo", "clip": -0.2}, "algorithm.grpo: low=-0.2 and high=-0.2 say how far"),
        ({"use": "elbo_pg", "sampler": "causal_sampler"}, "CausalSampler is for causal models, and elbo_pg trains mas"),
        ({"use": "flow_grpo", "estimator": "masked_views"}, "MaskedViews is for masked models, and flow_grpo trains d"),
        ({"use": "trajectory_pg", "sampler": {"threshold": 0.9}}, "views.limit=64: the sampler may take 256 steps, 1"),
        ({"use": "tracerl", "sampler": {"steps": 1024, "length": 1024}}, "1024 steps, 8 a view; raise it to 128"),
    ],
)
def test_a_wrong_algorithm_spec_names_the_key(spec, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        composition.build(spec)


def test_a_list_of_parts_may_be_one_part_and_a_window_none() -> None:
    assert composition.build({"use": "grpo", "regularizers": "kl_to_old"}).regularizers == (KLToOld(),)
    one = composition.build({"use": "grpo", "token_advantage": {"use": "truncated_importance", "cap": 3}})
    assert one.token_advantage[0].cap == 3
    assert composition.build({"use": "flow_grpo_fast", "sampler": {"window": None}}).sampler.window is None


def test_parts_are_adjusted_and_replaced_from_plain_data() -> None:
    built = composition.build(
        {
            "use": "flow_grpo",
            "kl": 0.0,
            "objective": {"low": 1e-5},
            "sampler": {
                "steps": 8,
                "dynamics": {"use": "cps", "noise": 0.5},
                "window": {"use": "random_window", "size": 2},
            },
            "advantage": "leave_one_out",
        }
    )
    assert built.objective == Clipped(1e-5, 1e-4) and built.advantage == LeaveOneOut() and not built.regularizers
    assert composition.describe(built.sampler)["dynamics"] == {"use": "CPS", "noise": 0.5}
    assert built.sampler.steps == 8 and built.sampler.window == RandomWindow(size=2)
