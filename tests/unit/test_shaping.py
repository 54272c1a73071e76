"""Token advantages that look at tokens, lengths and the old policy; bounds and weights of each decision, and that the
log reads the same."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from flowrl.estimators.tokens import TokenRows
from flowrl.parts.diagnostics import StepMetrics
from flowrl.parts.objectives import Clipped
from flowrl.parts.regularizers import KL
from flowrl.parts.shaping import (
    AsymmetricPenalties,
    ConfidencePenalty,
    ConflictTokens,
    ElasticBounds,
    EntropyBonus,
    LengthBaseline,
    LengthGate,
    MacroGAE,
    PriorBounds,
    TokenGroup,
    ZeroVarianceEntropy,
    conflicts,
)
from flowrl.parts.token_advantages import GAE
from flowrl.types import IncompatibleError, Likelihood, Table
from tests.contract.toys import disturb, roll, small, start, table_of
from tests.unit.test_objectives import batch, table
from tests.unit.test_token_advantages import known_of


def of_lengths(lengths: list[int], values: list[float], group: list[int] | None = None, **old: Tensor) -> Table:
    """Completions of these lengths, with one advantage or reward each."""
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    wide = torch.tensor(values).double()[:, None].expand(mask.shape)
    logp = old.pop("logp", torch.zeros(mask.shape).double())
    made = table_of(wide, mask, Likelihood(logp, old))
    return made if group is None else replace(made, group=torch.tensor(group))


def of_samples(made: Table) -> list[float]:
    return made.advantage[:, 0].tolist()


def test_bounds_by_probability_are_the_roots_of_their_equation() -> None:
    """DCPO: .9 gives (.769, 1.187), .1 (.5, 2), .01 (.5, 5); |rho - 1| rho p is the width."""
    p = table([0.9, 0.1, 0.01])
    made = known_of(PriorBounds(0.16, 0.2)(of_lengths([3], [1.0], logp=p.log())))
    low, high = 1 - made.need("low"), 1 + made.need("high")
    assert low[0].tolist() == pytest.approx([0.769, 0.5, 0.5], abs=1e-3)
    assert high[0].tolist() == pytest.approx([1.187, 2, 5], abs=1e-3)
    torch.testing.assert_close((high - 1) * high * p, torch.full_like(p, 0.2))
    assert float(((1 - low) * low * p)[0, 0]) == pytest.approx(0.16)
    rare = known_of(PriorBounds()(of_lengths([1], [1.0], logp=table([1e-9]).log())))
    assert float(rare.need("high")[0, 0]) == pytest.approx(9)  # at most 10


def test_slopes_under_bounds_by_probability() -> None:
    """DCPO's row of the golden table: p_old = .9, bounds (.769, 1.187), c = 10."""
    rows = {
        1.0: [0.2, 0.5, 0.79, 1, 0, 0, 0, 0],
        -1.0: [0, 0, -0.79, -1, -1.19, -1.3, -1.5, -4],
    }
    for sign, wanted in rows.items():
        found = []
        for ratio in (0.2, 0.5, 0.79, 1.0, 1.19, 1.3, 1.5, 4.0):
            old = known_of(PriorBounds()(of_lengths([1], [sign], logp=table([0.9]).log())))
            logp = (old.logp + math.log(ratio)).requires_grad_()
            loss = Clipped(0.2, 0.2, dual=10.0)(Likelihood(logp), batch(table([sign]), old))
            found.append(-float(torch.autograd.grad(loss.sum(), logp)[0]))
        assert found == pytest.approx(wanted, abs=1e-3)


def test_the_log_counts_what_the_bounds_of_each_decision_stop() -> None:
    """One ratio of 1.5 under upper bounds of 1.2 and 2, and the same with one bound for all."""
    algorithm = small("grpo", kl=0.0)
    logp = table([1.5, 1.5]).log()
    old = Likelihood(torch.zeros(1, 2).double(), {"low": table([0.2, 0.2]), "high": table([0.2, 1.0])})
    shares = []
    for known in (old, Likelihood(old.logp)):
        metrics = StepMetrics()
        metrics.add_block(algorithm, Likelihood(logp), batch(table([1, 1]), known), torch.zeros(()))
        metrics.close_batch()
        shares.append((metrics.metrics()["clip_fraction"], metrics.metrics()["ratio/first_outside_clip"]))
    assert shares == [(0.5, 0.5), (1.0, 1.0)]


