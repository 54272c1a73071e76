"""Trees of samples: what they share, what it saves, and the advantages of their nodes."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from flowrl import composition
from flowrl.errors import UserError
from flowrl.estimators.shared_steps import SharedTransitions
from flowrl.estimators.transitions import Transitions
from flowrl.math.flow import DanceSDE, FlowSDE, LinearSDE
from flowrl.math.random import derive, seeds
from flowrl.parts.advantages import GroupCentred
from flowrl.parts.aggregations import SampleMean
from flowrl.parts.loss_weights import OncePerNode, StepNoise
from flowrl.parts.tree_advantages import Siblings, Tree
from flowrl.samplers.branching import OneStepSampler, TreeSampler
from flowrl.samplers.chunks import sample, take
from flowrl.samplers.flow import FlowSampler
from flowrl.samplers.windows import EveryStep
from flowrl.types import Draw, IncompatibleError, Rollout, Scores, Share, StepRows, prompts_of
from tests.contract.toys import disturb, gradients, roll, small, start, table_of
from tests.fidelity.bench import GuidedFlow, sd3_times
from tests.threads import ThreadRanks, in_threads

LEAVES = torch.tensor([0.1, 0.2, 0.3, 0.9, 0.5, 0.4, 0.8, 0.7], dtype=torch.float64)
BINARY = torch.stack([torch.arange(8) // width * width for width in (8, 4, 2, 1)], dim=1)  # [8, 4] nodes


def draw_of(each: int, groups: int = 2, iteration: int = 3) -> Draw:
    group = torch.arange(groups).repeat_interleave(each)
    prompts = prompts_of(["abc"[g] for g in group])
    return Draw.of(seeds(0, "tree", count=len(group)), group, iteration, derive(0, "shared", iteration), prompts)


def made_by(sampler: FlowSampler, draw: Draw, rows: int = 10_000) -> Rollout:
    policy = GuidedFlow()
    return sample(sampler, policy, policy.condition(draw.prompts), draw, rows)


def scores_of(reward: Tensor, nodes: Tensor | None, group: Tensor | None = None) -> Scores:
    group = torch.zeros(len(reward), dtype=torch.int64) if group is None else group
    every = torch.ones(len(reward), dtype=torch.bool)
    return Scores(reward[:, None], torch.ones(1).double(), ("r",), group, group, every, nodes=nodes)


# ------------------------------------------------------------------------------------------------------- sampling
def test_a_tree_of_sixteen_leaves_takes_203_forwards_of_320() -> None:
    sampler = TreeSampler(
        steps=20, dynamics=DanceSDE(0.3), window=EveryStep(drop=1), decode_clean=True, forks=(0, 3, 6, 9)
    )
    assert sampler.tree == 16
    made = made_by(sampler, draw_of(16))
    assert made.forwards == 2 * 203 == 2 * (1 + 3 * 2 + 3 * 4 + 3 * 8 + 10 * 16)
    assert made.nodes is not None and made.nodes.shape == (32, 20)
    for d, branches in ((0, 1), (1, 2), (3, 2), (4, 4), (7, 8), (10, 16), (19, 16)):
        assert len(made.nodes[:16, d].unique()) == branches
        for node in made.nodes[:16, d].unique():  # a shared state is one and the same
            states = made.trace.states[:16, d][made.nodes[:16, d] == node]
            assert torch.equal(states, states[:1].expand_as(states))
    assert len(made.final[:16].unique(dim=0)) == 16


def test_one_fork_at_the_first_step_is_a_sampler_with_a_shared_start_bit_for_bit() -> None:
    draw = draw_of(6)
    options = {"steps": 8, "dynamics": FlowSDE(0.7), "window": EveryStep(drop=1)}
    tree = made_by(TreeSampler(**options, forks=(0,), width=6), draw)
    plain = made_by(FlowSampler(**options, share_noise=True), draw)
    assert torch.equal(tree.final, plain.final) and torch.equal(tree.trace.states, plain.trace.states)
    assert torch.equal(tree.trace.squared, plain.trace.squared)
    assert (tree.forwards, plain.forwards) == (2 * (1 + 7 * 6), 2 * 8 * 6)


@pytest.mark.parametrize(
    "sampler",
    [
        TreeSampler(steps=6, dynamics=FlowSDE(), window=EveryStep(drop=1), forks=(0, 2), width=3),
        TreeSampler(steps=6, dynamics=FlowSDE(), forks=(1, 2), width=3),
        OneStepSampler(steps=6, dynamics=FlowSDE(), siblings=3),
        OneStepSampler(steps=6, dynamics=FlowSDE(), siblings=3, merge=(2,), strides=(1, 2, 3)),
        OneStepSampler(steps=6, dynamics=FlowSDE(), siblings=1, choice="group", stop=0.5),
    ],
)
def test_samples_depend_neither_on_the_batch_nor_on_who_else_is_made(sampler: FlowSampler) -> None:
    draw = draw_of(9)
    whole, pieces = made_by(sampler, draw), made_by(sampler, draw, rows=4)
    assert torch.allclose(whole.final, pieces.final, atol=1e-6)
    assert torch.allclose(whole.trace.states, pieces.trace.states, atol=1e-6)
    assert torch.equal(whole.nodes, pieces.nodes) and pieces.forwards >= whole.forwards
    last = draw.take(torch.arange(9, 18))  # the second group by itself, as another process has it
    assert torch.allclose(made_by(sampler, last).final, whole.final[9:], atol=1e-6)


def test_tempflow_takes_45_forwards_a_branch_and_nine_a_start() -> None:
    sampler = composition.build("tempflow_grpo").sampler
    made = made_by(sampler, draw_of(216, groups=1, iteration=0))
    assert made.forwards == (9 + 8 + 7 + 6 + 5 + 4 + 3 + 2 + 1) * 24 + 4 * 9 == 1116  # 216 x 10 by themselves
    times = sd3_times(10)
    assert made.trace.t.shape == (216, 1)
    for k, t in enumerate(times[:9]):  # every step has four bunches of six
        assert int((made.trace.t[:, 0] == t).sum()) == 24, k
    first = made.trace.states[:, 0]
    assert torch.equal(first[0], first[5]) and not torch.equal(made.final[0], made.final[1])
    assert torch.equal(first[6 * 9], first[6 * 9 + 1]) and not torch.equal(first[0], first[6 * 9])  # another start
    turned = made_by(sampler, draw_of(24, groups=1, iteration=5))
    assert turned.trace.t[::6, 0].tolist() == times[5:9].tolist()


def test_the_group_shares_the_step_and_prompts_have_others() -> None:
    sampler = composition.build("flash_grpo").sampler
    made = made_by(replace(sampler, guidance=1.0), draw_of(8, groups=3))
    times = made.trace.t.reshape(3, 8)
    assert torch.equal(times, times[:, :1].expand_as(times))
    seen = {float(t) for i in range(40) for t in made_by(sampler, draw_of(1, 3, i)).trace.t[:, 0]}
    assert seen == set(sd3_times(20)[:10].tolist())  # the first .51 of 20
    assert not torch.equal(made.trace.states[0, 0], made.trace.states[1, 0])  # every sample has a start of its own


def test_merged_steps_end_later_and_go_on_from_there() -> None:
    sampler = OneStepSampler(steps=8, dynamics=FlowSDE(0.7), siblings=2, candidates=(1, 3), merge=(1, 3))
    made = made_by(sampler, draw_of(4, groups=1, iteration=0))
    times = sd3_times(8)
    assert made.trace.t[:, 0].tolist() == times[[1, 1, 3, 3]].tolist()
    assert made.trace.t_next[:, 0].tolist() == times[[2, 2, 6, 6]].tolist()
    # from the end of the noisy step on, the rest is what a plain ODE sampler does of the same state
    policy = GuidedFlow()
    x = made.trace.states[3, 1][None]
    condition = policy.condition(prompts_of(["a"]))
    for k in (6, 7):
        x = x + (times[k + 1] - times[k]).float() * policy.velocity(x, times[k : k + 1], condition)
    assert torch.allclose(x[0], made.final[3], atol=1e-5)


def test_strides_share_the_noisy_step_and_all_end_at_the_picture() -> None:
    sampler = OneStepSampler(steps=8, dynamics=FlowSDE(0.7), siblings=3, strides=(1, 2), candidates=(2,))
    made = made_by(sampler, draw_of(6, groups=1))
    states = made.trace.states.reshape(3, 2, 2, -1)
    assert torch.equal(states[:, 0], states[:, 1])
    assert not torch.equal(made.final[0], made.final[1])
    assert made.forwards == 3 + 3 * (1 + 4 + 2)  # a shared start and noisy step, and the first step of both strides


def test_mistakes_are_told_before_sampling() -> None:
    for spec, words in (
        ({"sampler": {"width": 1}}, "no fork"),
        ({"sampler": {"forks": [3, 0]}}, "rising order"),
        ({"sampler": {"solver": "dpmpp_2m"}}, "share steps"),
        ({"sampler": {"share_noise": True}}, "what is shared"),
        ({"loss_weight": {"use": "without_events", "events": [-1]}}, "from 0 on"),
    ):
        with pytest.raises(UserError, match=words):
            composition.build({"use": "branch_grpo", **spec})
    with pytest.raises(ValueError, match="needs noise there"):
        _ = composition.build({"use": "branch_grpo", "steps": 8}).sampler.recorded
    with pytest.raises(UserError, match="noisy step is one of"):
        composition.build({"use": "e_grpo", "steps": 5})
    with pytest.raises(IncompatibleError, match="branches of a tree"):
        Tree()(scores_of(LEAVES, None), {})
    with pytest.raises(IncompatibleError, match="OncePerNode"):
        OncePerNode()(table_of(torch.ones(2, 2), torch.ones(2, 2).bool(), rows=_steps(torch.rand(2, 2))))


# ----------------------------------------------------------------------------------------------------- advantages
def test_levels_normalised_as_in_branch_grpo() -> None:
    found = Tree(against="depth")(scores_of(LEAVES, BINARY), {})
    assert found[:, 0].tolist() == pytest.approx([-0.7071] * 4 + [0.7071] * 4, abs=1e-4)
    assert found[::2, 1].tolist() == pytest.approx([-1.3175, 0.4392, -0.1464, 1.0247], abs=1e-4)
    wanted = [-1.3362, -0.9913, -0.6465, 1.4224, 0.0431, -0.3017, 1.0775, 0.7327]
    assert found[:, 2].tolist() == pytest.approx(wanted, abs=1e-4)


def test_credits_telescope_to_the_leaf_less_the_mean_of_its_tree() -> None:
    found = Tree(against="parent")(scores_of(LEAVES, BINARY), {})
    assert torch.allclose(found.sum(dim=1), LEAVES - LEAVES.mean(), atol=1e-15)
    longer = BINARY[:, [0, 1, 1, 2, 2, 2, 3]]  # steps without a fork have the advantage of the fork before
    wide = Tree(against="parent")(scores_of(LEAVES, longer), {})
    assert torch.equal(wide, found[:, [0, 0, 1, 1, 1, 2]])
    assert torch.equal(Tree()(scores_of(LEAVES, BINARY[:, [0, 0, 1]]), {})[:, 0], torch.zeros(8).double())


def test_one_fork_is_grpo_without_a_standard_deviation_and_leave_one_out() -> None:
    group = torch.arange(2).repeat_interleave(4)
    nodes = torch.stack([torch.zeros(8).long(), torch.arange(8) % 4, torch.arange(8) % 4], dim=1)
    scores = scores_of(LEAVES, nodes, group)
    plain = GroupCentred(scale="none", clip=None)(scores, {})
    assert torch.allclose(Tree()(scores, {}), plain[:, None].expand(-1, 2), atol=1e-15)
    assert torch.allclose(Tree(against="siblings")(scores, {}), plain[:, None].expand(-1, 2) * 4 / 3, atol=1e-15)
    flat = replace(scores, rewards=torch.full((8, 1), 0.3).double())
    assert float(Tree(against="depth")(flat, {}).abs().max()) == 0


def test_samples_that_could_not_be_scored_leave_the_others_alone() -> None:
    scores = scores_of(LEAVES, BINARY)
    reward = scores.rewards.clone()
    reward[3] = torch.nan
    part = replace(scores, rewards=reward, valid=torch.arange(8) != 3)
    for against in ("parent", "siblings", "depth", "tree"):
        found = Tree(against=against)(part, {})
        assert bool(found.isfinite().all()) and float(found[3].abs().max()) == 0
    assert float(Tree()(part, {})[2, 1]) == pytest.approx(0.3 - (0.1 + 0.2 + 0.3) / 3)


def test_siblings_are_compared_by_stride_and_add_up_at_their_step() -> None:
    group = torch.zeros(8, dtype=torch.int64)
    nodes = torch.tensor([[0, 0], [0, 0], [0, 2], [0, 2], [4, 4], [4, 4], [4, 6], [4, 6]])
    found = Siblings(scale="none", clip=None)(scores_of(LEAVES, nodes, group), {})
    wanted = [(0.1 - 0.3) / 2, (0.2 - 0.9) / 2, 0.1, 0.35, (0.5 - 0.8) / 2, (0.4 - 0.7) / 2, 0.15, 0.15]
    assert found.tolist() == pytest.approx(wanted)


def test_a_tree_is_unbiased_and_pooling_its_edges_is_not() -> None:
    """All outcomes of a tree of two levels over a table of two choices each: the mean over trees of the sum over levels
    of the mean over a level's edges of A grad log p is the gradient of the expected reward."""
    logits = torch.tensor([0.4, -0.9, 0.7], dtype=torch.float64, requires_grad=True)  # of choosing 1, in every state
    reward = torch.tensor([1.5, -0.3, 0.2, 0.8], dtype=torch.float64)

    def state(path: tuple[int, ...]) -> int:
        return 2 ** len(path) - 1 + sum(bit << i for i, bit in enumerate(path))

    def logp(path: tuple[int, ...]) -> Tensor:
        at = logits[state(path[:-1])]
        return torch.nn.functional.logsigmoid(at if path[-1] else -at)

    def end(path: tuple[int, ...]) -> Tensor:
        return reward[sum(bit << i for i, bit in enumerate(path))]

    expected = torch.zeros((), dtype=torch.float64)
    for path in itertools.product((0, 1), repeat=2):
        expected = expected + (logp(path[:1]) + logp(path)).exp() * end(path)
    (wanted,) = torch.autograd.grad(expected, logits)
    found, pooled = torch.zeros(3).double(), torch.zeros(3).double()
    edges = [(0, 0), (2, 0), (0, 1), (1, 1), (2, 1), (3, 1)]  # the first leaf below, and the level
    nodes = torch.tensor([[0, 0, 0], [0, 0, 1], [0, 2, 2], [0, 2, 3]])
    for choices in itertools.product((0, 1), repeat=6):
        paths = [(choices[leaf // 2], choices[2 + leaf]) for leaf in range(4)]
        chance = math.exp(sum(float(logp(paths[p][: e + 1]).detach()) for p, e in edges))
        credit = Tree(against="siblings")(scores_of(torch.stack([end(path) for path in paths]), nodes), {})
        for p, e in edges:
            at = state(paths[p][:e])
            score = chance * float(paths[p][e] - torch.sigmoid(logits[at]).detach()) * float(credit[p, e])
            found[at] += score / (2, 4)[e]
            pooled[at] += score / 6
    assert float((found - wanted).abs().max()) < 1e-15
    assert float(torch.nn.functional.cosine_similarity(pooled, wanted, dim=0)) < 0.99


# ------------------------------------------------------------------------------------------------------- loss weights
def _steps(t: Tensor) -> StepRows:
    return StepRows(t, t / 2)


def _table(dynamics: object, times: Tensor):
    steps = TreeSampler(steps=2, dynamics=FlowSDE(), forks=(0,), width=2)
    rollout = made_by(steps, draw_of(2, 1))
    rows = Transitions().probe(rollout, GuidedFlow(), rollout.seeds)
    t, t_next = times[None, :-1], times[None, 1:]
    rows = replace(rows, t=t, t_next=t_next, steps=replace(rows.steps, dynamics=dynamics))
    return table_of(torch.ones(t.shape), torch.ones(t.shape).bool(), rows=rows)


def test_step_weights_on_the_grid_of_sd35() -> None:
    times = sd3_times(10)[:10]
    table = _table(FlowSDE(0.7), times)
    _, b, s = FlowSDE(0.7).coefficients(times[:-1], times[1:])
    gain = b.abs() / s
    assert gain.tolist() == pytest.approx([0.057, 0.078, 0.129, 0.188, 0.264, 0.371, 0.536, 0.825, 1.487], abs=6e-4)
    temp = StepNoise(by="noise", over="none", scale=2.25)(table)[0]
    assert (float(temp[0]), float(temp[-1])) == pytest.approx((1.575, 0.507), abs=6e-4)
    assert (float((temp * gain)[0]), float((temp * gain)[-1])) == pytest.approx((0.090, 0.754), abs=6e-4)
    flash = StepNoise(by="equal")(table)[0]
    wanted = [2.946, 2.141, 1.300, 0.894, 0.636, 0.453, 0.314, 0.204, 0.113]
    assert flash.tolist() == pytest.approx(wanted, rel=2e-3, abs=6e-4)
    assert (flash * gain).tolist() == pytest.approx([float((flash * gain)[0])] * 9, rel=1e-12)


def test_flash_weight_is_the_released_formula_of_its_kernel() -> None:
    times = sd3_times(20)[:11]
    t, dt = times[:-1], times[:-1] - times[1:]
    g = 0.983 * t
    released = 1 / (dt.sqrt() / g + g * dt.sqrt() * (1 - t) / (2 * t))
    found = StepNoise(by="equal", over="none")(_table(LinearSDE(0.0, 0.983), times))[0]
    assert torch.allclose(found, released, rtol=1e-12)


def test_merged_steps_have_more_noise() -> None:
    times = sd3_times(10)
    for k, alone, merged in ((2, 0.536, 1.099), (4, 0.392, 0.667), (6, 0.319, 0.536), (8, 0.225, 0.441)):
        s = FlowSDE(0.7).coefficients(times[[k, k - 1]], times[[k + 1, k + 1]])[2]
        assert s.tolist() == pytest.approx([alone, merged], abs=6e-4)


def test_a_shared_step_is_measured_once_with_the_same_gradient() -> None:
    once = small("branch_grpo")
    assert isinstance(once.estimator, SharedTransitions)
    copies = replace(once, estimator=Transitions(), loss_weight=OncePerNode(), aggregation=SampleMean())
    policy = start(once)
    it = roll(once, policy)
    disturb(policy, 0.02)
    calls = policy.network_calls
    wanted = gradients(copies, it)[0]
    all_of_them = policy.network_calls - calls
    for micro_batch in (1, 7, 1000):
        calls = policy.network_calls
        found = gradients(once, it, micro_batch=micro_batch)[0]
        assert float((found - wanted).norm()) <= 2e-6 * float(wanted.norm())
        if micro_batch == 1000:  # of 32 samples: two leaves share the first step, none of the four others is shared
            assert all_of_them == 32 * 5 and policy.network_calls - calls == 16 + 32 * 4


def test_a_step_that_two_processes_have_counts_once() -> None:
    made = made_by(TreeSampler(steps=6, dynamics=FlowSDE(), forks=(0, 1), width=2), draw_of(4, groups=1))
    rows = SharedTransitions().probe(made, GuidedFlow(), made.seeds)
    assert rows.counted is not None and rows.counted.tolist() == [
        [True, True],
        [False, True],
        [True, True],
        [False, True],
    ]

    def work(ranks: ThreadRanks) -> list[list[bool]]:
        half = torch.arange(2) + 2 * ranks.rank
        part = SharedTransitions().probe(take(made, half), GuidedFlow(), made.seeds[half])
        whole = part.gathered(Share.of(ranks, half))
        assert whole.counted is not None
        return whole.counted.tolist()

    assert in_threads(2, work) == [rows.counted.tolist()] * 2


def test_an_edge_counts_once_however_many_samples_share_it() -> None:
    algorithm = replace(small("branch_grpo"), estimator=Transitions())
    it = roll(algorithm, start(algorithm))
    rows = algorithm.estimator.probe(it.rollout, it.policy, it.draw.seeds)
    group = it.draw.group
    table = replace(table_of(torch.ones(rows.shape), torch.ones(rows.shape).bool(), rows=rows), group=group)
    factor = OncePerNode()(table)
    edges = 2 * 4 * (2 + 4 * 4)  # prompts x trees x edges
    for e in range(rows.shape[1]):
        assert float(factor[:, e].sum()) == pytest.approx(2 * 4 * (2 if e == 0 else 4) * factor.numel() / edges)
    assert float(factor.mean()) == pytest.approx(1)


def test_a_tree_with_one_fork_has_the_gradient_of_grpo() -> None:
    plain = small("flow_grpo", kl=0.0, clip=0.2)
    plain = replace(
        plain, sampler=replace(plain.sampler, share_noise=True), advantage=GroupCentred(scale="none", clip=None)
    )
    sampler = TreeSampler(steps=6, dynamics=plain.sampler.dynamics, window=EveryStep(drop=1), forks=(0,), width=16)
    tree = replace(plain, sampler=sampler, advantage=Tree())
    policy = start(plain)
    wanted = gradients(plain, roll(plain, policy))[0]
    found = gradients(tree, roll(tree, policy))[0]
    assert float((found - wanted).norm()) <= 1e-6 * float(wanted.norm())
