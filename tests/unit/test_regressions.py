"""Regressions, preferences and labels against enumeration and closed forms on a bandit of three actions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from flowrl import composition
from flowrl.config import Config
from flowrl.errors import UserError
from flowrl.parts.comparisons import Labels, WinRate
from flowrl.parts.divergences import FDivergence
from flowrl.parts.labels import AnchoredLabels, LabelContrast, NegativeAware
from flowrl.parts.objectives import ScoreFunction
from flowrl.parts.regressions import ExploringPairs, GroupRegression, PairwiseClipped, SoftPairs
from flowrl.parts.regularizers import KL
from flowrl.parts.selections import OwnSamples, ReplaceFlatGroups
from flowrl.samplers.rivals import MixtureSampler
from flowrl.startup.preflight import check_run
from flowrl.types import POLICY, RIVAL, Batch, Draw, IncompatibleError, Likelihood, Rows, Scores, Table, prompts_of
from tests.contract.toys import PROMPTS, gradients, roll, small, start
from tests.training import config_of

REWARD = torch.tensor([0.2, 1.0, -0.4], dtype=torch.float64)
REFERENCE = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
OLD = torch.tensor([0.25, 0.35, 0.4], dtype=torch.float64)
GAME = torch.tensor([[0.5, 0.9, 0.3], [0.1, 0.5, 0.8], [0.7, 0.2, 0.5]], dtype=torch.float64)
"""Probability that an action is preferred to another; no order of them fits."""
TAU = 0.5


def batch(live: Tensor, actions: Tensor, advantage: Tensor, source: Tensor | None = None) -> tuple[Likelihood, Batch]:
    """What an objective sees of one group of actions with log-probabilities ``live`` [3]."""
    log_ratio = (live - REFERENCE.log())[actions, None]
    extra = {"log_ratio/reference": log_ratio.detach(), "kl/reference": 0.5 * log_ratio**2}
    old = Likelihood(OLD.log()[actions, None])
    weight = torch.full((len(actions), 1), 1 / len(actions)).double()
    known = Batch(advantage[:, None], old, weight, torch.zeros(len(actions)).long(), Rows(), source=source)
    return Likelihood(live[actions, None], extra), known


def value(part: Callable, live: Tensor, actions: Tensor, advantage: Tensor, source: Tensor | None = None) -> Tensor:
    likelihood, known = batch(live, actions, advantage, source)
    return (known.weight * part(likelihood, known)).sum()


def expected(loss: Callable[[Tensor, Tensor], Tensor], policy: Tensor) -> Tensor:
    """[3] gradient of the mean loss of two actions drawn from a policy, by its logits; ``loss(live, actions)``."""
    theta = policy.log().clone().requires_grad_()
    live = theta.log_softmax(dim=0)
    total = sum(policy[i] * policy[j] * loss(live, torch.tensor([i, j])) for i in range(3) for j in range(3))
    return torch.autograd.grad(total, theta)[0]


def policy_gradient(policy: Tensor, reward: Tensor = REWARD) -> Tensor:
    """[3] gradient of the expected reward by the logits."""
    return policy * (reward - (policy * reward).sum())


def minimiser(part: Callable, actions: list[int], advantage: Tensor = REWARD) -> Tensor:
    """[3] the policy that a loss on these samples leads to."""
    theta, rows = torch.zeros(3, dtype=torch.float64, requires_grad=True), torch.tensor(actions)
    optimizer = torch.optim.LBFGS(
        [theta], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-18, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = value(part, theta.log_softmax(dim=0), rows, advantage[rows])
        loss.backward()
        return loss

    optimizer.step(closure)
    return theta.detach().softmax(dim=0)


def tilted(anchor: Tensor, exponent: Tensor) -> Tensor:
    return (anchor.log() + exponent).softmax(dim=0)


@pytest.mark.parametrize("actions", [[0, 1, 2], [0, 1, 1, 2, 2, 2], [2, 0, 0, 0, 0, 1, 0]])
@pytest.mark.parametrize(
    ("part", "anchor", "exponent"),
    [
        (GroupRegression(beta=0.5, scale=0.5), OLD, REWARD / 0.5),
        (GroupRegression(target=1.5, scale=2.0), OLD, 1.5 * REWARD),
        (GroupRegression(reference_share=1.0, beta=0.7), REFERENCE, REWARD / 0.7),
        (GroupRegression(0.25), REFERENCE**0.25 * OLD**0.75, REWARD),
        (SoftPairs(beta=0.5), OLD, REWARD / 0.5),
    ],
)
def test_any_samples_lead_to_the_tilted_anchor(part, anchor: Tensor, exponent: Tensor, actions: list[int]) -> None:
    """GVPO, REBEL, CoPG, INPO's anchor and DNO: no importance weights, whatever the samples are from."""
    assert torch.allclose(minimiser(part, actions), tilted(anchor, exponent), atol=2e-6)