def test_bounds_of_each_decision_decide_the_gradient() -> None:
    logp = table([1.5, 1.5]).log().requires_grad_()
    old = Likelihood(torch.zeros(1, 2).double(), {"low": table([0.2, 0.2]), "high": table([0.2, 1.0])})
    loss = Clipped(0.2, 0.2)(Likelihood(logp), batch(table([1, 1]), old))
    assert torch.autograd.grad(loss.sum(), logp)[0][0].tolist() == pytest.approx([0, -1.5])


def test_a_penalty_may_weigh_each_decision() -> None:
    live = Likelihood(torch.zeros(1, 2).double(), {"kl/reference": table([2, 2])})
    old = Likelihood(torch.zeros(1, 2).double(), {"kl_weight": table([0.5, 0.0])})
    assert KL()(live, batch(table([1, 1]), old))[0].tolist() == [1, 0]
    assert KL()(live, batch(table([1, 1]), Likelihood(old.logp)))[0].tolist() == [2, 2]


def test_elastic_bounds_widen_with_both_signals() -> None:
    part = ElasticBounds(0.2, 0.3)
    made = known_of(part(of_lengths([1] * 4, [2.0, -0.5, 1.0, 1.0], [0, 0, 1, 1])))
    low, high = made.need("low")[:, 0], made.need("high")[:, 0]
    assert low[0] > low[1] > 0.2 and low[0] > low[2]  # by the advantage; the second group has no wrong sample
    torch.testing.assert_close(high, 1.5 * low)
    assert float(low[2]) == pytest.approx(0.2 * (1 + 0.5 * math.tanh(1)))
    off = known_of(ElasticBounds(0.2, 0.3, 0.0, 0.0)(of_lengths([1], [2.0])))
    assert (float(off.need("low")), float(off.need("high"))) == (0.2, 0.3)


def test_good_samples_are_held_by_difficulty() -> None:
    """APO: one, four and seven of eight right: d = .875, .5, .125 give .28808, .74312, .90731 of the KL; others all."""
    for right, weight in ((1, 0.28808), (4, 0.74312), (7, 0.90731)):
        a = [1.0] * right + [-1.0] * (8 - right)
        made = known_of(AsymmetricPenalties()(of_lengths([2] * 8, a)))
        assert made.need("kl_weight")[0].tolist() == pytest.approx([weight] * 2, abs=1e-5)
        assert float(made.need("kl_weight")[-1, 0]) == 1


def test_bad_samples_are_blamed_for_length() -> None:
    """100 and 10,000 tokens beyond the mean good one: 1.0009995 and 1.0951621; none without a good one."""
    for extra, factor in ((100, 1.0009995), (10_000, 1.0951621)):
        part = AsymmetricPenalties()
        made = part(of_lengths([5, 5 + extra, 3], [1.0, -2.0, -1.0]))
        assert of_samples(made) == pytest.approx([1, -2 * factor, -1], abs=1e-6)
    assert of_samples(AsymmetricPenalties()(of_lengths([5, 500], [-1.0, -2.0]))) == [-1, -2]


def test_statistics_of_tokens() -> None:
    """HAPO: rewards 1 and 0 of lengths 1 and 3: 1.7321 and -.5774, of token mean 0; equal lengths are GRPO's."""
    made = TokenGroup(eps=0.0)(of_lengths([1, 3], [1.0, 0.0]))
    assert of_samples(made) == pytest.approx([1.7321, -0.5774], abs=1e-4)
    assert float(torch.where(made.mask, made.advantage, 0.0).sum()) == pytest.approx(0)
    assert of_samples(TokenGroup(eps=0.0)(of_lengths([2, 2], [1.0, 0.0]))) == pytest.approx([1, -1])
    far = TokenGroup(eps=0.0)(of_lengths([1, 99], [1.0, 0.0]))  # sqrt(99) is beyond 5: over samples instead
    assert of_samples(far) == pytest.approx([1 / math.sqrt(2), -1 / math.sqrt(2)])


