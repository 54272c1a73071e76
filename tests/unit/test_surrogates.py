"""What takes the place of PPO's clip: slopes of every surrogate on a grid of ratios, and what defines each of them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from flowrl import composition
from flowrl.parts.loss_masks import RatioMask, TokenDivergence
from flowrl.parts.objectives import Clipped, ClippedWeight, ScoreFunction
from flowrl.parts.surrogates import (
    ChiSquared,
    CovariancePenalty,
    DivergenceClip,
    EntropyClip,
    GammaWeight,
    GeometricClip,
    Importance,
    PreservedClip,
    Quadratic,
    RegularisedGradient,
    SearchedClip,
    SoftGate,
    Tapered,
    divergence_range,
)
from flowrl.parts.trust_regions import LikelihoodDrop, RatioVariance, ReverseKLToOld, SquaredLogRatio, WeightedKL
from flowrl.types import Batch, IncompatibleError, Likelihood, Rows
from tests.unit.test_objectives import batch, table

RATIOS = (0.2, 0.5, 0.79, 1.0, 1.19, 1.3, 1.5, 4.0)
# d surrogate / d log p, generated in float64 from the formulas: A = 1, then A = -1, at each of the ratios
GOLDEN = {
    "reinforce": ([1] * 8, [-1] * 8),
    "pg": ([0.2, 0.5, 0.79, 1, 1.19, 1.3, 1.5, 4], [-0.2, -0.5, -0.79, -1, -1.19, -1.3, -1.5, -4]),
    "ppo": ([0.2, 0.5, 0.79, 1, 1.19, 0, 0, 0], [0, 0, 0, -1, -1.19, -1.3, -1.5, -4]),
    "dapo": ([0.2, 0.5, 0.79, 1, 1.19, 0, 0, 0], [0, 0, 0, -1, -1.19, -1.3, -1.5, -4]),
    "dual": ([0.2, 0.5, 0.79, 1, 1.19, 0, 0, 0], [0, 0, 0, -1, -1.19, -1.3, -1.5, 0]),
    "gppo": ([0.2, 0.5, 0.79, 1, 1.19, 1.2, 1.2, 1.2], [-0.8, -0.8, -0.8, -1, -1.19, -1.3, -1.5, -4]),
    "gppo high": ([0.2, 0.5, 0.79, 1, 1.19, 1.28, 1.28, 1.28], [0, 0, 0, -1, -1.19, -1.3, -1.5, -4]),
    "kl3": ([0.2, 0.5, 0.79, 1, 1.19, 1.3, 0, 0], [0, 0, -0.79, -1, -1.19, -1.3, -1.5, -4]),
    "dppo": ([0.2, 0.5, 0.79, 1, 1.19, 1.3, 0, 0], [0, 0, -0.79, -1, -1.19, -1.3, -1.5, -4]),
    "bapo": ([0.2, 0.5, 0.79, 1, 1.19, 0, 0, 0], [0, 0, -0.79, -1, -1.19, -1.3, -1.5, -4]),
    "minirl": ([0.2, 0.5, 0.79, 1, 1.19, 0, 0, 0], [0, 0, 0, -1, -1.19, -1.3, -1.5, -4]),
    "rec": ([1, 1, 1, 1, 1, 0, 0, 0], [0, 0, 0, -1, -1, -1, -1, -1]),
    "topr": ([1] * 8, [-0.2, -0.5, -0.79, -1, -1, -1, -1, -1]),
    "vespo": (
        [0.441, 1.12, 1.172, 1, 0.801, 0.687, 0.502, 0.002],
        [-0.04, -0.34, -0.75, -1, -1.152, -1.206, -1.242, -0.159],
    ),
    "sapo": (
        [0.171, 0.47, 0.781, 1, 1.179, 1.271, 1.41, 0.723],
        [-0.168, -0.467, -0.78, -1, -1.178, -1.268, -1.401, -0.63],
    ),
    "spo": ([1, 1.75, 1.619, 1, 0.06, -0.65, -2.25, -56], [0.6, 0.75, 0.039, -1, -2.32, -3.25, -5.25, -64]),
    "r2vpo": (
        [0.213, 0.52, 0.803, 1, 1.172, 1.269, 1.44, 3.04],
        [-0.187, -0.48, -0.777, -1, -1.208, -1.331, -1.56, -4.96],
    ),
    "kl_cov": ([0.3, 0.6, 0.89, 1, 1.09, 1.2, 1.4, 3.9], [-0.1, -0.4, -0.69, -1, -1.29, -1.4, -1.6, -4.1]),
}
PARTS = {
    "reinforce": ScoreFunction(),
    "pg": Importance(),
    "ppo": Clipped(0.2, 0.2),
    "dapo": Clipped(0.2, 0.28),
    "dual": Clipped(0.2, 0.2, dual=3),
    "gppo": PreservedClip(),
    "gppo high": PreservedClip(0.2, 0.28, "high"),
    "kl3": DivergenceClip(0.05),
    "bapo": SearchedClip(low_most=0.6, high_most=1.2),
    "topr": Tapered(),
    "vespo": GammaWeight(),
    "sapo": SoftGate(),
    "spo": Quadratic(0.2),
}
MASKS = {
    "dppo": (Importance(), TokenDivergence(0.2), 0.5),
    "minirl": (ClippedWeight(float("inf")), RatioMask(0.2, 0.27), 0.9),
    "rec": (ScoreFunction(), RatioMask(0.2, 0.2), 0.9),
}


def slope(loss, ratio: float, advantage: float, p_old: float = 0.1) -> float:
    """d surrogate / d log p of a sample of one decision."""
    old = table([math.log(p_old)])
    logp = (old + math.log(ratio)).requires_grad_()
    value = loss(Likelihood(logp), batch(table([advantage]), old))
    return -float(torch.autograd.grad(value.sum(), logp)[0])


def penalised(likelihood: Likelihood, b: Batch) -> Tensor:
    return Importance()(likelihood, b) + 0.04 * RatioVariance()(likelihood, b)


def chosen(likelihood: Likelihood, b: Batch) -> Tensor:
    """KL-Cov's loss of a decision that its penalty has chosen."""
    return CovariancePenalty(share=1.0, weight=0.1)(likelihood, b)