def test_gvpo_is_a_policy_gradient_at_the_anchor_and_has_no_residual_at_its_optimum() -> None:
    part = GroupRegression(beta=0.3, scale=0.5)
    found = expected(lambda live, rows: value(part, live, rows, REWARD[rows]), OLD)
    assert torch.allclose(found, -0.3 * policy_gradient(OLD), atol=1e-12)
    best = tilted(OLD, REWARD / 0.3).log()
    assert float(value(part, best, torch.tensor([0, 2, 2, 1]), REWARD[[0, 2, 2, 1]])) < 1e-25
    assert float(value(part, OLD.log(), torch.tensor([0, 2]), REWARD[[0, 2]])) > 0.01


def test_rebel_at_the_old_policy_is_two_samples_leave_one_out() -> None:
    part = GroupRegression(target=0.7, scale=2.0)
    found = expected(lambda live, rows: value(part, live, rows, REWARD[rows]), OLD)
    assert torch.allclose(found, -4 * 0.7 * policy_gradient(OLD), atol=1e-12)


def test_copg_direction_is_that_of_regularised_rewards() -> None:
    """-2 beta (R_i - R_j) grad (log p_i - log p_j), R = r - beta log p / p_ref."""
    theta = torch.tensor([0.3, -0.2, 0.1]).double().requires_grad_()
    rows, beta = torch.tensor([0, 2]), 0.7
    live = theta.log_softmax(dim=0)
    found = torch.autograd.grad(value(GroupRegression(1.0, beta=beta), live, rows, REWARD[rows]), theta)[0]
    live = theta.log_softmax(dim=0)
    r = REWARD - beta * (live - REFERENCE.log())
    gap = torch.autograd.grad(live[0] - live[2], theta)[0]
    assert torch.allclose(found, -beta * (r[0] - r[2]).detach() * gap)


def test_p3o_is_the_policy_gradient_on_policy_and_blind_to_a_constant() -> None:
    part = PairwiseClipped(0.1, 0.1)
    found = expected(lambda live, rows: value(part, live, rows, REWARD[rows]), OLD)
    assert torch.allclose(found, -policy_gradient(OLD), atol=1e-12)
    rows = torch.tensor([0, 1, 2, 1])
    off = (OLD.log() + torch.tensor([0.3, -0.4, 0.05])).log_softmax(dim=0)
    one, other = (value(part, off, rows, REWARD[rows] + c) for c in (0.0, 17.0))
    assert float(one) == pytest.approx(float(other), abs=1e-12)


def test_p3o_stops_each_of_a_pair_by_its_own_difference() -> None:
    rows, off = torch.tensor([0, 1]), OLD.log() + torch.tensor([-0.5, 0.5]).double()[[0, 1, 0]]
    theta = off.clone().requires_grad_()
    likelihood, known = batch(theta, rows, torch.tensor([0.0, 1.0]).double())
    slopes = torch.autograd.grad((known.weight * PairwiseClipped(0.2, 0.2)(likelihood, known)).sum(), theta)[0]
    assert slopes.tolist() == [0, 0, 0]  # the worse has become less likely, the better more
    likelihood, known = batch(theta, rows, torch.tensor([1.0, 0.0]).double())
    slopes = torch.autograd.grad((known.weight * PairwiseClipped(0.2, 0.2)(likelihood, known)).sum(), theta)[0]
    assert float(slopes[0]) == pytest.approx(-0.5 * 0.60653, abs=1e-5)
    assert float(slopes[1]) == pytest.approx(0.5 * 1.64872, abs=1e-5)


