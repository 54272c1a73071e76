"""What tells the methods for masked-diffusion models apart, against enumeration on tables of three tokens."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from flowrl import composition
from flowrl.config import Config
from flowrl.errors import UserError
from flowrl.estimators.bound_views import CountPairs, EveryBlock
from flowrl.estimators.masked import MaskedViews
from flowrl.estimators.path_views import Leftmost, RecordedSteps, SampledSteps, TwoStates
from flowrl.estimators.views import FullMask, Quadrature, Trajectory, ViewDraw
from flowrl.math.masking import through_end
from flowrl.math.random import seeds
from flowrl.models.tiny_text import TinyText
from flowrl.parts.aggregations import DecisionMean, SampleMean, StepMean
from flowrl.parts.bounds import SelfNormalised
from flowrl.parts.group_advantages import RescuedCentred
from flowrl.parts.objectives import Clipped, ClippedMean
from flowrl.parts.regularizers import BoundKL
from flowrl.parts.selections import AllSamples, RescuedGroups, mixed
from flowrl.parts.step_advantages import Outlook
from flowrl.parts.token_advantages import GivenTokens, LargestSteps, SurrogateImportance
from flowrl.runtime.timing import PhaseTimer
from flowrl.samplers.editing import EditingSampler
from flowrl.samplers.hinted import HintedSampler
from flowrl.samplers.masked import MaskedSampler
from flowrl.session import open_session
from flowrl.startup.preflight import check_run
from flowrl.train import iterate
from flowrl.types import (
    DATA,
    POLICY,
    Batch,
    Draw,
    IncompatibleError,
    Likelihood,
    Prompt,
    Scores,
    TokenScores,
    TokenTrace,
    ViewRows,
    prompts_of,
)
from tests.contract.toys import disturb, gradients, roll, rollout_of, small, start, table_of
from tests.training import Work, config_of, train
from tests.unit.test_masked_bounds import (
    Y,
    Z,
    assert_mean,
    estimates,
    every,
    exact_elbo,
    exact_log_likelihood,
    log_at,
    subset_sum,
    table,
)

LEFT = torch.arange(3)


def cells_of(plan: ViewDraw, trace: TokenTrace, policy: TinyText, seed: int = 1) -> tuple[Tensor, ViewRows]:
    """[N, m, L] log-probabilities of what a plan asks of completions, with gradient, and its views."""
    count = len(trace.tokens)
    rollout = rollout_of(policy.condition(prompts_of([""] * count)), trace.tokens, trace)
    estimator = MaskedViews(views=plan, per="cell")
    rows = estimator.probe(rollout, policy, seeds(seed, "views", count=count))
    return estimator(policy, rows, rollout.condition).logp.double().view(rows.inputs.shape), rows


def of_all(order: Tensor = LEFT, **options) -> TokenTrace:
    """All 27 completions, fixed in one order."""
    tokens = torch.tensor(every(3))
    mask = torch.ones_like(tokens, dtype=torch.bool)
    ended = torch.zeros(len(tokens), dtype=torch.bool)
    return TokenTrace(tokens, mask, 1.0, order=order.expand(len(tokens), -1), ended=ended, **options)


def flat(value: Tensor, policy: TinyText) -> Tensor:
    return torch.autograd.grad(value, policy.table, retain_graph=True)[0].flatten()


def cosine(first: Tensor, second: Tensor) -> float:
    return float(first @ second / first.norm() / second.norm())


# ------------------------------------------------------------------------------------------------------- JustGRPO
def test_left_to_right_views_are_the_exact_policy() -> None:
    """The probabilities of all completions sum to 1, and the mean score times reward is the gradient of the expected
    reward: no other plan of one-token views has that."""
    policy, trace = table(3), of_all()
    cells, _ = cells_of(Leftmost(limit=3), trace, policy)
    logp = cells.sum(dim=(1, 2))
    assert float(logp.detach().exp().sum()) == pytest.approx(1, abs=1e-12)
    reward = (trace.tokens == torch.tensor([1, 0, 2])).double().sum(dim=1) ** 2
    exact = flat((logp.exp() * reward).sum(), policy)
    measured = flat((logp.exp().detach() * reward * logp).sum(), policy)
    assert float((measured - exact).abs().max()) < 1e-14
    other = flat((logp.exp().detach() * reward * cells_of(FullMask(), trace, policy)[0].sum(dim=(1, 2))).sum(), policy)
    assert cosine(other, exact) < 0.9


def test_one_view_is_one_token_whatever_the_reduction() -> None:
    policy = table(3)
    by_cell = cells_of(Leftmost(limit=4), of_all(), policy)[0].sum(dim=2)
    trace = of_all()
    rollout = rollout_of(policy.condition(prompts_of([""] * 27)), trace.tokens, trace)
    estimator = MaskedViews(views=Leftmost(limit=4))
    rows = estimator.probe(rollout, policy, seeds(0, "v", count=27))
    assert rows.unit == 1 and rows.shape == (27, 4)  # a view of its own each: one is in memory at a time
    assert torch.allclose(estimator(policy, rows, rollout.condition).logp.double(), by_cell)
    assert not bool((by_cell[:, 3] != 0).any())


def test_scoring_the_least_likely_positions_alone_is_biased_and_random_ones_are_not() -> None:
    policy = table(3)
    cells, _ = cells_of(Leftmost(limit=3), of_all(), policy)
    tokens = cells.sum(dim=2)  # [27, 3]
    reward = (of_all().tokens == torch.tensor([1, 0, 2])).double().sum(dim=1)
    weight = tokens.sum(dim=1).exp().detach() * reward
    exact = flat((weight * tokens.sum(dim=1)).sum(), policy)
    trace = of_all(logp=tokens.detach())
    fast, rows = cells_of(Leftmost(limit=3, positions="low_logp", share=0.3), trace, policy)
    assert rows.targets.shape[1] == 1
    assert torch.equal(rows.targets[:, 0].int().argmax(dim=1), tokens.argmin(dim=1))
    biased = cosine(flat((weight * fast.sum(dim=(1, 2))).sum(), policy), exact)
    assert 0.2 < biased < 0.99
    asked = Leftmost(limit=3, positions="random", share=0.3)
    chosen = asked(
        TokenTrace(torch.ones(30_000, 3).long(), torch.ones(30_000, 3).bool(), 1.0), seeds(2, "r", count=30_000)
    )
    assert torch.allclose(chosen.targets[:, 0].double().mean(dim=0), torch.full((3,), 1 / 3).double(), atol=0.01)
    found, rows = cells_of(replace(asked, share=1.0), of_all(), policy)
    assert torch.allclose(found.sum(dim=(1, 2)), tokens.sum(dim=1))  # a share of 1 is all


def test_samples_without_advantage_do_not_count_in_the_mean() -> None:
    """The release divides by their number, a count and not a share of the batch."""
    algorithm = small("just_grpo")
    it = roll(algorithm, start(algorithm))
    it.advantage[:16] = 0
    alone = gradients(algorithm, it)[0]
    every = gradients(replace(algorithm, selection=AllSamples()), it)[0]
    assert torch.allclose(alone, 2 * every, atol=1e-8) and float(alone.norm()) > 0


def test_the_most_uncertain_positions_are_those_of_the_largest_entropy() -> None:
    entropy = torch.tensor([[0.3, 0.1, 0.9, 0.2], [0.3, 0.9, 0.1, 0.8]])
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    trace = TokenTrace(torch.ones(2, 4).long(), mask, 1.0, entropy=entropy)
    views = Leftmost(limit=4, positions="entropy", share=0.5)(trace, seeds(0, "e", count=2))
    asked = torch.tensor([[[1, 0, 0, 0], [0, 0, 1, 0]], [[0, 1, 0, 0], [0, 0, 0, 0]]]).bool()
    assert torch.equal(views.targets, asked)
    hidden = torch.tensor([[[1, 1, 1, 1], [0, 0, 1, 1]], [[0, 1, 1, 1], [1, 1, 1, 1]]]).bool()
    assert torch.equal(views.hidden, hidden)


# ---------------------------------------------------------------------------------------------------------- AGRPO
ORDER = torch.tensor([1, 0, 2])


@pytest.mark.parametrize("law", ["uniform", "entropy"])
def test_drawn_steps_estimate_the_mean_over_steps(law: str) -> None:
    """The draws of a completion are stratified, so that a thousand of them leave nothing to chance but the strata's
    ends: whatever the law, the weights make the mean over views that over steps, and of the path the sum."""
    policy, entropy = table(3), torch.tensor([0.2, 0.7, 0.05]).expand(27, -1)
    trace = of_all(ORDER, entropy=entropy)
    path = cells_of(Trajectory(limit=3), trace, policy)[0].sum(dim=(1, 2))
    plan = SampledSteps(draws=1000, law=law)
    cells, rows = cells_of(plan, trace, policy)
    estimate = (cells * rows.weights).sum(dim=2).mean(dim=1)
    assert float((estimate - path / 3).abs().max()) < 0.01
    share = rows.targets.double().mean(dim=1)[0]  # of the draws, by position
    wanted = torch.full((3,), 1 / 3) if law == "uniform" else entropy[0] / entropy[0].sum()
    assert torch.allclose(share, wanted.double(), atol=3e-3)
    cells, rows = cells_of(replace(plan, of="path"), trace, policy)
    assert float(((cells * rows.weights).sum(dim=2).mean(dim=1) - path).abs().max()) < 0.03


def test_the_last_step_is_drawn_as_often_as_the_others() -> None:
    """The released uniform law takes floor(u S) with S the number of the last step, counted from 0: never that one."""
    trace = of_all(ORDER)
    views = SampledSteps(draws=30, law="uniform")(trace, seeds(4, "s", count=27))
    per_step = views.targets.sum(dim=(0, 1))
    assert torch.equal(per_step, torch.full((3,), 27 * 10))  # strata of thirty draws: ten for each of three steps
    u = torch.linspace(0, 1, 1001, dtype=torch.float64)[:-1]
    assert int((u * 2).floor().max()) == 1


def test_steps_count_up_to_the_last_content_before_the_end() -> None:
    """Position 1 holds the end token, fixed first; 3 and 2 lie behind it: step 2 is the last that fixed content."""
    trace = TokenTrace(
        torch.tensor([[1, 0, 2, 2]]),
        torch.tensor([[True, True, False, False]]),
        1.0,
        order=torch.tensor([[5, 1, 8, 3]]),
        ended=torch.tensor([True]),
    )
    views = SampledSteps(draws=6, law="uniform")(trace, seeds(4, "s", count=1))
    asked = {tuple(row) for row in views.targets[0].int().tolist()}
    assert asked == {(0, 1, 0, 0), (0, 0, 0, 1), (1, 0, 0, 0)}  # steps 1, 3 and 5: the 8 comes after
    shown = views.targets[0, :, 0].nonzero()[0, 0]
    assert (~views.hidden[0, shown]).int().tolist() == [0, 1, 0, 1]  # what was fixed earlier, behind the end too
    short = replace(trace, mask=torch.tensor([[True, False, False, False]]), tokens=torch.tensor([[0, 1, 2, 2]]))
    only = SampledSteps(draws=2, law="uniform")(short, seeds(4, "s", count=1))
    assert torch.equal(only.targets[0].int(), torch.tensor([[0, 1, 0, 0]] * 2))  # an empty answer: its first step


def test_kept_scores_are_those_of_the_trajectory_under_the_law_that_drew() -> None:
    """With temperature and nucleus: what the sampler keeps is what the estimator says, so the ratio to it is 1."""
    algorithm = small("agrpo", sampler={"top_p": 0.7})
    policy = start(algorithm)
    it = roll(algorithm, policy)
    trace = it.rollout.trace
    assert isinstance(trace, TokenTrace) and trace.logp is not None and trace.entropy is not None
    estimator = MaskedViews(views=Trajectory(limit=3), per="cell", tempered=True)
    rows = estimator.probe(it.rollout, policy, it.draw.seeds)
    said = estimator(policy, rows, it.rollout.condition)
    fixed = trace.order >= 0
    logp = said.logp.detach().view(rows.inputs.shape).sum(dim=1)
    assert float((logp - trace.logp)[fixed].abs().max()) < 1e-5
    entropy = said.extra["entropy"].view(rows.inputs.shape).nan_to_num(0.0).sum(dim=1)
    assert float((entropy - trace.entropy)[fixed].abs().max()) < 1e-5
    assert bool((trace.logp[~fixed] == 0).all()) and float(trace.logp.exp().max()) > 0.999  # some had one choice left
    plain = roll(replace(algorithm, sampler=replace(algorithm.sampler, keep_scores=False)), policy)
    assert plain.rollout.trace.logp is None and torch.equal(plain.rollout.final, it.rollout.final)


# ------------------------------------------------------------------------------------------------- d2 and DiFFPO
def test_merged_steps_lie_between_the_full_mask_and_the_path() -> None:
    """N = 1 segment is the full mask, N = steps the path; the gap to the path is a divergence, so never negative."""
    policy, trace = table(3), of_all(ORDER)
    path = cells_of(Trajectory(limit=3), trace, policy)[0].sum(dim=(1, 2)).detach()
    one = cells_of(FullMask(), trace, policy)[0].sum(dim=(1, 2)).detach()
    gaps = []
    for merge, limit in ((3, 1), (2, 2), (1, 3)):
        found = cells_of(Trajectory(limit=limit, merge=merge, by="steps"), trace, policy)[0].sum(dim=(1, 2)).detach()
        gaps.append(float((path.exp() * (path - found)).sum()))
        if merge == 3:
            assert torch.allclose(found, one)
    assert gaps[0] > gaps[1] > gaps[2] == pytest.approx(0, abs=1e-12)


def test_segments_are_equal_in_the_samplers_steps() -> None:
    """A completion that fixed nothing in step 1 of 4 has another segment than by its own steps."""
    trace = TokenTrace(torch.ones(1, 3).long(), torch.ones(1, 3).bool(), 1.0, order=torch.tensor([[0, 2, 3]]))
    by_steps = Trajectory(limit=2, merge=2, by="steps")(trace, seeds(0, "s", count=1)).targets[0].int().tolist()
    own = Trajectory(limit=2, merge=2)(trace, seeds(0, "s", count=1)).targets[0].int().tolist()
    assert by_steps == [[1, 0, 0], [0, 1, 1]] and own == [[1, 1, 0], [0, 0, 1]]
    assert composition.build({"use": "d2", "steps": 30, "segments": 4}).estimator.views.merge == 8


def test_two_states_ask_early_tokens_of_the_full_mask_and_late_ones_of_a_cut() -> None:
    policy, trace = table(3), of_all(ORDER)
    many = replace(trace, **{k: getattr(trace, k).repeat(20, 1) for k in ("tokens", "mask", "order")})
    cells, rows = cells_of(TwoStates(), replace(many, ended=None), policy)
    early = rows.targets[:, 0]
    cuts = early.sum(dim=1)
    assert torch.bincount(cuts, minlength=4).min() > 540 / 4 * 0.7  # 0, 1, 2 or 3 tokens fixed before, all as often
    for row in range(0, 540, 7):
        tokens, cut = tuple(many.tokens[row].tolist()), int(cuts[row])
        first = frozenset(i for i in range(3) if int(ORDER[i]) < cut)
        rest = frozenset(range(3)) - first
        wanted = sum(log_at(tokens, frozenset(range(3)), i) for i in first) + subset_sum(tokens, rest)
        assert float(cells[row].sum()) == pytest.approx(wanted, abs=1e-6)
    estimate = (cells * rows.weights).sum(dim=2).mean(dim=1)
    assert torch.allclose(estimate, cells.sum(dim=(1, 2)))


def test_the_surrogate_is_weighted_by_its_ratio_to_what_drew() -> None:
    drawn = torch.tensor([[0.5, 0.1]]).log()
    views = torch.ones(1, 1, 2)
    ones = views.bool()
    rows = ViewRows(views.long(), views.long(), ones, views.double(), ones[0], ones[0, :, :1], "cell", 1.0)
    table = table_of(torch.ones(1, 2).double(), torch.ones(1, 2).bool(), Likelihood(torch.tensor([[0.4, 0.9]]).log()))
    table = replace(table, rows=replace(rows, drawn_logp=drawn))
    assert SurrogateImportance(2.0)(table).advantage[0].tolist() == pytest.approx([0.8, 2.0])
    with pytest.raises(IncompatibleError, match=r"sampler\.keep_scores: true"):
        SurrogateImportance()(replace(table, rows=rows))


# -------------------------------------------------------------------------------------------------------- CJ-GRPO
def test_a_mean_of_step_means_lets_the_first_tokens_of_a_doubling_schedule_count_more() -> None:
    """Steps of 1, 2, 4 and 8 tokens: 1/4, 1/8, 1/16 and 1/32 each, where a token mean gives 1/15."""
    step = torch.tensor([0, 1, 1, *[2] * 4, *[3] * 8])
    mask = (step == torch.arange(4)[:, None]).reshape(1, -1)  # [1, 4 views x 15 positions]
    weight = StepMean()(mask, 15).view(4, 15).sum(dim=0)
    assert torch.allclose(weight, torch.tensor([1 / 4, 1 / 8, 1 / 16, 1 / 32]).double()[step])
    assert torch.allclose(DecisionMean()(mask, 15).sum(), weight.sum())
    assert torch.allclose(DecisionMean()(mask, 15).view(4, 15).sum(dim=0), torch.full((15,), 1 / 15).double())
    two = torch.cat([mask, mask & (torch.arange(60) < 15)])  # another sample that only took the first step
    found = StepMean()(two, 15).view(2, 4, 15).sum(dim=2)
    assert torch.allclose(found, torch.tensor([[1 / 8, 1 / 4, 1 / 4, 1 / 4], [1 / 8, 0, 0, 0]]).double())
    even = torch.ones(2, 12, dtype=torch.bool)
    assert torch.allclose(StepMean()(even, 3), DecisionMean()(even, 3))  # the same where steps are as large


def rolled(length: int, **options) -> TokenTrace:
    policy = TinyText(3, length, end=0, scale=0.7)
    with torch.no_grad():
        policy.table[..., 0] += 1  # ends are likely
    sampler = MaskedSampler(length=length, block=None, **options)
    count = 400
    draw = Draw.of(seeds(0, "cj", count=count), torch.zeros(count, dtype=torch.long), 0, 0)
    return sampler(policy, policy.condition(prompts_of([""] * count)), draw).trace


def test_ascending_steps_double() -> None:
    trace = rolled(6, steps=3, schedule="doubling", order="low_confidence")
    counts = torch.stack([(trace.order == k).sum(dim=1) for k in range(3)], dim=1)
    assert counts.unique(dim=0).tolist() == [[1, 2, 3]]  # and what is left in the last
    assert MaskedSampler(length=256, steps=8, block=None, schedule="doubling").forwards == 8


def test_ends_are_fixed_late() -> None:
    """With a factor of 0 an end token is fixed first only where every position drew one; in the last step nothing is
    held back. Whether it was drawn is what decides, so the path's score is no policy gradient."""
    plain, held = (rolled(4, steps=4, order="low_confidence", end_reserve=reserve) for reserve in (1.0, 0.0))
    first = [float((trace.tokens[trace.order == 0] == 0).double().mean()) for trace in (plain, held)]
    assert first[1] < 0.15 < 0.5 < first[0]
    late = [float(trace.order[trace.tokens == 0].double().mean()) for trace in (plain, held)]
    assert late[1] > late[0] + 0.5
    sampler = MaskedSampler(end_reserve=0.01, order="max_prob")
    assert not sampler.exact and MaskedSampler(order="max_prob").exact
    with pytest.raises(ValueError, match="multiplies a probability, and the order random has none"):
        MaskedSampler(end_reserve=0.5, order="random")
    with pytest.raises(ValueError, match="end_reserve=2 is a factor"):
        MaskedSampler(end_reserve=2)