def masked(name: str):
    part, mask, _ = MASKS[name]

    def loss(likelihood: Likelihood, b: Batch) -> Tensor:
        return part(likelihood, b) * mask(Likelihood(likelihood.logp.detach()), b)

    return loss


@pytest.mark.parametrize("name", GOLDEN)
def test_slopes_are_those_of_the_golden_table(name: str) -> None:
    special = {"r2vpo": penalised, "kl_cov": chosen}
    loss = PARTS[name] if name in PARTS else special[name] if name in special else masked(name)
    p_old = MASKS[name][2] if name in MASKS else 0.1
    for sign, row in zip((1.0, -1.0), GOLDEN[name], strict=True):
        found = [slope(loss, ratio, sign, p_old) for ratio in RATIOS]
        assert found == pytest.approx(row, abs=1e-3), (name, sign)


def test_a_preserved_clip_has_the_value_of_the_clip() -> None:
    d, a = torch.linspace(-1, 1, 9).double()[None], torch.tensor([1.0, -1.0] * 5)[:9].double()[None]
    live, b = Likelihood(d), batch(a, torch.zeros_like(d))
    torch.testing.assert_close(PreservedClip(0.2, 0.28)(live, b), Clipped(0.2, 0.28)(live, b))


@pytest.mark.parametrize(
    ("delta", "low", "high"),
    [(0.01, 0.865, 1.148), (0.02, 0.813, 1.214), (0.033, 0.765, 1.279), (0.05, 0.716, 1.350), (0.1, 0.617, 1.516)],
)
def test_ratios_where_the_divergence_is_delta(delta: float, low: float, high: float) -> None:
    found = divergence_range(delta)
    assert found == pytest.approx((low, high), abs=6e-4)
    assert [x - 1 - math.log(x) for x in found] == pytest.approx([delta, delta])
    assert high - 1 > 1 - low and divergence_range(0) == (1, 1)