@pytest.mark.parametrize(
    ("kind", "f"),
    [
        ("reverse_kl", lambda t: t * t.log()),
        ("forward_kl", lambda t: -t.log()),
        ("total_variation", lambda t: 0.5 * (1 - t).abs()),
        ("jensen_shannon", lambda t: t * t.log() - (t + 1) * ((t + 1) / 2).log()),
    ],
)
def test_f_dpg_follows_the_divergence_by_enumeration(kind, f: Callable[[Tensor], Tensor]) -> None:
    """Ten samples in the policy's own proportions, so that the group's means are expectations."""
    policy, beta = torch.tensor([0.5, 0.3, 0.2]).double(), 0.8
    anchor = torch.tensor([0.2, 0.3, 0.5]).double()
    rows = torch.tensor([0] * 5 + [1] * 3 + [2] * 2)
    old = Likelihood(policy.log()[rows, None], {"log_ratio/reference": (policy / anchor).log()[rows, None]})
    group, one = torch.zeros(10).long(), torch.ones(10, 1)
    table = Table(Rows(), group, group, None, REWARD[rows, None], one.bool(), one.double(), old)
    advantage = FDivergence(kind, beta)(table).advantage[:, 0]
    target = tilted(anchor, REWARD / beta)
    theta = policy.log().clone().requires_grad_()
    live = theta.log_softmax(dim=0)
    found = torch.autograd.grad(-(advantage * live[rows]).mean(), theta)[0]
    divergence = (target * f(theta.softmax(dim=0) / target)).sum()
    wanted = torch.autograd.grad(divergence, theta)[0]
    assert torch.allclose(found, wanted * 10 / 9, atol=1e-12)  # the others' mean as baseline


def test_f_dpg_bounds_what_grows() -> None:
    old = Likelihood(torch.zeros(2, 1).double(), {"log_ratio/reference": torch.tensor([[-80.0], [0.0]]).double()})
    zero = torch.zeros(2).long()
    table = Table(Rows(), zero, zero, None, torch.zeros(2, 1), torch.ones(2, 1).bool(), torch.ones(2, 1), old)
    assert FDivergence("forward_kl", most=5.0)(table).advantage.abs().max() <= 5
    with pytest.raises(ValueError, match="temperature=0"):
        FDivergence(temperature=0)


# ------------------------------------------------------------------------------------------------ games of preferences
def nash(tau: float = TAU) -> Tensor:
    """[3] the regularised equilibrium ``p = reference exp((P p) / tau) / Z``, by damped iteration."""
    policy = REFERENCE.clone()
    for _ in range(20_000):
        policy = (0.98 * policy.log() + 0.02 * (REFERENCE.log() + GAME @ policy / tau)).softmax(dim=0)
    return policy


def mixture(policy: Tensor, share: float) -> Tensor:
    return ((1 - share) * policy.log() + share * REFERENCE.log()).softmax(dim=0)


def test_gradients_of_preferences_vanish_at_the_regularised_equilibrium_alone() -> None:
    """Online IPO (IPO-MD without a mixture) and INPO with the equilibrium as the policy that sampled."""
    at = nash()
    residual = GAME @ at - TAU * (at / REFERENCE).log()
    assert float(residual.max() - residual.min()) < 1e-12

    def ipo(live: Tensor, rows: Tensor) -> Tensor:
        margin = (GAME[rows[0], rows[1]] - 0.5) / 2
        return value(GroupRegression(1.0, target=1 / TAU, scale=2.0), live, rows, torch.stack([margin, -margin]))

    assert float(expected(ipo, at).abs().max()) < 1e-12
    assert float(expected(ipo, torch.tensor([0.3, 0.3, 0.4]).double()).abs().max()) > 0.01


def test_inpo_stays_at_the_equilibrium(monkeypatch: pytest.MonkeyPatch) -> None:
    eta, part = 2.0, composition.build({"use": "inpo", "eta": 2.0, "tau": TAU}).objective

    def inpo(live: Tensor, rows: Tensor) -> Tensor:
        wins = GAME[rows[0], rows[1]]
        up, down = (value(part, live, rows, torch.tensor([s, -s]).double()) for s in (1.0, -1.0))
        return wins * up + (1 - wins) * down

    for policy, still in ((nash(), True), (torch.tensor([0.3, 0.3, 0.4]).double(), False)):
        monkeypatch.setattr("tests.unit.test_regressions.OLD", policy)
        assert (float(expected(inpo, policy).abs().max()) < 1e-12) is still
    assert part.target == 1 / (4 * eta)