def test_groups_that_scored_alike_teach_by_entropy() -> None:
    """RL-ZVP: entropies 1 and 3 of a right answer give .1 and .3, 2 and 5 of a wrong one -.3 and 0."""
    entropy = table([1, 3], [1, 3], [2, 5], [2, 5], [1, 1], [1, 1])
    rewards = [1.0, 1.0, 0.0, 0.0, 1.0, 0.0]
    made = ZeroVarianceEntropy()(of_lengths([2] * 6, rewards, [0, 0, 1, 1, 2, 2], entropy=entropy))
    assert made.advantage[0].tolist() == pytest.approx([0.1, 0.3])
    assert made.advantage[2].tolist() == pytest.approx([-0.3, 0.0])
    assert made.advantage[4].tolist() == pytest.approx([1 / math.sqrt(2)] * 2, abs=1e-5)  # GRPO


def test_a_bonus_for_entropy_turns_no_sign() -> None:
    """min(.4 H, |A| / 2): entropies .5 and 9 of advantages 1 and -1 give 1.2, 1.5, -.8 and -.5; no advantage, none."""
    entropy = table([0.5, 9], [0.5, 9], [0.5, 9])
    made = EntropyBonus()(of_lengths([2] * 3, [1.0, -1.0, 0.0], entropy=entropy))
    assert made.advantage.tolist() == [pytest.approx(row) for row in ([1.2, 1.5], [-0.8, -0.5], [0, 0])]
    with pytest.raises(ValueError, match="share=0"):
        EntropyBonus(share=0.5)


def test_wrong_answers_cost_by_how_sure_they_were() -> None:
    """LENS: -.428571 at .3 and -.052632 at .05; an all-wrong group of unequal confidence learns."""
    part = ConfidencePenalty()
    assert part.penalty(torch.tensor([0.3, 0.05]).double()).tolist() == pytest.approx([0.428571, 0.052632], abs=1e-6)
    made = part(of_lengths([1, 1], [0.0, 0.0], logp=table([0.3], [0.05]).log()))
    assert of_samples(made) == pytest.approx([-1 / math.sqrt(2), 1 / math.sqrt(2)], abs=1e-4)
    assert of_samples(part(of_lengths([1, 1], [1.0, 1.0], logp=table([0.3], [0.05]).log()))) == [0, 0]
    assert float(part.penalty(torch.tensor(1.0).double())) == 10  # not the pole
    with pytest.raises(ValueError, match="difficulty=0"):
        ConfidencePenalty(0)


def test_the_penalty_of_confidence_is_the_gradient_of_its_objective() -> None:
    """LENS on a bandit, D = .5, by finite differences of E[r] - E[w(pi / D) (1 - r)], w(z) = log(1 / (1 - z)) / z -
    1."""
    logits = torch.tensor([0.3, -0.2, 0.5, 0.0]).double().requires_grad_()
    r, d = torch.tensor([1.0, 0, 0, 1]).double(), 0.5
    p = logits.softmax(0)
    z = p / d
    w = -(1 - z).log() / z - 1
    exact = torch.autograd.grad((p * r).sum() - (p * w * (1 - r)).sum(), logits)[0]
    shaped = r - (1 - r) * ConfidencePenalty(d).penalty(p.detach())
    p = p.detach()
    found = p * (shaped - p @ shaped)
    torch.testing.assert_close(found, exact)
    assert found.tolist() == pytest.approx([0.376113, -0.029351, -0.625394, 0.278631], abs=1e-6)