# --------------------------------------------------------------------------------------------------- ESPO and EBPO
@pytest.mark.parametrize("tokens", [Y, Z])
@pytest.mark.parametrize("pairs", [1, 2])
def test_pairs_of_counts_are_the_bound(tokens: tuple[int, ...], pairs: int) -> None:
    assert_mean(estimates(CountPairs(pairs=pairs), tokens, 5_000), exact_elbo(tokens))


def test_a_pair_asks_for_every_token_once() -> None:
    mask = torch.arange(5).expand(300, -1) < 4
    views = CountPairs(pairs=2)(TokenTrace(torch.ones(300, 5).long(), mask, 1.0), seeds(0, "p", count=300))
    for pair in (0, 1):
        one, other = views.targets[:, pair], views.targets[:, 2 + pair]
        assert torch.equal(one ^ other, mask) and not bool((one & other).any())
        k = one.sum(dim=1)
        weight = views.weights[:, pair].amax(dim=1)
        assert torch.allclose(weight[k > 0], 5 / k[k > 0].double())
        assert torch.allclose(views.weights[:, 2 + pair].amax(dim=1)[k < 4], 5 / (4 - k[k < 4]).double())
        assert torch.bincount(k, minlength=5).min() > 300 / 5 / 2  # 0 and 4 as well
    assert bool(views.hidden[..., 4].all())