def nash_gradient(policy: Tensor, opponent: Tensor) -> Tensor:
    """The expected gradient of `nash_md` and `nash_mp`: wins against an opponent's samples, and the KL's."""
    theta = policy.log().clone().requires_grad_()
    rows = torch.arange(3)
    likelihood, known = batch(theta.log_softmax(dim=0), rows, GAME @ opponent - 0.5)
    loss = ScoreFunction()(likelihood, known) + TAU * KL(TAU)(likelihood, known)
    return torch.autograd.grad((policy[:, None] * loss).sum(), theta)[0]


def settle(opponent: Callable[[Tensor], Tensor], steps: int = 2500) -> Tensor:
    theta = REFERENCE.log().clone()
    for _ in range(steps):
        policy = theta.softmax(dim=0)
        theta = theta - 0.2 * nash_gradient(policy, opponent(policy)) / policy
    return theta.softmax(dim=0)


def test_a_slow_copy_has_the_equilibrium_and_a_mixture_a_biased_one() -> None:
    def residual(policy: Tensor) -> float:
        left = GAME @ policy - TAU * (policy / REFERENCE).log()
        return float(left.max() - left.min())

    assert float(nash_gradient(nash(), nash()).abs().max()) < 1e-12
    assert residual(settle(lambda policy: policy, 800)) < 1e-9
    found = [residual(settle(lambda policy, s=share: mixture(policy, s), 800)) for share in (0.3, 0.15, 0.05, 0.015)]
    assert found[0] > 1e-3 and found == sorted(found, reverse=True) and found[3] < found[0] / 10


def test_the_kl_of_nash_md_is_no_detached_reward() -> None:
    """k1 differentiated as a loss has expected gradient 0; what `nash_md` adds is the reverse KL's."""
    theta = OLD.log().clone().requires_grad_()
    likelihood, known = batch(theta.log_softmax(dim=0), torch.arange(3), torch.zeros(3).double())
    found = torch.autograd.grad((OLD[:, None] * KL(1.0)(likelihood, known)).sum(), theta)[0]
    divergence = (theta.softmax(dim=0) * (theta.log_softmax(dim=0) - REFERENCE.log())).sum()
    assert torch.allclose(found, torch.autograd.grad(divergence, theta)[0]) and float(found.abs().max()) > 0.01
    assert composition.build("nash_md").estimator.kl == "k2"


def test_the_bonus_of_xpo_vanishes_in_the_mean_at_the_reference() -> None:
    rows, source = torch.tensor([0, 1]), torch.tensor([POLICY, RIVAL])

    def bonus(live: Tensor, rows: Tensor) -> Tensor:
        one, none = (value(ExploringPairs(optimism=o), live, rows, REWARD[rows], source) for o in (1.0, 0.0))
        return one - none

    assert float(expected(bonus, REFERENCE).abs().max()) < 1e-12
    live = REFERENCE.log().clone().requires_grad_()
    slope = torch.autograd.grad(bonus(live, rows), live)[0]
    assert slope.tolist() == [0, 1, 0]  # it lowers the likelihood of what the reference said
    with pytest.raises(IncompatibleError, match="MixtureSampler"):
        value(ExploringPairs(), REFERENCE.log(), rows, REWARD[rows])


# --------------------------------------------------------------------------------------------------------- the sampler
def mixed_policy(share: float, **options) -> tuple:
    sampler = MixtureSampler(length=3, mixture=share, to="other", **options)
    policy = start(replace(small("grpo"), sampler=sampler))
    with torch.no_grad():
        policy.table.mul_(2.0)
    return sampler, policy