def test_tokens_that_good_and_bad_share_from_either_end() -> None:
    """GTPO: [5, 1, 7, 9] good and [5, 2, 7, 9] bad: 2, 1, 2, 2 and 0, 1, 0, 0."""
    tokens = torch.tensor([[5, 1, 7, 9], [5, 2, 7, 9]])
    mask, a = torch.ones(2, 4).bool(), torch.tensor([1.0, -1.0])
    assert conflicts(tokens, mask, a).tolist() == [[True, False, True, True]] * 2
    rows = TokenRows(tokens, mask, None, 1.0)
    old = Likelihood(torch.zeros(2, 4).double(), {"entropy": torch.zeros(2, 4).double()})
    made = ConflictTokens()(table_of(a.double()[:, None].expand(2, 4), mask, old, rows))
    assert made.advantage.tolist() == [[2, 1, 2, 2], [0, -1, 0, 0]]
    same = replace(rows, tokens=tokens[:1].expand(2, 4))
    made = ConflictTokens()(table_of(a.double()[:, None].expand(2, 4), mask, old, same))
    assert made.advantage[1].tolist() == [0] * 4  # an identical pair pushes nothing down
    unsure = Likelihood(old.logp, {"entropy": table([0.8] * 4, [0.5] * 4)})
    made = ConflictTokens()(table_of(a.double()[:, None].expand(2, 4), mask, unsure, rows))
    assert made.advantage.tolist() == [[0] * 4, [0, pytest.approx(-1.05), 0, 0]]
    with pytest.raises(IncompatibleError, match="tokens estimator"):
        ConflictTokens()(of_lengths([2], [1.0]))


def test_shared_tokens_are_counted_from_each_completions_own_end() -> None:
    tokens = torch.tensor([[5, 6, 9, 0], [4, 3, 6, 9]])
    mask = torch.tensor([[True, True, True, False], [True, True, True, True]])
    found = conflicts(tokens, mask, torch.tensor([1.0, -1.0]))
    assert found.tolist() == [[False, True, True, False], [False, False, True, True]]


def test_groups_count_less_unless_length_helps() -> None:
    """ADORA: a right answer of 5 tokens against a wrong one of 10 counts a tenth, one of 12 whole."""
    assert of_samples(LengthGate()(of_lengths([5, 10], [1.0, -1.0]))) == pytest.approx([0.1, -0.1])
    assert of_samples(LengthGate()(of_lengths([12, 10], [1.0, -1.0]))) == [1, -1]
    two = LengthGate()(of_lengths([5, 10, 12, 10], [1.0, -1.0, 1.0, -1.0], [0, 0, 1, 1]))
    assert of_samples(two) == pytest.approx([0.1, -0.1, 1, -1])


def test_a_baseline_weighted_by_length() -> None:
    """OPO: rewards 1 and 0 of lengths 1 and 3 have the baseline 1/4; equal lengths the mean."""
    assert of_samples(LengthBaseline()(of_lengths([1, 3], [1.0, 0.0]))) == pytest.approx([0.75, -0.25])
    assert of_samples(LengthBaseline()(of_lengths([2, 2], [1.0, 0.0]))) == pytest.approx([0.5, -0.5])


def test_the_baseline_of_least_variance_on_a_bandit() -> None:
    """OPO's idea with the exact weights ``|e - pi|^2``: .391394, below the mean's and no baseline's variance."""
    p, r = torch.tensor([0.3, -0.2, 0.5, 0.0]).double().softmax(0), torch.tensor([1.0, 0, 0, 0.5]).double()
    weight = 1 - 2 * p + (p**2).sum()  # |e_a - pi|^2
    best = float((p * weight * r).sum() / (p * weight).sum())
    assert best == pytest.approx(0.391394, abs=1e-6)

    def variance(b: float) -> float:
        g = p * (r - p @ r)
        return float((p * weight * (r - b) ** 2).sum() - (g**2).sum())

    found = [variance(b) for b in (best, float(p @ r), 0.0)]
    assert found == pytest.approx([0.0783096, 0.0783496, 0.190501], abs=1e-6)


def valued(seed: int = 0) -> Table:
    mask = torch.arange(7) < torch.tensor([7, 4, 1, 0])[:, None]
    generator = torch.Generator().manual_seed(seed)
    value = torch.randn(mask.shape, generator=generator).double()
    reward = torch.tensor([1.0, -2.0, 0.5, 3.0]).double()[:, None].expand(mask.shape)
    return table_of(reward, mask, Likelihood(torch.zeros(mask.shape), {"value": value}))