def block_bound(tokens: tuple[int, ...], block: int) -> float:
    """The sum over blocks of each one's any-order bound, earlier blocks shown and later ones hidden."""
    total = 0.0
    for start_ in range(0, len(tokens), block):
        inside = range(start_, min(start_ + block, len(tokens)))
        later = frozenset(range(start_ + len(inside), len(tokens)))
        orders = list(itertools.permutations(inside))
        for order in orders:
            hidden = set(inside)
            for i in order:
                total += log_at(tokens, frozenset(hidden) | later, i) / len(orders)
                hidden.remove(i)
    return total


@pytest.mark.parametrize(("tokens", "block"), [(Y, 2), (Z, 2), (Z, 3), (Z, 1), (Z, 4)])
def test_all_blocks_together_are_the_bound_of_a_sampler_of_blocks(tokens: tuple[int, ...], block: int) -> None:
    plan = EveryBlock(length=len(tokens), block=block, repeats=2)
    assert plan.draws == 2 * math.ceil(len(tokens) / block)
    assert_mean(estimates(plan, tokens, 4_000), block_bound(tokens, block))
    if block == 4:
        assert block_bound(tokens, block) == pytest.approx(exact_elbo(tokens), abs=1e-12)
    if block == 1:
        assert float(estimates(plan, tokens, 2).std()) < 1e-6  # left to right: nothing is drawn
        assert block_bound(tokens, 1) < exact_log_likelihood(tokens) + 5