def test_tokens_are_drawn_from_the_geometric_mixture() -> None:
    for share in (0.0, 0.3, 1.0):
        sampler, policy = mixed_policy(share)
        condition = policy.condition(prompts_of(["a"]))
        decoder, live = sampler._decoder(policy, condition), policy.decoder(condition)
        with policy.using("other"):
            other = policy.decoder(condition)
        wanted = live.logits.softmax(dim=-1) ** (1 - share) * other.logits.softmax(dim=-1) ** share
        assert torch.allclose(decoder.logits.softmax(dim=-1), wanted / wanted.sum(), atol=1e-6)
        for each in (decoder, live):
            each.push(torch.tensor([1]))
        with policy.using("other"):
            other.push(torch.tensor([1]))
        wanted = live.logits.softmax(dim=-1) ** (1 - share) * other.logits.softmax(dim=-1) ** share
        assert torch.allclose(decoder.logits.softmax(dim=-1), wanted / wanted.sum(), atol=1e-6)


def test_opponents_are_marked_and_own_samples_are_the_policys() -> None:
    sampler, policy = mixed_policy(1.0, opponents=True)
    group = torch.arange(2).repeat_interleave(4)
    prompts = [prompts_of(PROMPTS)[g] for g in group]
    draw = Draw.of(torch.arange(8), group, 0, 0, prompts)
    made = sampler(policy, policy.condition(prompts), draw)
    assert made.source.tolist() == [POLICY, RIVAL] * 4 and made.group.tolist() == group.tolist()
    own = made.source == POLICY
    assert bool(made.trace.logp[~own].isnan().all()) and not bool(made.trace.logp[own].isnan().any())
    plain = sampler.heldout(None, None, None)
    assert type(plain).__name__ == "CausalSampler" and sampler.weight_sets == ("other",)
    alone = plain(policy, policy.condition(prompts), draw)
    assert torch.equal(alone.final[own], made.final[own])
    with policy.using("other"):
        assert torch.equal(plain(policy, policy.condition(prompts), draw).final[~own], made.final[~own])
    scores = Scores(torch.rand(8, 1), torch.ones(1), ("r",), group, group, torch.ones(8).bool(), source=made.source)
    assert OwnSamples()(scores, torch.zeros(8)).tolist() == own.tolist()