@pytest.mark.parametrize("whiten", [True, False])
def test_macro_actions_of_one_token_are_generalised_advantages(whiten: bool) -> None:
    made, base = (kind(valued()) for kind in (MacroGAE(1, 0.9, 0.8, whiten), GAE(0.9, 0.8, whiten)))
    mask = base.mask
    torch.testing.assert_close(made.advantage[mask], base.advantage[mask])
    torch.testing.assert_close(known_of(made).need("returns"), known_of(base).need("returns"))


def test_macro_actions_by_hand() -> None:
    """Five tokens by twos: {0, 1}, {2, 3} and the last; gamma .9, lambda .5; the reward is not divided."""
    value = table([1, 3, 0, 2, 4])
    t = table_of(
        torch.full((1, 5), 6.0).double(), torch.ones(1, 5).bool(), Likelihood(torch.zeros(1, 5), {"value": value})
    )
    made = MacroGAE(2, 0.9, 0.5, whiten=False)(t)
    last = 6 - 4.0
    middle = 0.9 * 4 - 1 + 0.45 * last
    first = 0.9 * 1 - 2 + 0.45 * middle
    assert made.advantage[0].tolist() == pytest.approx([first, first, middle, middle, last])
    assert known_of(made).need("returns")[0].tolist() == pytest.approx(
        [first + 2, first + 2, middle + 1, middle + 1, 6]
    )
    whole = MacroGAE(100, 1.0, 1.0, whiten=False)(t)  # one decision and the last token: reward less value
    assert whole.advantage[0].tolist() == pytest.approx([6 - 1.5] * 4 + [2.0])
    with pytest.raises(ValueError, match="n=0"):
        MacroGAE(0)


@pytest.mark.parametrize("name", ["adora", "apo_asym", "dcpo_clip", "etr", "hapo", "lens", "opo", "rl_zvp", "gtpo"])
def test_samples_that_are_left_out_move_no_statistic(name: str) -> None:
    algorithm = small(name)
    policy = start(algorithm)
    it = roll(algorithm, policy)
    rows = algorithm.estimator.probe(it.rollout, policy, it.draw.seeds)
    old: Any = algorithm.estimator(policy, rows, it.rollout.condition)
    old = Likelihood(old.logp.detach().double(), {k: v.detach().double() for k, v in old.extra.items()})
    part, wide = algorithm.token_advantage[0], it.advantage[:, None].expand(rows.shape)

    def made(keep: Tensor) -> Table:
        some = replace(rows, tokens=rows.tokens[keep], mask=rows.mask[keep])
        cut = Likelihood(old.logp[keep], {k: v[keep] for k, v in old.extra.items()})
        base = table_of(wide[keep], some.mask, cut, some)
        return part(replace(base, group=it.rollout.group[keep]))

    keep = torch.ones(len(wide)).bool()
    keep[::5] = False
    whole = table_of(wide, rows.mask & keep[:, None], old, rows)
    found = part(replace(whole, group=it.rollout.group))
    wanted = made(keep)
    mask = wanted.mask
    torch.testing.assert_close(found.advantage[keep][mask], wanted.advantage[mask])
    for key in ("low", "high", "kl_weight"):
        if key in known_of(wanted).extra:
            torch.testing.assert_close(known_of(found).need(key)[keep][mask], known_of(wanted).need(key)[mask])


def test_a_ratio_that_moved_is_clipped_by_probability_in_a_whole_update() -> None:
    algorithm = small("dcpo_clip", low=0.01, high=0.01)
    policy = start(algorithm)
    it = roll(algorithm, policy)

    class Mover(torch.optim.SGD):
        def step(self, closure=None):
            disturb(policy, 0.4)

    from flowrl.step import UpdateSettings, improve

    settings = UpdateSettings(epochs=2)
    metrics = improve(
        policy, Mover(policy.parameters(), lr=0.0), algorithm, it.rollout, it.scores, it.advantage, settings
    )
    assert 0.05 < metrics["clip_fraction"] < 0.5