def test_a_quadratic_pull_is_stationary_at_its_edge_and_a_variance_at_its_own() -> None:
    assert slope(Quadratic(0.2), 1.2, 1.0) == pytest.approx(0) == slope(Quadratic(0.2), 0.8, -1.0)

    def half(likelihood: Likelihood, b: Batch) -> Tensor:
        return Importance()(likelihood, b) + 0.5 * RatioVariance()(likelihood, b)

    assert slope(half, 2.0, 1.0) == pytest.approx(0)  # 1 + A / (2 lambda)


def test_gamma_weights_are_one_at_one_and_largest_where_they_should_be() -> None:
    assert slope(GammaWeight(), 2 / 3, 1.0) == pytest.approx(1.208, abs=1e-3)
    assert slope(GammaWeight(), 1.5, -1.0) == pytest.approx(-1.242, abs=1e-3)
    assert abs(slope(GammaWeight(), 1e9, 1.0)) < 1e-9  # in logarithms: no overflow


def test_a_geometric_mean_cuts_outliers_one_by_one() -> None:
    """Four tokens of d = .1, .2, .9, -.05 under a bound of .4: the third has no gradient, others exp(mean) / 4."""
    d = table([0.1, 0.2, 0.9, -0.05]).requires_grad_()
    loss = GeometricClip(0.4, 0.4)(Likelihood(d), batch(torch.ones(1, 4).double(), torch.zeros(1, 4).double()))
    found = torch.autograd.grad(loss.mean(), d)[0][0].tolist()
    each = -math.exp((0.1 + 0.2 + 0.4 - 0.05) / 4) / 4
    assert found == pytest.approx([each, each, 0, each])
    low, high = GeometricClip(0.4, 0.4).clip_range
    assert (1 - low, 1 + high) == pytest.approx((math.exp(-0.4), math.exp(0.4)))


def wide(seed: int = 0, count: int = 4000) -> tuple[Likelihood, Batch]:
    """Log-ratios N(0, .3^2), three of ten advantages 1, the others -1."""
    generator = torch.Generator().manual_seed(seed)
    d = 0.3 * torch.randn(1, count, generator=generator).double()
    a = torch.where(torch.rand(1, count, generator=generator) < 0.3, 1.0, -1.0).double()
    return Likelihood(d), batch(a, torch.zeros_like(d))


def test_searched_bounds_are_the_first_that_balance() -> None:
    """By hand on a grid; no earlier pair of bounds balances."""
    live, b = wide()
    for balance in (0.0, 0.3, 0.35, 0.45, 9.0):
        part = SearchedClip(balance=balance)
        low, high = part.bounds(live, b)
        found = (1 - float(low), 1 + float(high))
        grid = [(0.6 + 0.05 * i, 1.2) for i in range(7)] + [(0.9, 1.2 + 0.05 * i) for i in range(1, 37)]
        ratio, a = live.logp.exp()[0], b.advantage[0]

        def reached(low: float, high: float, ratio=ratio, a=a) -> float:
            good = (ratio[a > 0].clamp(max=high)).sum()
            return float(good / ratio[(a < 0) & (ratio >= low)].sum())

        first = next((pair for pair in grid if reached(*pair) >= balance), grid[-1])
        assert found == pytest.approx(first), balance


def test_the_released_balance_cannot_be_reached_by_its_first_stage() -> None:
    """BAPO's own count: raising the lower bound only adds to what bad tokens contribute; by their gradient it helps."""
    live, b = wide()
    ratio, a = live.logp.exp()[0], b.advantage[0]
    good = ratio[a > 0].clamp(max=1.2).sum()
    steps = (0.6, 0.7, 0.8, 0.9)
    value = [float(good / ratio[a < 0].clamp(min=low).sum()) for low in steps]
    gradient = [float(good / ratio[(a < 0) & (ratio >= low)].sum()) for low in steps]
    assert value == sorted(value, reverse=True) and gradient == sorted(gradient)
    edge = (gradient[1] + gradient[2]) / 2  # between two steps of the lower bound
    by_gradient, by_value = (
        SearchedClip(balance=edge, contribution=kind).bounds(live, b) for kind in ("gradient", "value")
    )
    assert 1 - float(by_gradient[0]) == pytest.approx(0.8, abs=0.051) and float(by_gradient[1]) == pytest.approx(0.2)
    assert 1 - float(by_value[0]) == pytest.approx(0.9)