def test_a_mixture_without_reference_is_the_policy() -> None:
    """`ipo_md` at share 0 is `online_ipo`, sample for sample."""
    one, other = small("ipo_md", mixture=0.0), small("online_ipo")
    found = [roll(algorithm, start(algorithm)) for algorithm in (one, other)]
    assert torch.equal(found[0].rollout.final, found[1].rollout.final)
    assert torch.equal(gradients(one, found[0])[0], gradients(other, found[1])[0])


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"use": "ipo_md", "mixture": 2.0}, "mixture=2.0"),
        ({"use": "nash_md", "sampler": {"engine": "vllm"}}, "engine"),
        ({"use": "gvpo", "beta": 0.0}, "beta=0.0"),
        ({"use": "inpo", "tau": 1.0}, "tau=1.0"),
        ({"use": "gvpo", "objective": {"reference_share": 2.0}}, "reference_share=2.0"),
        ({"use": "real", "tau": 0.0}, "tau=0.0"),
        ({"use": "pacs", "beta": 0.0}, "beta=0.0"),
        ({"use": "p3o", "clip": -1.0}, "low=-1.0"),
    ],
)
def test_bad_options_are_named(spec: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        composition.build(spec)


def test_workers_that_have_no_reference_are_refused() -> None:
    values = config_of("nash_md", "countdown", rollouts={"workers": 1})
    with pytest.raises(UserError, match=r"algorithm\.sampler asks reference as well"):
        check_run(Config.of(values))


# ----------------------------------------------------------------------------------------------- win rates and labels
def scores(rewards: list[float], group: list[int] | None = None, source: list[int] | None = None) -> Scores:
    ids = torch.tensor(group or [0] * len(rewards))
    said = None if source is None else torch.tensor(source)
    table = torch.tensor(rewards, dtype=torch.float64)[:, None]
    return Scores(table, torch.ones(1).double(), ("r",), ids, ids, torch.ones(len(ids)).bool(), source=said)


def test_win_rates_count_ties_half_and_balance() -> None:
    found = WinRate()(scores([1.0, 0.0, 0.0, 3.0]), {})
    assert found.tolist() == pytest.approx([0.5 / 4, -1 / 4, -1 / 4, 1.5 / 4])
    assert float(WinRate("sigmoid")(scores([1.0, 0.0]), {})[0]) == pytest.approx((0.7310586 - 0.5) / 2)
    assert WinRate()(scores([2.0, 2.0, 2.0]), {}).tolist() == [0, 0, 0]
    for size, spread in ((4, 0.3727), (8, 0.3273), (12, 0.3138)):  # of a distinct ranking, without the sample itself
        rate = WinRate()(scores([float(i) for i in range(size)]), {}) * size / (size - 1)
        assert float(rate.std(correction=0)) == pytest.approx(spread, abs=1e-4)
    against = WinRate(against="rivals")(scores([1.0, 0.0, 2.0, 1.0], source=[0, 3, 0, 3]), {})
    assert against.tolist() == pytest.approx([0.25, 0, 0.5, 0])
    with pytest.raises(IncompatibleError, match="opponents=true"):
        WinRate(against="rivals")(scores([1.0, 0.0], source=[0, 0]), {})


def test_win_rates_are_all_that_a_regression_needs_of_intransitive_preferences() -> None:
    """The gradient of the sum over all pairs is that with the mean preference of each sample."""
    theta = torch.tensor([0.3, -0.2, 0.1]).double().requires_grad_()
    s = theta.log_softmax(dim=0) - REFERENCE.log()
    pairs = [(i, j) for i in range(3) for j in range(i)]
    wanted = torch.stack([(s[i] - s[j] - (GAME[i, j] - 0.5) / TAU) ** 2 for i, j in pairs]).mean()
    rate = GAME.mean(dim=1) - 0.5
    part = GroupRegression(1.0, target=1 / TAU, scale=2.0)
    found = value(part, theta.log_softmax(dim=0), torch.arange(3), rate)
    assert torch.allclose(*(torch.autograd.grad(loss, theta)[0] for loss in (found, wanted)))


def test_labels() -> None:
    s = scores([1.0, 0.0, 0.6, 0.2, 0.0, 0.1], [0, 0, 0, 0, 1, 1])
    assert Labels()(s, {}).tolist() == [1, -1, 1, -1, -1, -1]
    assert Labels(centred=True)(s, {}).tolist() == [0.5, -0.5, 0.5, -0.5, 0, 0]
    kept = ReplaceFlatGroups(by="advantage")(s, Labels(centred=True)(s, {}))
    assert kept.tolist() == [True] * 4 + [False] * 2  # its rewards differ, its labels do not


@pytest.mark.parametrize(("prompts", "like"), [("hard", "dr_grpo"), ("balanced", "grpo")])
def test_nft_at_ratio_one_is_a_grpo(prompts: str, like: str) -> None:
    nft = small("nft", prompts=prompts)
    changes = {"kl": 0.0, "aggregation": "fixed_length", "advantage": {"ddof": 0, "eps": 0.0}} if like == "grpo" else {}
    grpo = small(like, **changes)
    policy = start(nft)
    it = roll(nft, policy)
    right = (it.scores.rewards > 0.5).double()
    right[::5] = 1.0
    right[1::5] = 0.0
    labelled = replace(it.scores, rewards=right)
    found = [gradients(a, replace(it, scores=labelled, advantage=a.advantage(labelled, {})))[0] for a in (nft, grpo)]
    assert torch.allclose(found[0], found[1], atol=1e-9, rtol=1e-5) and float(found[0].norm()) > 0


def test_nft_golden_slopes_and_the_held_value() -> None:
    """d loss / d log-ratio at p = .2 of a wrong sample, where the value is not held (section 15.1), and beyond."""

    def slope(ratio: float, p: float) -> tuple[float, float]:
        logp = torch.tensor([[ratio]]).double().log().requires_grad_()
        known = Batch(
            torch.tensor([[-p]]).double(),
            Likelihood(torch.zeros(1, 1).double()),
            torch.ones(1, 1),
            torch.zeros(1).long(),
            Rows(),
        )
        loss = NegativeAware("even")(Likelihood(logp), known)
        return float(loss.detach()), float(torch.autograd.grad(loss.sum(), logp)[0])

    for ratio, wanted in ((0.2, 0.042), (0.5, 0.111), (0.79, 0.188), (1.0, 0.25)):
        assert slope(ratio, 0.2)[1] == pytest.approx(wanted, abs=1e-3)
    value, gradient = slope(4.0, 0.5)  # p rho > 1: no logarithm of what is negative
    assert value == 0 and gradient == pytest.approx(4.0)


def test_pacs_at_the_old_policy_is_rloo() -> None:
    pacs, rloo = small("pacs", beta=2.0), small("rloo")
    policy = start(pacs)
    it = roll(pacs, policy)
    right = (it.scores.rewards > 0.3).double()
    labelled = replace(it.scores, rewards=right)
    one, other = (
        gradients(a, replace(it, scores=labelled, advantage=a.advantage(labelled, {})))[0] for a in (pacs, rloo)
    )
    assert torch.allclose(one, 2.0 * other, atol=1e-7) and float(one.norm()) > 0


def test_padding_is_no_part_of_a_log_ratio() -> None:
    """PACS's release sums over it on one path."""
    for part in (LabelContrast(), AnchoredLabels(), GroupRegression(), PairwiseClipped(), SoftPairs()):
        logp = torch.tensor([[-1.0, -2.0], [-0.5, -9.0], [-1.5, -0.1]]).double()
        weight = torch.tensor([[1.0, 1.0], [1.0, 0.0], [1.0, 1.0]]).double()
        known = Batch(
            torch.tensor([[1.0], [-1.0], [1.0]]).double().expand(3, 2),
            Likelihood(torch.zeros(3, 2)),
            weight,
            torch.zeros(3).long(),
            Rows(),
        )
        moved = logp.clone()
        moved[1, 1] = 3.0
        assert torch.equal(part(Likelihood(logp), known), part(Likelihood(moved), known)), part


def test_real_has_bounded_weights_and_learns_of_groups_that_agree() -> None:
    part = AnchoredLabels(0.5)

    def slopes(labels: list[float], shift: float = 0.0) -> Tensor:
        logp = torch.full((len(labels), 1), shift).double().requires_grad_()
        group = torch.zeros(len(labels)).long()
        known = Batch(
            torch.tensor(labels).double()[:, None],
            Likelihood(torch.zeros(len(labels), 1).double()),
            torch.ones(len(labels), 1),
            group,
            Rows(),
        )
        loss = part(Likelihood(logp), known)[0, 0]
        return torch.autograd.grad(loss, logp)[0][:, 0]

    assert torch.allclose(slopes([1, 1, -1]), torch.tensor([-1 / 1.5, -1 / 1.5, 1.0]).double())
    assert torch.allclose(slopes([1, 1]), torch.full((2,), -1 / 1.5).double())
    assert torch.allclose(slopes([-1]), torch.tensor([1.0]).double())
    weights = [float(slopes([-1], shift)[0]) for shift in (-30.0, -1.0, 0.0, 1.0, 30.0)]
    assert weights == sorted(weights) and weights[0] >= 0 and weights[-1] <= 2.0


def test_bounds_of_a_completion_are_averaged_over_views() -> None:
    """What estimates the whole is averaged, parts are summed."""

    class Whole(Rows):
        @property
        def of_whole(self) -> bool:
            return True

    logp = torch.tensor([[0.2, 0.4], [-0.1, 0.3]]).double()
    losses = []
    for rows in (Rows(), Whole()):
        known = Batch(
            torch.tensor([[1.0], [0.0]]).double().expand(2, 2),
            Likelihood(torch.zeros(2, 2)),
            torch.ones(2, 2),
            torch.zeros(2).long(),
            rows,
        )
        losses.append(float(GroupRegression()(Likelihood(logp), known)[0, 0]))
    assert losses == pytest.approx([2 * ((0.6 - 0.2 - 1) / 2) ** 2, 2 * ((0.3 - 0.1 - 1) / 2) ** 2])
    probes = {family: small(f"gvpo{family}") for family in ("", "/masked")}
    for family, algorithm in probes.items():
        it = roll(algorithm, start(algorithm))
        probe = algorithm.estimator.probe(it.rollout, it.policy, it.draw.seeds)
        assert probe.of_whole is (family == "/masked")