def test_blocks_behind_the_end_are_empty_and_counts_are_uniform() -> None:
    mask = torch.arange(9).expand(600, -1) < 5
    trace = TokenTrace(torch.ones(600, 9).long(), mask, 1.0)
    views = EveryBlock(length=9, block=3)(trace, seeds(3, "b", count=600))
    assert not bool(views.targets[:, 2].any()) and bool(views.hidden[:, :, 5:].all())
    count = views.targets.sum(dim=2)
    assert torch.bincount(count[:, 0], minlength=4)[1:].min() > 600 / 3 * 0.8
    assert torch.bincount(count[:, 1], minlength=3)[1:].min() > 600 / 2 * 0.8
    assert bool((~views.hidden[:, 1, :3]).all()) and bool(views.hidden[:, 0, 3:].all())
    assert torch.allclose(views.weights[:, 0].amax(dim=1), 3 * 3 / count[:, 0].double())
    with pytest.raises(IncompatibleError, match=r"raise estimator\.views\.length=6"):
        EveryBlock(length=6)(trace, seeds(3, "b", count=600))


def sequences(logp: list[float], length: int = 4, per: str = "view") -> tuple[Likelihood, Batch, ViewRows]:
    """Bounds of completions of ``length`` tokens, one view each, and an old policy of bound 0."""
    n = len(logp)
    ones = torch.ones(n, 1, length)
    rows = ViewRows(
        ones.long(),
        ones.long(),
        ones.bool(),
        ones.double() / length,
        ones[:, 0].bool(),
        ones[:, 0, :1].long(),
        per,
        1.0,
    )
    live = torch.tensor(logp, dtype=torch.float64)[:, None].expand(n, rows.shape[1]).clone().requires_grad_()
    old = Likelihood(torch.zeros(rows.shape).double())
    batch = Batch(torch.ones(rows.shape).double(), old, torch.ones(rows.shape).double(), torch.zeros(n), rows)
    return Likelihood(live, {"log_ratio/reference": (live - 1).detach()}), batch, rows