def test_bounds_by_entropy_are_those_of_the_paper() -> None:
    """h of -1, -.5, 0, .5, 1: lower bounds .6, .7, .8, .8, .8 and upper ones 1.2, 1.2, 1.2, 1.3, 1.4."""
    entropy = table([-2.0, -1.0, 0.0, 0.25, 0.5]).exp()  # log entropy, its median in the middle
    live = Likelihood(torch.zeros(1, 5).double(), {"entropy": entropy})
    b = batch(torch.ones(1, 5).double(), torch.zeros(1, 5).double())
    part = EntropyClip(pivot=0.5)
    assert part.surprise(live, b)[0].tolist() == pytest.approx([-1, -0.5, 0, 0.5, 1])
    low, high = part.bounds(live, b)
    assert (1 - low)[0].tolist() == pytest.approx([0.6, 0.7, 0.8, 0.8, 0.8])
    assert (1 + high)[0].tolist() == pytest.approx([1.2, 1.2, 1.2, 1.3, 1.4])


def test_the_released_sign_of_entropy_makes_every_token_uncertain() -> None:
    """HAPO's code divides negative h by their (negative) smallest; flowrl keeps the sign."""
    live = Likelihood(torch.zeros(1, 3).double(), {"entropy": table([-2.0, 0.0, 1.0]).exp()})
    b = batch(torch.ones(1, 3).double(), torch.zeros(1, 3).double())
    assert (EntropyClip(pivot=0.5, signed=False).surprise(live, b) >= 0).all()
    assert (EntropyClip(pivot=0.5).surprise(live, b) < 0).any()


def test_advantages_move_between_certain_and_uncertain_tokens() -> None:
    """At ratio 1, inside the neutral zone, certain tokens have A (1 + h), uncertain ones A; outside the reverse."""
    entropy = table([-1.0, 0.0, 1.0]).exp()
    b = batch(torch.ones(1, 3).double(), torch.zeros(1, 3).double())
    for log_ratio, factors in ((0.0, [0, 1, 1]), (math.log(1.15), [1, 1, 2])):
        logp = torch.full((1, 3), log_ratio).double().requires_grad_()
        loss = EntropyClip(pivot=0.5)(Likelihood(logp, {"entropy": entropy}), b)
        slopes = torch.autograd.grad(loss.sum(), logp)[0][0].tolist()
        assert slopes == pytest.approx([-math.exp(log_ratio) * factor for factor in factors])


def test_the_covariance_penalty_is_on_the_tokens_of_the_largest() -> None:
    """KL-Cov: one of ten tokens, the likeliest of the good ones; nothing at the old policy."""
    logp = torch.linspace(-3, -0.3, 10).double()[None]
    a = table([1.0, -1.0] * 5)
    covariance = (a - a.mean()) * (logp - logp.mean())
    part = CovariancePenalty(share=0.1, weight=0.7)
    live, b = Likelihood(logp.clone().requires_grad_()), batch(a, logp - 0.1)
    extra = part(live, b) - Importance()(live, b)
    assert int((extra > 0).sum()) == 1 and int(extra.argmax()) == int(covariance.argmax())
    assert float(extra.detach().max()) == pytest.approx(0.07)
    torch.testing.assert_close(CovariancePenalty(share=0.0)(live, b), Importance()(live, b))


# ------------------------------------------------------------------------------------------- RPG, mirror descent, chi^2
REWARD = torch.tensor([1.0, 0.2, -0.5, 0.1]).double()


def bandit() -> tuple[Tensor, Tensor]:
    """Logits of a policy with gradient, and log-probabilities of another one, over four arms."""
    return torch.tensor([0.3, -0.2, 0.5, 0.0]).double().requires_grad_(), table([0.0, 0.4, 0.1, -0.3])[0].log_softmax(0)


