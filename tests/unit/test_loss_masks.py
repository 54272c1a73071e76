"""Which decisions count by what the live policy says: by hand, at the neutral setting, whatever the micro-batch."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from flowrl.parts.aggregations import DecisionMean
from flowrl.parts.loss_masks import (
    EntropyChange,
    EntropyDiscriminator,
    GaussianDivergence,
    LowCovariance,
    RatioMask,
    SecondMoment,
    SequenceDrift,
    TokenDivergence,
    TopEntropy,
    quantile,
)
from flowrl.parts.objectives import Clipped, ScoreFunction
from flowrl.parts.set_objectives import BestOfK
from flowrl.parts.surrogates import CovariancePenalty, EntropyClip, Importance, SearchedClip
from flowrl.types import Likelihood, LossMask
from tests.contract.toys import disturb, gradients, roll, small, start
from tests.unit.test_objectives import batch, table


def many(count: int = 400, seed: int = 1) -> tuple[Likelihood, Tensor, Tensor]:
    """Log-probabilities with their entropies, old ones, and advantages, [1, count]."""
    generator = torch.Generator().manual_seed(seed)
    logp = -torch.rand(1, count, generator=generator).double() * 3
    entropy = torch.rand(1, count, generator=generator).double() * 2
    d = 0.2 * torch.randn(1, count, generator=generator).double()
    a = torch.randn(1, count, generator=generator).double()
    return Likelihood(logp, {"entropy": entropy}), logp - d, a


def test_a_quantile_is_torchs() -> None:
    values = torch.randn(101, generator=torch.Generator().manual_seed(0)).double()
    for share in (0.0, 0.137, 0.5, 0.8, 1.0):
        torch.testing.assert_close(quantile(values, share), values.quantile(share))


def test_the_tokens_of_the_highest_entropy_and_their_ties() -> None:
    live = Likelihood(torch.zeros(1, 6).double(), {"entropy": table([0, 1, 2, 3, 3, 9])})
    weight = table([1, 1, 1, 1, 1, 0])  # the last does not count, and its entropy is not looked at
    b = batch(torch.ones(1, 6).double(), torch.zeros(1, 6).double(), weight=weight)
    assert TopEntropy(0.2)(live, b)[0].tolist()[:5] == [0, 0, 0, 1, 1]
    assert TopEntropy(1.0)(live, b)[0].tolist() == [1] * 6
    by_both = replace(b, advantage=table([9, 5, -5, 1, 1, 0]))
    assert TopEntropy(0.2, by_advantage=True)(live, by_both)[0].tolist()[:5] == [0, 0, 1, 0, 0]


def test_a_given_share_is_kept_of_many() -> None:
    live, old, a = many()
    assert int(TopEntropy(0.2)(live, batch(a, old)).sum()) == 80


def test_exactly_so_many_tokens_of_large_covariance_are_left_out() -> None:
    live, old, a = many()
    b = batch(3 * a, old)
    covariance = (b.advantage - b.advantage.mean()) * (live.logp - live.logp.mean())
    factor = LowCovariance(share=0.01)(live, b)
    out = factor == 0
    assert int(out.sum()) == 4 and bool(((covariance[out] > 1) & (covariance[out] < 5)).all())
    clipped = Clipped(0.2, 0.2)
    logp = live.logp.clone().requires_grad_()
    slope = torch.autograd.grad(clipped(Likelihood(logp), b).sum(), logp)[0]
    assert bool((slope[out] != 0).all())  # none that the clip stops already
    assert bool((LowCovariance(share=0.0)(live, b) == 1).all())
    assert torch.equal(factor, LowCovariance(share=0.01)(live, b))  # a function of the batch


def test_the_share_is_one_of_the_batch_and_not_of_micro_batches() -> None:
    """verl takes at least one token of every micro-batch; of 400 tokens in batches of 8 that would be 50 times as
    many."""
    live, old, a = many()
    assert int((LowCovariance(share=2e-4)(live, batch(3 * a, old)) == 0).sum()) == 1


def softmax_change(logits: Tensor, token: int, advantage: float, step: float = 1e-6) -> float:
    """How much a small step of ``advantage log p(token)`` changes the entropy, by finite differences."""

    def entropy(z: Tensor) -> Tensor:
        return -(z.softmax(0) * z.log_softmax(0)).sum()

    gradient = advantage * (torch.nn.functional.one_hot(torch.tensor(token), len(logits)) - logits.softmax(0))
    return float((entropy(logits + step * gradient) - entropy(logits)) / step)


def test_the_discriminator_predicts_the_change_of_entropy() -> None:
    """``-A (S - mean S)``, exactly so in the limit; tokens that Clip_B leaves out would lower it."""
    logits = torch.tensor([0.3, -0.2, 1.5, 0.0]).double()
    p, logp = logits.softmax(0), logits.log_softmax(0)
    score = p * (logp - (p * logp).sum())
    for token in range(4):
        for a in (1.0, -1.0):
            assert softmax_change(logits, token, a) == pytest.approx(float(-a * (score[token] - p @ score)), abs=1e-5)
    worst = int(score.argmin())
    assert softmax_change(logits, worst, -1.0) < 0


def test_tokens_below_the_discriminators_width_leave_the_mean() -> None:
    live, old, a = many()
    b = batch(a, old, weight=torch.full_like(a, 1 / 400))
    score = live.logp.exp() * (live.need("entropy") + live.logp)
    out = (a < 0) & (score < score.mean() - 1.0 * score.std())
    factor = EntropyDiscriminator(1.0)(live, b)
    assert 0 < int(out.sum()) < 200 and torch.equal(factor == 0, out)
    torch.testing.assert_close(factor[~out], torch.full_like(factor[~out], 400 / (400 - int(out.sum()))))
    assert bool((EntropyDiscriminator(99.0)(live, b) == 1).all())


def test_weights_fall_from_one_to_the_least() -> None:
    """STEER: no estimated change counts 1, the largest of the batch .8; half of it the root of .8."""
    live, old, a = many()
    change = (a / old.exp() * live.logp.exp() * (1 - live.logp.exp()) * (live.logp + live.need("entropy"))).abs()
    weight = EntropyChange()(live, batch(a, old))
    torch.testing.assert_close(weight, 0.8 ** (change / change.max()))
    assert float(weight.min()) == pytest.approx(0.8) and float(weight.max()) > 0.999
    assert bool((EntropyChange(1.0)(live, batch(a, old)) == 1).all())
    small_changes = EntropyChange()(live, batch(1e-9 * a, old))
    assert float(small_changes.min()) > 0.999  # the floor: noise is not blown up


def test_gaussian_steps_are_left_out_that_have_moved_and_would_move_on() -> None:
    """A times the shift decides, at or above the threshold alone."""
    log_ratio, a = table([0.1, 0.1, -0.1, -0.1, 0.1]), table([1, -1, 1, -1, 1])
    live = Likelihood(log_ratio, {"kl/sampler": table([1, 1, 1, 1, 0.5])})
    assert GaussianDivergence(1.0)(live, batch(a, torch.zeros_like(a)))[0].tolist() == [0, 1, 1, 0, 1]


def test_token_divergences_by_hand() -> None:
    """p_old .5, moved to .72 and .68 (``tv`` .2), and the binary divergence of .1 and .9."""
    old = table([0.5, 0.5, 0.5, 0.5]).log()
    live = Likelihood(table([0.72, 0.68, 0.28, 0.72]).log())
    a = table([1, 1, -1, -1])
    assert TokenDivergence(0.2)(live, batch(a, old))[0].tolist() == [0, 1, 0, 1]
    kl = 0.1 * math.log(0.1 / 0.3) + 0.9 * math.log(0.9 / 0.7)
    pair = Likelihood(table([0.3, 0.3]).log())
    b = batch(table([1, 1]), table([0.1, 0.1]).log())
    assert TokenDivergence(kl + 1e-9, "kl")(pair, b)[0].tolist() == [1, 1]
    assert TokenDivergence(kl - 1e-9, "kl")(pair, b)[0].tolist() == [0, 0]


def test_ratio_masks_have_one_side_two_sides_or_a_ring() -> None:
    ratios, a = table([0.5, 0.7, 1.0, 1.3, 3.0]), table([1, 1, 1, 1, 1])
    live, b = Likelihood(ratios.log()), batch(a, torch.zeros_like(a))
    assert RatioMask()(live, b)[0].tolist() == [1, 1, 1, 0, 0]
    assert RatioMask()(live, replace(b, advantage=-a))[0].tolist() == [0, 0, 1, 1, 1]
    assert RatioMask(sides="two")(live, b)[0].tolist() == [0, 0, 1, 0, 0]
    assert RatioMask(sides="ring")(live, b)[0].tolist() == [1, 0, 1, 0, 1]


def test_bad_samples_that_have_drifted_are_left_out() -> None:
    """Means of log p_old - log p of .3, .1 and .3 over the tokens that count, under .2; the last one is good."""
    live = Likelihood(table([-1.4, -1.2, -9], [-1.1, -1.1, -1.1], [-1.3, -1.3, -1.3]))
    weight = table([1, 1, 0], [1, 1, 1], [1, 1, 1])
    a = table([-1], [-1], [1]).expand(3, 3)
    found = SequenceDrift(0.2)(live, batch(a, torch.full((3, 3), -1.0).double(), weight=weight))
    assert found.tolist() == [[0] * 3, [1] * 3, [1] * 3]


def test_the_second_moment_is_brought_down_by_as_few_as_possible() -> None:
    live, old, a = many(seed=3)
    d = live.logp - old
    for threshold in (0.036, 0.03, 0.025):
        out = SecondMoment(threshold)(live, batch(a, old)) == 0
        eligible = a * d > 0
        assert bool(eligible[out].all()) and int(out.sum()) > 0
        left = d[~out].square().sum() / 400
        smallest = d[out].square().min()
        assert left <= threshold < left + smallest / 400  # one fewer would not do
        assert float(d[out].square().min()) >= float(d[eligible & ~out].square().max())
    assert bool((SecondMoment(1.0)(live, batch(a, old)) == 1).all())


COUPLED: list[LossMask] = [
    TopEntropy(0.3),
    TopEntropy(0.3, by_advantage=True),
    LowCovariance(share=0.3, least=-9, most=9),
    EntropyDiscriminator(0.3),
    EntropyChange(0.5),
    SecondMoment(1e-7),
    SequenceDrift(1e-3),
]
NEUTRAL: list[LossMask] = [
    TopEntropy(1.0),
    LowCovariance(share=0.0),
    EntropyDiscriminator(1e9),
    EntropyChange(1.0),
    SecondMoment(1e9),
    SequenceDrift(1e9),
    RatioMask(9.0, 1e9),
    TokenDivergence(2.0),
]


def moved():
    algorithm = replace(small("grpo", kl=0.0), aggregation=DecisionMean())
    policy = start(algorithm)
    it = roll(algorithm, policy)
    disturb(policy, 0.02)
    return algorithm, it


@pytest.mark.parametrize("part", COUPLED, ids=lambda part: type(part).__name__)
def test_masks_are_those_of_the_batch_whatever_the_micro_batch(part: LossMask) -> None:
    algorithm, it = moved()
    masked = replace(algorithm, loss_masks=(part,))
    assert masked.coupled
    whole = gradients(masked, it, micro_batch=100_000, updates=2)[1]
    base = gradients(algorithm, it, micro_batch=100_000, updates=2)[1]
    assert float((whole - base).norm()) > 1e-3 * float(base.norm())
    for micro_batch in (1, 5):
        pieces = gradients(masked, it, micro_batch=micro_batch, updates=2)[1]
        torch.testing.assert_close(pieces, whole, rtol=2e-4, atol=2e-6 * float(whole.norm()))


@pytest.mark.parametrize("part", NEUTRAL, ids=lambda part: type(part).__name__)
def test_masks_at_their_neutral_setting_are_the_base(part: LossMask) -> None:
    algorithm, it = moved()
    base = gradients(algorithm, it, micro_batch=9)[0]
    found = gradients(replace(algorithm, loss_masks=(part,)), it, micro_batch=9)[0]
    torch.testing.assert_close(found, base, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    "part", [SearchedClip(), EntropyClip(), CovariancePenalty(0.2), BestOfK(3)], ids=lambda p: type(p).__name__
)
def test_coupled_surrogates_are_those_of_the_batch(part) -> None:
    algorithm, it = moved()
    made = replace(algorithm, objective=part)
    whole = gradients(made, it, micro_batch=100_000, updates=2)[1]
    pieces = gradients(made, it, micro_batch=3, updates=2)[1]
    torch.testing.assert_close(pieces, whole, rtol=2e-4, atol=2e-6 * float(whole.norm()))


def test_a_mask_has_the_old_policy_measured_for_an_objective_that_does_not_need_it() -> None:
    """REC: without it the ratio of the second update would be 1, and the mask would never act."""
    algorithm, it = moved()
    plain = replace(algorithm, objective=ScoreFunction())
    masked = replace(plain, loss_masks=(RatioMask(0.001, 0.001),))
    assert masked.needs_old_logp and not plain.needs_old_logp

    class Mover(torch.optim.SGD):
        seen: list[Tensor]

        def step(self, closure=None):
            parts = [p.grad for p in self.param_groups[0]["params"] if p.grad is not None]
            self.seen.append(torch.cat([part.flatten().clone() for part in parts]))
            disturb(it.policy, 0.3)

    from flowrl.step import UpdateSettings, improve

    found = []
    for each in (plain, masked):
        algorithm, it = moved()
        mover = Mover(it.policy.parameters(), lr=0.0)
        mover.seen = []
        improve(
            it.policy, mover, each, it.rollout, it.scores, it.advantage, UpdateSettings(epochs=2, max_grad_norm=1e9)
        )
        found.append(mover.seen)
    torch.testing.assert_close(found[1][0], found[0][0])  # before the weights moved
    assert float((found[1][1] - found[0][1]).norm()) > 0.05 * float(found[0][1].norm())


@pytest.mark.parametrize(
    ("make", "message"),
    [(lambda: TopEntropy(0.0), "share=0.0"), (lambda: EntropyChange(0.0), "least=0.0")],
)
def test_options_that_mean_nothing_are_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_step_that_moved_by_a_given_shift_has_the_same_divergence_at_every_size() -> None:
    """A root mean square shift of .00447 standard deviations is 1e-5, whatever the number of latent elements."""
    algorithm = small("flow_dppo", threshold=1e-5)
    policy = start(algorithm)
    it = roll(algorithm, policy)
    rows = algorithm.estimator.probe(it.rollout, policy, it.draw.seeds)
    same = algorithm.estimator(policy, rows, it.rollout.condition)
    assert float(same.need("kl/sampler").max()) < 1e-12
    disturb(policy, 0.05)
    live = algorithm.estimator(policy, rows, it.rollout.condition)
    assert rows.mean is not None
    x, t = rows.x.flatten(0, 1), rows.t.flatten()
    v = policy.velocity(x, t, it.rollout.condition.take(rows.sample.flatten()), guidance=1.0)
    a, c, s = rows.dynamics.coefficients(rows.t, rows.t_next)
    moved_mean = a[..., None] * rows.x + c[..., None] * v.view_as(rows.x)
    wanted = ((moved_mean - rows.mean) ** 2).mean(dim=-1) / (2 * s**2)
    torch.testing.assert_close(live.need("kl/sampler"), wanted.detach(), rtol=1e-3, atol=1e-9)
    assert not live.need("kl/sampler").requires_grad
    assert pytest.approx(0.00447**2 / 2, rel=2e-3) == 1e-5


def test_without_a_trust_region_flow_dppo_is_the_plain_ratio() -> None:
    """At the old policy its gradient is REINFORCE's; a threshold without end never masks."""
    algorithm = small("flow_dppo", threshold=1e300)
    policy = start(algorithm)
    it = roll(algorithm, policy)
    found = gradients(algorithm, it)[0]
    score = gradients(replace(algorithm, objective=ScoreFunction(), loss_masks=()), it)[0]
    torch.testing.assert_close(found, score, rtol=1e-4, atol=1e-6 * float(score.norm()))
    disturb(policy, 0.05)
    plain = gradients(replace(algorithm, loss_masks=()), it)[0]
    torch.testing.assert_close(gradients(algorithm, it)[0], plain)
    tight = gradients(replace(algorithm, loss_masks=(GaussianDivergence(0.0),), objective=Importance()), it)[0]
    assert float((tight - plain).norm()) > 0.1 * float(plain.norm())