def test_the_divergence_of_bounds_is_squared_after_the_mean_and_divided_by_the_length_once() -> None:
    two = torch.tensor([[3.0, -1.0]], dtype=torch.float64, requires_grad=True)
    live, batch, _ = sequences([0.0], length=256)
    wide = Likelihood(two, {"log_ratio/reference": two.detach()})
    batch = replace(batch, weight=torch.ones(1, 2), probe=replace(batch.probe, inputs=torch.ones(1, 2, 256)))
    value = BoundKL()(wide, batch)
    assert value.tolist() == [[pytest.approx(1 / 512)] * 2]  # mean 1; of squares it would be 5
    assert torch.autograd.grad(value[0, 0], two)[0].tolist() == [[pytest.approx(0.5 / 256)] * 2]
    normalised = 0.5 * (1 / 256) ** 2
    assert float(value[0, 0]) / normalised == pytest.approx(256)
    with pytest.raises(IncompatibleError, match=r"set estimator\.per=view"):
        BoundKL()(live, replace(batch, probe=replace(batch.probe, per="cell")))


def test_a_coupled_regularizer_sees_all_views_whatever_the_micro_batch() -> None:
    plain = small("elbo_pg", draws=2)
    algorithm = replace(plain, regularizers=(BoundKL(0.5),))
    assert algorithm.coupled and not plain.coupled
    assert not replace(plain, regularizers=(BoundKL(0.0),)).coupled
    policy = start(algorithm)
    it = roll(algorithm, policy)
    disturb(policy, 0.1)
    whole, pieces = (gradients(algorithm, it, micro_batch=rows)[0] for rows in (1000, 1))
    assert torch.allclose(pieces, whole, rtol=2e-4, atol=2e-6 * float(whole.norm()))
    assert float((whole - gradients(plain, it)[0]).norm()) > 0.01 * float(whole.norm())


def test_a_clip_of_zero_is_not_no_clip() -> None:
    """ESPO's Countdown script: at ratio 1 the tie passes half of the gradient."""
    pair = []
    for clip in (0.2, 0.0):
        algorithm = small("espo", clip=clip, kl=0.0)
        pair.append(gradients(algorithm, roll(algorithm, start(algorithm)))[0])
    assert torch.allclose(pair[1], pair[0] / 2, atol=1e-9) and float(pair[0].norm()) > 0


def test_ratios_of_bounds_by_their_length() -> None:
    """0.01 nats a token on 60 tokens: 1.0101 by the content's length, 1.82 for whole completions; ESPO and GDPO divide,
    EBPO does not. The slope is A / L at the old policy."""
    live, batch, _ = sequences([0.6, 0.0], length=60)
    divided, whole = ClippedMean(0.5, 0.5, by_length=True), ClippedMean(0.2, 0.2)
    assert float(divided.log_ratio(live, batch)[0].exp()) == pytest.approx(1.0101, abs=1e-4)
    assert float(whole.log_ratio(live, batch)[0].exp()) == pytest.approx(1.82, abs=5e-3)
    slope = torch.autograd.grad(divided(live, batch)[1].sum(), live.logp)[0][1]
    assert float(slope) == pytest.approx(-1 / 60)
    assert composition.build("espo").objective.by_length and composition.build("gdpo_dllm").objective.by_length
    assert not composition.build("ebpo").objective.by_length


@pytest.mark.parametrize(("nodes", "shares"), [(3, (1.026, 0.872, 0.988, 0.992)), (2, (0.771, 0.919, 0.976, 0.997))])
def test_rounding_down_the_number_of_hidden_tokens_is_biased(nodes: int, shares: tuple[float, ...]) -> None:
    """A constant log-probability as GDPO's released counts estimate it, over the true value. With three nodes and eight
    tokens it would be .718 if the first node hid none; at least one is hidden."""
    for length, share in zip((8, 16, 64, 256), shares, strict=True):
        trace = TokenTrace(torch.ones(1, length).long(), torch.ones(1, length).bool(), 1.0)
        views = Quadrature(nodes=nodes, counts="floor")(trace, seeds(0, "q", count=1))
        assert float(views.weights.sum(dim=2).mean(dim=1) / length) == pytest.approx(share, abs=6e-4)


# ------------------------------------------------------------------------------------------------------ StableDRL
def test_normalised_weights_are_the_clipped_ratios_over_their_sum() -> None:
    log_ratio = [0.0, 0.1, 3.0, -2.0]
    live, batch, _ = sequences([4 * r for r in log_ratio], per="cell")  # one number in each of 4 cells: L times it
    live = Likelihood(torch.tensor(log_ratio).double()[:, None].expand(4, 4).clone().requires_grad_())
    batch = replace(batch, probe=replace(batch.probe, weights=torch.ones(4, 1, 4).double()))
    objective = SelfNormalised(omega=0.0)
    loss = (SampleMean()(torch.ones(4, 4).bool()) * objective(live, batch)).sum()
    slopes = -torch.autograd.grad(loss, live.logp)[0].sum(dim=1)  # A = 1: a sample's weight
    clipped = torch.tensor(log_ratio).double().exp().clamp(max=5)
    assert torch.allclose(slopes, clipped / clipped.sum(), atol=1e-7)
    assert [round(float(w), 3) for w in slopes] == [0.138, 0.153, 0.691, 0.019]
    both = replace(objective, low=0.8, high=1.2)
    loss = (SampleMean()(torch.ones(4, 4).bool()) * both(live, batch)).sum()
    weight = torch.tensor([1.0, math.exp(0.1), 1.2, 0.8]).double()
    assert torch.allclose(-torch.autograd.grad(loss, live.logp)[0].sum(dim=1), weight / weight.sum(), atol=1e-7)
    with pytest.raises(ValueError, match=r"low=1.5 and high=5.0 are bounds of a ratio"):
        SelfNormalised(low=1.5)


def test_the_gradient_stays_within_the_hull_where_ppo_leaves_it() -> None:
    """A bad sample that has become twenty times as likely: PPO's min passes all of it, the weights cannot."""
    advantage, ratio = torch.tensor([1.0, -1.0, 0.5, -0.3]).double(), torch.tensor([1.0, 20.0, 0.5, 2.0]).double()
    live = Likelihood(ratio.log()[:, None].expand(4, 4).clone().requires_grad_())
    _, batch, _ = sequences([0.0] * 4, per="cell")
    weights = torch.ones(4, 1, 4).double()
    batch = replace(batch, advantage=advantage[:, None].expand(4, 4), probe=replace(batch.probe, weights=weights))
    longest = float(advantage.abs().max())  # the samples' own gradients have slope A each
    mean = SampleMean()(torch.ones(4, 4).bool())
    slopes = torch.autograd.grad((mean * SelfNormalised(omega=0.0)(live, batch)).sum(), live.logp)[0].sum(dim=1)
    assert float(slopes.abs().sum()) <= longest
    ppo = torch.autograd.grad((mean * Clipped()(live, batch)).sum(), live.logp)[0].sum(dim=1)
    assert float(ppo.abs().max()) > 4 * longest