def expected(loss, logits: Tensor, old: Tensor, weight: Tensor) -> Tensor:
    """The gradient of a loss, averaged over all arms with their probabilities."""
    live = Likelihood(logits.log_softmax(0)[:, None])
    b = batch(REWARD[:, None], old[:, None], weight=torch.ones(4, 1).double())
    return torch.autograd.grad((weight * loss(live, b)[:, 0]).sum(), logits)[0]


@pytest.mark.parametrize("divergence", ["forward", "reverse"])
@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("estimator", ["differentiable", "reinforce"])
def test_every_form_is_the_gradient_of_reward_less_divergence(divergence, normalised, estimator) -> None:
    logits, old = bandit()
    part = RegularisedGradient(0.3, divergence, normalised, estimator)
    found = expected(part, logits, old, old.exp())
    logp = logits.log_softmax(0)
    apart = (logp.exp() * (logp - old)).sum() if divergence == "reverse" else (old.exp() * (old - logp)).sum()
    wanted = torch.autograd.grad((logp.exp() * REWARD).sum() - 0.3 * apart, logits)[0]
    torch.testing.assert_close(found, -wanted)


def test_mirror_descent_ends_at_the_old_policy_times_exp_of_the_advantage() -> None:
    """The minimiser of -rho A + KL / eta over all policies, by gradient descent on four arms."""
    _, old = bandit()
    logits, eta = torch.zeros(4).double().requires_grad_(), 0.7

    def loss(likelihood: Likelihood, b: Batch) -> Tensor:
        return Importance()(likelihood, b) + ReverseKLToOld(1 / eta)(likelihood, b) / eta

    for _ in range(600):
        step = expected(loss, logits, old, old.exp())
        logits = (logits - step).detach().requires_grad_()
    target = (old + eta * REWARD).softmax(0)
    torch.testing.assert_close(logits.softmax(0), target, rtol=1e-5, atol=1e-6)


def test_the_divergence_from_the_old_policy_is_exact_in_the_mean() -> None:
    logits, old = bandit()
    logp = logits.log_softmax(0).detach()
    each = ReverseKLToOld()(Likelihood(logp[:, None]), batch(torch.zeros(4, 1).double(), old[:, None]))[:, 0]
    assert float((old.exp() * each).sum()) == pytest.approx(float((logp.exp() * (logp - old)).sum()))
    assert bool((each >= 0).all())


def test_a_weighted_estimate_has_the_gradient_of_the_divergence_off_policy() -> None:
    """With samples of the old policy: grad KL(policy, reference); k3 without the ratio has another one."""
    logits, old = bandit()
    ref = table([0.2, -0.1, 0.0, 0.3])[0].log_softmax(0)
    policy = logits.log_softmax(0)
    live = Likelihood(policy[:, None], {"log_ratio/reference": (policy - ref).detach()[:, None]})
    each = WeightedKL()(live, batch(torch.zeros(4, 1).double(), old[:, None]))[:, 0]
    found = torch.autograd.grad((old.exp() * each).sum(), logits, retain_graph=True)[0]
    wanted = torch.autograd.grad((policy.exp() * (policy - ref)).sum(), logits, retain_graph=True)[0]
    torch.testing.assert_close(found, wanted)
    assert float((old.exp() * each).sum()) == pytest.approx(float((policy.exp() * (policy - ref)).sum()))
    q = ref - policy
    plain = torch.autograd.grad((old.exp() * (q.exp() - 1 - q)).sum(), logits)[0]
    assert float((plain - wanted).norm()) > 0.05 * float(wanted.norm())


@pytest.mark.parametrize(
    ("q", "value", "slope_of"),
    [(-1.0, 0.3679, 0.6321), (-0.1, 0.004837, 0.09516), (0.1, 0.005171, -0.10517), (1.0, 0.7183, -1.7183)],
)
def test_k3_is_the_golden_one_at_the_old_policy(q: float, value: float, slope_of: float) -> None:
    """Without the ratio's gradient, which adds the value itself."""
    logp = table([-1.0]).requires_grad_()
    live = Likelihood(logp, {"log_ratio/reference": table([-q])})
    found = WeightedKL()(live, batch(table([0.0]), table([-1.0])))
    assert float(found.detach()) == pytest.approx(value, abs=1e-4)
    assert float(torch.autograd.grad(found.sum(), logp)[0]) == pytest.approx(slope_of + value, abs=1e-4)