def test_the_weights_are_even_before_an_update_because_masks_are_shared() -> None:
    """The release scores new and old on other masks, whose noise is then in the weights at the same policy."""
    algorithm = small("stable_drl")
    policy = start(algorithm)
    it = roll(algorithm, policy)
    rows = algorithm.estimator.probe(it.rollout, policy, it.draw.seeds)
    other = algorithm.estimator.probe(it.rollout, policy, it.draw.seeds + 1)
    live = algorithm.estimator(policy, rows, it.rollout.condition)
    batch = Batch(torch.ones(rows.shape), live, torch.ones(rows.shape), it.draw.group, rows)
    assert float(algorithm.objective.log_ratio(live, batch).abs().max()) == 0
    old = algorithm.estimator(policy, other, it.rollout.condition)
    mixed = algorithm.objective.log_ratio(live, replace(batch, old=old, probe=rows))
    assert float(mixed.abs().max()) > 0.05


# ----------------------------------------------------------------------------------------------- drafts and edits
def prize(tokens: Tensor) -> Tensor:
    return ((tokens == torch.tensor([1, 2])).double() * torch.tensor([1.0, 2.0])).sum(dim=-1)


def value_of_edits(policy: TinyText, below: float) -> Tensor:
    """The expected prize of two tokens that are drafted from the left and gone over once, over every path."""
    logp = policy.table[0].log_softmax(dim=-1)

    def at(canvas: tuple[int, ...], i: int, token: int) -> Tensor:
        return logp[policy.state(torch.tensor(canvas)), i, token].exp()

    total = torch.zeros((), dtype=torch.float64)
    for draft in itertools.product(range(3), repeat=2):
        chance = at((3, 3), 0, draft[0]) * at((draft[0], 3), 1, draft[1])
        again = [i for i in (0, 1) if float(at(draft, i, draft[i]).detach()) < below]
        for new in itertools.product(range(3), repeat=len(again)):
            tokens, path = list(draft), chance
            for i, token in zip(again, new, strict=True):
                tokens[i], path = token, path * at(draft, i, token)
            total = total + path * prize(torch.tensor(tokens))
    return total


def test_edits_chosen_by_the_state_have_the_exact_gradient_and_drafts_alone_do_not() -> None:
    policy, count, below = TinyText(3, 2, scale=1.2, dtype=torch.float64), 20_000, 0.4
    sampler = EditingSampler(length=2, steps=2, block=None, order="leftmost", edits=1, below=below)
    draw = Draw.of(seeds(1, "edit", count=count), torch.zeros(count, dtype=torch.long), 0, 0)
    made = sampler(policy, policy.condition(prompts_of([""] * count)), draw)
    value = value_of_edits(policy, below)
    assert float(prize(made.final).mean()) == pytest.approx(float(value.detach()), abs=0.03)
    assert made.forwards == 3 * count and sampler.kept_steps == 3
    exact = flat(value, policy)
    cells, _ = cells_of(RecordedSteps(limit=3), made.trace, policy)
    centred = (prize(made.final) - prize(made.final).mean())[:, None]
    whole, drafts = (flat((centred * part.sum(dim=2)).sum() / count, policy) for part in (cells, cells[:, :2]))
    assert float((whole - exact).norm() / exact.norm()) < 0.05
    assert cosine(whole, exact) > 0.999 and cosine(drafts, exact) < 0.97
    changed = made.trace.order == 2
    assert torch.equal(made.trace.tokens[changed], made.trace.drawn[:, 2].long()[changed])
    assert 0.2 < float(changed.double().mean()) < 0.9


def test_an_edit_that_draws_the_same_token_is_a_draw() -> None:
    policy = TinyText(3, 2, dtype=torch.float64)
    sampler = EditingSampler(length=2, steps=2, block=None, edits=2, below=1.0)  # every token, twice
    draw = Draw.of(seeds(1, "edit", count=50), torch.zeros(50, dtype=torch.long), 0, 0)
    trace = sampler(policy, policy.condition(prompts_of([""] * 50)), draw).trace
    assert bool((trace.drawn[:, 2:] >= 0).all()) and bool((trace.order == 3).all())
    assert torch.equal(trace.canvases[:, 3], trace.drawn[:, 2]) and torch.equal(trace.tokens, trace.drawn[:, 3].long())
    assert bool((trace.drawn[:, 2] == trace.drawn[:, 3]).any())


def test_kept_steps_are_what_was_read_and_drawn() -> None:
    """Every masked position of every step, so that some draws are rejected; the last preview is the completion."""
    policy = TinyText(3, 3, end=0, scale=0.7)
    sampler = MaskedSampler(length=3, steps=3, block=None, order="low_confidence", keep_steps=True)
    draw = Draw.of(seeds(1, "kept", count=200), torch.zeros(200, dtype=torch.long), 0, 0)
    made = sampler(policy, policy.condition(prompts_of([""] * 200)), draw)
    trace = made.trace
    for step in range(3):
        masked = trace.canvases[:, step] == policy.mask_token
        assert bool((masked.sum(dim=1) == 3 - step).all()) and torch.equal(trace.drawn[:, step] >= 0, masked)
        fixed = trace.order == step
        assert torch.equal(trace.drawn[:, step].long()[fixed], trace.tokens[fixed])
        preview = torch.where(masked, trace.drawn[:, step], trace.canvases[:, step]).long()
        assert torch.equal(trace.previews[:, step], torch.where(through_end(preview, 0), preview, policy.pad_token))
    assert torch.equal(trace.previews[:, 2], made.final)
    assert bool((trace.previews[:, 0] != made.final).any())
    plain = replace(sampler, keep_steps=False)(policy, policy.condition(prompts_of([""] * 200)), draw)
    assert torch.equal(plain.final, made.final) and plain.trace.drawn is None
    rows = RecordedSteps(limit=3, weight="hidden")(trace, draw.seeds)
    assert rows.weights.amax(dim=(0, 2)).tolist() == [3.0, 4.5, 9.0]  # 3 views times L / n of 3, 2 and 1 hidden


# ----------------------------------------------------------------------------------------------------------- MDPO
def steps_of(rewards: list[list[float]]) -> Scores:
    steps = torch.tensor(rewards, dtype=torch.float64)
    group = torch.zeros(len(steps), dtype=torch.long)
    total = steps[:, -1:]
    valid = torch.ones(len(steps), dtype=torch.bool)
    return Scores(total, torch.ones(1).double(), ("r",), group, group, valid, steps=steps)


def test_a_step_is_worth_what_it_gained_and_what_comes_after() -> None:
    """The released score is one more, which the mean over the group takes away; normalised within the step."""
    scores = steps_of([[0, 0, 1, 1], [0, 1, 0, 0]])
    part = Outlook()
    wanted = torch.tensor([[5 / 3, 2, 3, 2], [4 / 3, 2, 0, 1]]).double()
    assert torch.allclose(part.values(scores) + 1, wanted)
    centred = torch.tensor([1 / 6, 0, 1.5, 0.5]).double()
    spread = 2**0.5 * centred + 1e-4
    assert torch.allclose(part(scores, {}), torch.stack([centred / spread, -centred / spread]))
    same = steps_of([[1, 1, 1, 1], [0, 0, 0, 0]])
    assert (part.values(same) + 1).tolist() == [[3, 2, 2, 2], [1, 1, 1, 1]]


def test_the_largest_steps_are_trained_and_no_other_is_asked_for() -> None:
    algorithm = small("mdpo_dllm", keep=1)
    policy = start(algorithm)
    it = roll(algorithm, policy)
    assert it.advantage.shape == (32, 3)
    it.advantage = torch.tensor([0.5, -2.0, 1.0]).double() * torch.ones(32, 1).double()
    policy.network_calls = 0
    one = gradients(algorithm, it)[0]
    assert policy.network_calls == 32 * 3 + 32  # all steps once without gradient, then the second alone
    it.advantage[:, [0, 2]] = 0
    every = replace(algorithm, token_advantage=(LargestSteps(3),))
    ratio = 3 * 2 * 1.0  # the mean is over all 6 predictions of a completion instead of 2
    assert torch.allclose(gradients(every, it)[0] * ratio / 2, one, atol=1e-7) and float(one.norm()) > 0


@pytest.mark.slow
def test_every_step_of_a_real_run_is_rewarded() -> None:
    values = config_of("mdpo_dllm", "sudoku", train__iterations=1, algorithm__temperature=1.0)
    session = open_session(check_run(Config.of(values)))
    try:
        metrics, batch, _ = iterate(session, PhaseTimer())
    finally:
        session.rewards.close()
    steps = batch.scores.steps
    assert steps is not None and steps.shape == (20, 4) and batch.rollout.trace.previews is None
    assert torch.allclose(steps[:, -1], batch.scores.total)  # the last step's prediction is the completion
    assert float((steps[:, 0] - steps[:, -1]).abs().max()) > 0 and math.isfinite(metrics["loss"])


# ----------------------------------------------------------------------------------------------------------- IGPO
def groups_of(own: list[float], hinted: list[float]) -> Scores:
    """One group, its hinted samples first."""
    rewards = torch.tensor([*hinted, *own], dtype=torch.float64)[:, None]
    group = torch.zeros(len(rewards), dtype=torch.long)
    source = torch.tensor([DATA] * len(hinted) + [POLICY] * len(own))
    every = torch.ones(len(rewards), dtype=torch.bool)
    return Scores(rewards, torch.ones(1).double(), ("r",), group, group, every, source=source)


def test_hinted_samples_rescue_a_group_that_failed_and_no_other() -> None:
    failed = groups_of([0, 0, 0.5, 0], [1, 0, 1, 1])
    assert mixed(failed, 1.0, 2).int().tolist() == [1, 0, 1, 0, 0, 0, 1, 1]  # two right ones, for the first two
    advantage = RescuedCentred(1.0, 2)(failed, {})
    mean = (1 + 1 + 0.5 + 0) / 4
    assert advantage.tolist() == pytest.approx([1 - mean, 0, 1 - mean, 0, 0, 0, 0.5 - mean, -mean])
    solved = groups_of([0, 1, 0, 0], [1, 0, 1, 1])
    assert mixed(solved, 1.0, 2).int().tolist() == [0] * 4 + [1] * 4
    assert RescuedCentred(1.0, 2)(solved, {}).tolist() == pytest.approx([0, 0, 0, 0, -0.25, 0.75, -0.25, -0.25])
    hopeless = groups_of([0, 0], [0, 0])
    assert RescuedGroups()(hopeless, torch.zeros(4)).tolist() == [False, False, True, True]
    assert mixed(groups_of([0], [1, 1, 1]), 1.0, 4).int().tolist() == [1, 0, 0, 0]  # no more than there are


def test_a_fifth_of_the_given_tokens_is_trained_and_all_drawn_ones() -> None:
    """Seven of 37, one of three, of each view by itself; those of the largest entropy."""
    length = 40
    given = torch.arange(length) < 37
    targets = torch.ones(2, 1, length, dtype=torch.bool)
    targets[1, 0, 3:37] = False
    ones = torch.ones(2, 1, length)
    rows = ViewRows(ones.long(), ones.long(), targets, ones.double(), targets[:, 0], ones[:, 0, :1].long(), "cell", 1.0)
    entropy = torch.arange(length).flip(0).double().expand(2, -1)
    old = Likelihood(torch.zeros(2, length).double(), {"entropy": entropy})
    table = table_of(torch.ones(2, length).double(), targets.flatten(1), old)
    table = replace(table, rows=replace(rows, given=given.expand(2, -1)))
    mask = GivenTokens(0.2)(table).mask
    assert mask.sum(dim=1).tolist() == [7 + 3, 1 + 3] and bool(mask[:, 37:].all())
    assert bool(mask[0, :7].all()) and not bool(mask[0, 7:37].any())
    with pytest.raises(IncompatibleError, match="needs a HintedSampler"):
        GivenTokens()(replace(table, rows=rows))