def test_the_square_of_a_whole_log_ratio_is_shared_by_its_tokens() -> None:
    d = table([0.1, 0.2, -0.6], [0.3, 0.0, 9.0])
    weight = table([1, 1, 1], [1, 1, 0])
    found = SquaredLogRatio()(
        Likelihood(d), batch(torch.ones(2, 3).double(), torch.zeros(2, 3).double(), weight=weight)
    )
    assert (found * weight).sum(dim=1).tolist() == pytest.approx([0.3**2 / 2, 0.3**2 / 2])


def test_the_chi_squared_bound_has_the_gradient_of_its_release() -> None:
    """With samples of the policy: (grad chi2(policy, reference) / 2 + grad KL(reference, policy)) / (2 root), times the
    weight."""
    logits, ref = bandit()
    policy = logits.log_softmax(0)
    weight = policy.detach().exp()

    def mean_over(part: ChiSquared) -> Tensor:
        live = Likelihood(policy[:, None], {"log_ratio/reference": (policy - ref).detach()[:, None]})
        # samples of the policy: 4 arms, in whole numbers of copies, would round; weigh the mean instead
        rows = torch.multinomial(weight, 200_000, replacement=True, generator=torch.Generator().manual_seed(0))
        many = Likelihood(live.logp[rows], {k: v[rows] for k, v in live.extra.items()})
        b = batch(torch.zeros(len(rows), 1).double(), policy.detach()[rows, None])
        return part(many, b).mean()

    found = torch.autograd.grad(mean_over(ChiSquared(weight=1.0)), logits)[0]
    logp = logits.log_softmax(0)
    ratio = (logp - ref).exp()
    chi, forward = (ref.exp() * (ratio - 1) ** 2).sum(), (ref.exp() * (ref - logp)).sum()
    root = (weight * (ratio + 1 / ratio - 2).detach()).sum().sqrt()
    wanted = torch.autograd.grad(chi / 2 + forward, logits)[0] / (2 * root)
    torch.testing.assert_close(found, wanted, rtol=0.05, atol=0.004)


def test_likelihoods_that_fell_are_pulled_back() -> None:
    """LLDS by hand: -1, -.5, -2 against -.8, -.9, -1.5: the sum fell, so the drops .2 and .5 count, .7 / 3 together."""

    class Whole(Rows):
        unit = property(lambda self: 3)

    live, old = table([-1, -0.5, -2], [-1, -0.5, -2], [-1, -0.5, -1]), table([-0.8, -0.9, -1.5]).expand(3, 3)
    a = torch.tensor([[1.0], [-1.0], [1.0]]).double().expand(3, 3)
    found = LikelihoodDrop()(Likelihood(live), batch(a, old, Whole()))
    assert found.mean(dim=1).tolist() == pytest.approx([0.7 / 3, 0, 0])  # a bad one; one that rose
    with pytest.raises(IncompatibleError, match="tokens estimator"):
        LikelihoodDrop()(Likelihood(live), batch(a, old))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Quadratic(0.0), "clip=0.0"),
        (lambda: SoftGate(negative=0.0), "negative=0.0"),
        (lambda: DivergenceClip(-1.0), "delta=-1.0"),
        (lambda: SearchedClip(step=0.0), "step=0.0"),
        (lambda: RatioVariance(-1.0), "weight -1.0"),
    ],
)
def test_options_that_mean_nothing_are_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_presets_at_their_neutral_setting_are_their_base() -> None:
    spo, cfpo = composition.build("spo_simple"), composition.build("cfpo")
    assert spo.objective == cfpo.objective and spo.aggregation != cfpo.aggregation
    assert composition.build("luspo").objective == composition.build("gspo").objective