def test_hints_are_whole_chunks_of_the_solution_in_their_places() -> None:
    policy = TinyText(4, 6, end=0)
    sampler = HintedSampler(length=6, steps=6, block=3, hints=2, least=2, most=2, low=0.5, high=0.9)
    count = 400
    prompts = [Prompt("", 0, {"solution": "12312"})] * count
    place = torch.arange(count) % 4
    draw = replace(Draw.of(seeds(0, "hint", count=count), torch.arange(count) // 4, 0, 0, prompts), place=place)
    made = sampler(policy, policy.condition(draw.prompts), draw)
    trace, hinted = made.trace, place < 2
    assert torch.equal(made.source, torch.where(hinted, DATA, POLICY)) and not bool(trace.given[~hinted].any())
    solution = torch.tensor([1, 2, 3, 1, 2, 0])
    assert bool((trace.tokens == solution)[trace.given].all()) and not bool(trace.given[:, 5].any())
    whole = sampler._given(policy, draw)[1][hinted]
    assert {tuple(row) for row in whole.int().tolist()} <= {
        (0, 0, 0, 0, 0, 0), (1, 1, 0, 0, 0, 0), (0, 0, 1, 1, 0, 0), (1, 1, 1, 1, 0, 0), (0, 0, 0, 0, 1, 0),
        (1, 1, 0, 0, 1, 0), (0, 0, 1, 1, 1, 0),
    }  # fmt: skip
    share = whole.sum(dim=1) / 5
    assert float(share.max()) <= 0.9 and 0.3 < float(share.mean()) < 0.7
    plain = sampler.data.sampler(policy, policy.condition(draw.prompts), draw)
    assert torch.equal(plain.final[~hinted], made.final[~hinted]) and plain.trace.given is None
    assert sampler.heldout(None, None, None) == sampler.data.sampler
    with pytest.raises(UserError, match="the column 'solution' is missing"):
        sampler.prepared([Prompt("", 0, {})], "data")


# ------------------------------------------------------------------------------------------------- what is refused
@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"use": "just_grpo", "sampler": {"order": "max_prob", "block": 256}}, "set algorithm.sampler.order=leftmost"),
        ({"use": "just_grpo", "sampler": {"block": 32, "steps": 128}}, "and algorithm.sampler.steps=256"),
        ({"use": "just_grpo", "sampler": {"threshold": 0.9}}, "one token per step"),
        ({"use": "just_grpo", "positions": "entropy", "sampler": {"keep_scores": False}}, "sampler.keep_scores=true"),
        ({"use": "just_grpo", "share": 0}, "share=0.0 of the positions should be above 0"),
        ({"use": "just_grpo", "estimator": {"views": {"limit": 9}}}, "views.limit=9: raise it to the sampler's length"),
        ({"use": "agrpo", "sampler": {"keep_scores": False}}, "sampler.keep_scores=true"),
        ({"use": "agrpo", "draws": 0}, "draws=0 should be at least 1"),
        ({"use": "ebpo", "sampler": {"length": 512}}, "views.length=256: raise it to the sampler's length 512"),
        ({"use": "d2", "segments": 0}, "limit=0 should be at least 1"),
        ({"use": "cj_grpo", "kl": -1.0}, "a divergence of weight -1.0 would be rewarded"),
        ({"use": "espo", "kl": -1.0}, "a divergence of weight -1.0 would be rewarded"),
        ({"use": "diffpo", "cap": 0.0}, "cap=0.0 is the largest importance weight"),
        ({"use": "reflect_rollout", "edits": 0}, "edits=0 should be at least 1"),
        ({"use": "reflect_rollout", "below": 0.0}, "below=0.0 is a probability"),
        ({"use": "reflect_rollout", "sampler": {"guidance": 1.0}}, "has no guidance"),
        ({"use": "reflect_rollout", "sampler": {"edits": 4}}, "views.limit=10: the sampler records 12 steps; make it"),
        ({"use": "cj_grpo", "sampler": {"keep_steps": True}}, "use block=null, and an order that looks at it"),
        (
            {"use": "cj_grpo", "estimator": {"views": {"use": "recorded_steps", "limit": 128}}},
            "records 0 steps; set algorithm.sampler.keep_steps=true",
        ),
        ({"use": "mdpo_dllm", "keep": 0}, "keep=0 trains on no step"),
        ({"use": "mdpo_dllm", "sampler": {"block": 32}}, "use block=null"),
        ({"use": "igpo", "hints": 0}, "hints=0 samples of a group should be at least 1"),
        ({"use": "igpo", "most": 0}, "most=0 hinted samples"),
        ({"use": "igpo", "sampler": {"low": 0.7}}, "low=0.7 and high=0.6 are shares of a solution"),
        ({"use": "igpo", "sampler": {"most": 2}}, "least=4 and most=2 are tokens of a chunk"),
        ({"use": "igpo", "sampler": {"keep_scores": True}}, "keeps no steps or scores"),
        ({"use": "stable_drl", "high": 0.5}, "low=0.0 and high=0.5 are bounds of a ratio"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(spec: dict, says: str) -> None:
    with pytest.raises(UserError) as error:
        composition.build(spec)
    assert says in str(error.value)


class Silent(TinyText):
    """A network that is not run where nothing is asked, so that its answer has no gradient."""

    def score(self, condition, tokens, targets, labels, **options) -> TokenScores:
        found = super().score(condition, tokens, targets, labels, **options)
        return found if bool(targets.any()) else TokenScores(torch.zeros(targets.shape), found.entropy)


def test_a_block_of_empty_views_is_no_error() -> None:
    """A micro-batch may hold views behind a completion's end alone: they add nothing, with one row or with many."""
    algorithm = small("just_grpo")
    policy = Silent(3, 3, ("a", "b"), end=0)
    it = roll(algorithm, policy)
    assert bool((it.rollout.trace.mask.sum(dim=1) == 1).any())
    whole, pieces = (gradients(algorithm, it, micro_batch=rows)[0] for rows in (1000, 1))
    assert torch.allclose(pieces, whole, rtol=2e-4, atol=2e-6 * float(whole.norm())) and float(whole.norm()) > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "just_grpo",
        "agrpo",
        "d2",
        "cj_grpo",
        "espo",
        "ebpo",
        "stable_drl",
        "dipo",
        "diffpo",
        "reflect_rollout",
        "mdpo_dllm",
        "igpo",
    ],
)
def test_two_real_iterations(name: str) -> None:
    """On the embedded sudoku model: every update has a gradient, and the ratio is 1 before the first."""
    values = config_of(name, "sudoku")
    values["algorithm"] |= {"ebpo": {"draws": 2}, "igpo": {"hints": 2}}.get(name, {})
    made = train(values, Work(2))
    assert len(made.gradients) == 4 and all(float(g.norm()) > 0 for g in made.gradients)
    for metrics in made.metrics:
        assert metrics["ratio/first_max_deviation"] < 1e-4 and math.isfinite(metrics["loss"])
