"""Times and noises that the samples of a group share, what compares a policy with another one's errors, and the methods
that live on them."""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from flowrl import composition
from flowrl.estimators.directions import Directions, directions
from flowrl.estimators.matching import ContrastedMatching, Matching, group_seeds
from flowrl.estimators.times import LogitNormalTimes, TrainingTimes, UniformTimes
from flowrl.math.flow import CPS
from flowrl.math.random import seeds
from flowrl.models.tiny_flow import TinyCondition, TinyFlow
from flowrl.models.weights import PointerWeights
from flowrl.parts.advantages import ExponentialWeight, GroupCentred
from flowrl.parts.contrasts import CentredReward, DecisionPair, GroupPreference, LabelledUtility, ScorePreference
from flowrl.parts.ema import Ramp
from flowrl.parts.evidence import EvidenceGradient, LinearisedScore
from flowrl.parts.objectives import ImplicitPair, ScoreFunction
from flowrl.parts.records import BySource
from flowrl.parts.regularizers import NormGuard, Prediction
from flowrl.parts.surrogates import Quadratic
from flowrl.parts.tree_advantages import SiblingPair
from flowrl.samplers.flow import FlowSampler
from flowrl.samplers.mixed import Mixed
from flowrl.samplers.windows import LastSteps
from flowrl.types import DATA, POLICY, Batch, Draw, Likelihood, Scores, prompts_of
from tests.contract.toys import MODES, PROMPTS, disturb, matching_rows, rollout_of
from tests.fidelity.bench import alike, trial

POINTS = torch.randn(6, 2, generator=torch.Generator().manual_seed(1))
GROUPS = torch.tensor([4, 4, 9, 4, 9, 9])


def moved_flow() -> TinyFlow:
    """A policy that has left its reference."""
    policy = TinyFlow(MODES, prompts=PROMPTS)
    disturb(policy, 0.2)
    policy.update_ema("reference", 0.0)
    disturb(policy, 0.2)
    return policy


@pytest.mark.parametrize("kind", [Matching, ContrastedMatching])
def test_the_samples_of_a_group_share_times_and_noises(kind) -> None:
    policy = moved_flow()
    grid = policy.times(6)
    made = rollout_of(None, POINTS, group=GROUPS, seeds=seeds(0, "s", count=6), times=grid)
    rows = kind(draws=3, share="group", times=LogitNormalTimes()).probe(made, policy, made.seeds)
    for value in (rows.t, rows.noise):
        for key in GROUPS.unique():
            mine = value[key == GROUPS]
            assert torch.equal(mine, mine[:1].expand_as(mine))
        assert not torch.equal(value[0], value[2])
    assert not torch.equal(rows.noise[0, 0], rows.noise[0, 1])
    own = kind(draws=3, times=LogitNormalTimes()).probe(made, policy, made.seeds)
    assert len(own.t.unique()) == 18 and len(own.noise.flatten(0, 1).unique(dim=0)) == 18


def test_shared_draws_follow_from_the_draw_alone() -> None:
    """Whatever the order of the rows, and whichever of other groups are on this process."""
    own = seeds(0, "s", count=6)
    shared = group_seeds(own, GROUPS)
    order = torch.tensor([5, 0, 3, 1, 4, 2])
    assert torch.equal(group_seeds(own[order], GROUPS[order]), shared[order])
    part = GROUPS == 9
    assert torch.equal(group_seeds(own[part], GROUPS[part]), shared[part])
    policy, grid = moved_flow(), torch.linspace(1, 0, 7).double()
    estimator = Matching(draws=2, share="group")
    whole = estimator.probe(rollout_of(None, POINTS, group=GROUPS, seeds=own, times=grid), policy, own)
    made = rollout_of(None, POINTS[part], group=GROUPS[part], seeds=own[part], times=grid)
    here = estimator.probe(made, policy, own[part])
    assert torch.equal(here.t, whole.t[part]) and torch.equal(here.noise, whole.noise[part])
    assert torch.equal(whole.block(torch.tensor([4]), slice(1, 2)).noise, whole.noise[4:5, 1:])


@pytest.mark.parametrize("weight", ["uniform", "t", "noise", "ghuber", "adaptive"])
def test_a_weight_set_is_asked_for_its_own_likelihood(weight) -> None:
    """``log_ratio/S`` is what two measurements would give, without gradient; ``norm_growth/S`` compares lengths."""
    policy = moved_flow()
    prompt = policy.condition(toy_prompts(6))
    made = rollout_of(prompt, POINTS, group=GROUPS, seeds=seeds(0, "s", count=6), times=policy.times(6))
    estimator = Matching(draws=3, weight=weight, share="group")
    rows = estimator.probe(made, policy, made.seeds)
    live = estimator(policy, rows, prompt, ("reference",))
    with policy.using("reference"):
        other = estimator(policy, rows, prompt)
    found = live.extra["log_ratio/reference"]
    torch.testing.assert_close(found, (live.logp - other.logp).detach())
    assert not found.requires_grad and live.extra["norm_growth/reference"].requires_grad
    assert float(found.abs().max()) > 1e-3  # at t = 1 the predicted noise has no error
    x = (1 - rows.t[..., None]) * rows.clean + rows.t[..., None] * rows.noise
    index = prompt.take(torch.arange(6).repeat_interleave(3))
    flat = (x.float().flatten(0, 1), rows.t.flatten(), index)
    v = policy.velocity(*flat)
    with policy.using("reference"):
        before = policy.velocity(*flat)
    growth = (v.norm(dim=1) / before.norm(dim=1) - 1).reshape(6, 3)
    torch.testing.assert_close(live.extra["norm_growth/reference"].float(), growth, rtol=1e-4, atol=1e-6)
    if weight == "adaptive":  # the error of the predicted clean latent over its mean size
        residual = rows.t[..., None] * (v.reshape(6, 3, 2) - (rows.noise - rows.clean))
        wanted = -(residual**2).mean(dim=2) / residual.abs().mean(dim=2)
        torch.testing.assert_close(live.logp, wanted, rtol=1e-5, atol=1e-7)


def toy_prompts(count: int):
    """Prompts of the toy flow."""
    return prompts_of([PROMPTS[i % 2] for i in range(count)])


# ------------------------------------------------------------------------------------- losses of given likelihoods
def batch_of(advantage: list[float], group: list[int], decisions: int = 1, t: float = 0.5) -> Batch:
    """Samples with these advantages."""
    shape = (len(group), decisions)
    none = torch.zeros(*shape, 1)
    rows = matching_rows(none, none, torch.full(shape, t, dtype=torch.float64))
    wide = torch.tensor(advantage).double()[:, None].expand(shape)
    old = Likelihood(torch.zeros(shape, dtype=torch.float64))
    return Batch(wide, old, torch.full(shape, 1 / (shape[0] * shape[1])).double(), torch.tensor(group), rows)


def slopes(objective, gain: Tensor, batch: Batch, **extra: Tensor) -> tuple[float, Tensor]:
    """Mean loss and its derivative by the log-probabilities [N, D], whose log-ratio to every weight set is ``gain``."""
    logp = (gain - 1.0).requires_grad_()
    known = {f"log_ratio/{name}": gain for name in ("reference", "old")}
    loss = objective(Likelihood(logp, known | extra), batch).mean()
    return float(loss.detach()), torch.autograd.grad(loss, logp)[0]


PAIR = ([1.0, -1.0], [0, 0])
GAIN = torch.tensor([[0.3, -0.2], [0.1, 0.4]]).double()


@pytest.mark.parametrize("gain", [torch.zeros(2, 2).double(), 0.01 * GAIN, GAIN])
def test_a_group_of_two_is_diffusion_dpo(gain: Tensor) -> None:
    """At and away from the reference: the same loss and gradient at the same beta, over beta."""
    beta, batch = 20.0, batch_of(*PAIR, decisions=2)
    pair, group = (slopes(part, gain, batch) for part in (DecisionPair(beta / 2), GroupPreference(beta)))
    assert group[0] * beta == pytest.approx(pair[0], rel=1e-12)
    torch.testing.assert_close(group[1] * beta, pair[1], rtol=1e-12, atol=0)


def test_diffusion_dpo_at_the_reference() -> None:
    """Loss log 2 and the gradient of weighted matching with advantages +-beta / 4; swapped labels negate it."""
    beta, batch, none = 20.0, batch_of(*PAIR, decisions=2), torch.zeros(2, 2).double()
    loss, slope = slopes(DecisionPair(beta / 2), none, batch)
    assert loss == pytest.approx(math.log(2))
    weighted = slopes(ScoreFunction(), none, batch_of([beta / 2, -beta / 2], [0, 0], 2))[1]
    torch.testing.assert_close(slope, weighted)  # of a mean over both samples: +-beta / 4 in the sum of a pair
    swapped = slopes(DecisionPair(beta / 2), none, batch_of([-1, 1], [0, 0], 2))[1]
    assert torch.equal(swapped, -slope)


def test_labels_without_pairs_at_the_reference_are_diffusion_dpo() -> None:
    """KTO has beta where DPO has half of it; a good and a bad sample together pull as a pair does."""
    none = torch.zeros(2, 2).double()
    kto, dpo = (slopes(part, none, batch_of(*PAIR, decisions=2)) for part in (LabelledUtility(8.0), DecisionPair(4.0)))
    assert kto[0] == pytest.approx(0.5)
    torch.testing.assert_close(2 * kto[1], dpo[1])  # the sum over both samples, and not their mean
    flipped = slopes(LabelledUtility(8.0), none, batch_of([-1, 1], [0, 0], 2))[1]
    assert torch.equal(flipped, -kto[1])


def test_the_zero_of_labels_is_that_of_the_whole_batch() -> None:
    """Not of a micro-batch, of which two samples would be noise, and never below 0; unlabelled samples do not count."""
    gain = torch.tensor([[0.4], [0.2], [-0.3], [9.0]]).double()
    batch = batch_of([1, -1, 1, 0], [0, 0, 1, 1])
    zero = (0.4 + 0.2 - 0.3) / 3
    wanted = [1 - 1 / (1 + math.exp(-s * 2 * (g - zero))) for s, g in ((1, 0.4), (-1, 0.2), (1, -0.3))]
    assert slopes(LabelledUtility(2.0), gain, batch)[0] == pytest.approx(sum(wanted) / 4)
    worse = slopes(LabelledUtility(2.0), -gain.abs(), batch)[0]
    wanted = [1 - 1 / (1 + math.exp(-s * 2 * g)) for s, g in ((1, -0.4), (-1, -0.2), (1, -0.3))]
    assert worse == pytest.approx(sum(wanted) / 4)
    averse = slopes(LabelledUtility(2.0, "loss_averse"), torch.zeros(4, 1).double(), batch)[0]
    seeking = slopes(LabelledUtility(2.0, "risk_seeking"), torch.zeros(4, 1).double(), batch)[0]
    assert averse == pytest.approx(0.75 * math.log(2)) and seeking == pytest.approx(-0.75 * math.log(2))


def test_what_all_samples_share_does_not_move_a_group_preference() -> None:
    """A clip leaves a sum of advantages; without centring again a drift of 3 moves z by 18 at beta 500."""
    clipped = [1.2, 0.4, -0.05, -1.4]  # sums to .15
    gain = 0.01 * torch.randn(4, 1, generator=torch.Generator().manual_seed(0)).double()
    batch = batch_of(clipped, [0] * 4)
    still, drifted = (slopes(GroupPreference(500.0), g, batch) for g in (gain, gain - 3))
    assert still[0] == pytest.approx(drifted[0], rel=1e-9)
    torch.testing.assert_close(still[1], drifted[1], rtol=1e-9, atol=0)
    assert float(still[1].sum()) == pytest.approx(0, abs=1e-12)
    at_reference = slopes(GroupPreference(500.0), torch.zeros(4, 1).double(), batch)[1]
    centred = torch.tensor(clipped).double() - sum(clipped) / 4
    torch.testing.assert_close(at_reference[:, 0], -centred / 2 / 4)  # half of uniform weighted matching


def test_a_trusted_region_stops_the_gradient_and_keeps_the_value() -> None:
    gain = torch.tensor([[0.2], [0.0], [0.0], [-0.2]]).double()
    batch = batch_of([1, 0.5, -0.5, -1], [0] * 4)
    free, held = (slopes(GroupPreference(2.0, clip), gain, batch) for clip in (None, 0.1))
    assert held[0] == free[0] and held[1][0] == held[1][3] == 0
    assert torch.equal(held[1][1:3], free[1][1:3]) and bool((free[1] != 0).all())
    turned = slopes(GroupPreference(2.0, 0.1), -gain, batch)[1]  # the other way round nothing is stopped
    assert bool((turned != 0).all())


def test_the_forms_of_the_evidence_gradient() -> None:
    """PAR and PEPG have one gradient everywhere; PEPG is EPG and half the squared log-ratio, weighted alike; at the old
    policy all are REINFORCE."""
    batch = batch_of([0.7, -0.4], [0, 0], 2)
    d, rho = GAIN, GAIN.exp()
    epg, pepg, par = (slopes(EvidenceGradient(form=form), d, batch)[1] for form in ("epg", "pepg", "par"))  # type: ignore[arg-type]
    torch.testing.assert_close(par, pepg, rtol=1e-14, atol=0)
    torch.testing.assert_close(pepg, epg + rho * d / 4)
    torch.testing.assert_close(epg, -rho * batch.advantage / 4)
    plain = slopes(EvidenceGradient(form="epg", ratio=False), d, batch)[1]
    score = slopes(ScoreFunction(), d, batch)[1]
    assert torch.equal(plain, score)
    none = torch.zeros(2, 2).double()
    for form in ("epg", "pepg", "par"):
        torch.testing.assert_close(slopes(EvidenceGradient(form=form), none, batch)[1], score)  # type: ignore[arg-type]
    centred = slopes(CentredReward(0.3), none, batch_of([0.5, -0.5], [0, 0], 2))[1]
    torch.testing.assert_close(centred, slopes(ScoreFunction(), none, batch_of([0.5, -0.5], [0, 0], 2))[1])


def test_centred_rewards_of_two_samples_are_a_quarter_of_rebel() -> None:
    beta, advantage = 0.7, [1.5, -0.8]
    loss, slope = slopes(CentredReward(beta), GAIN, batch_of(advantage, [0, 0], 2))
    logp = GAIN.clone().requires_grad_()
    wanted = (advantage[0] - advantage[1]) / 10
    rebel = ((beta * (logp[0] - logp[1]) - wanted) ** 2).mean()
    assert loss == pytest.approx(5 / beta * float(rebel) / 4)
    torch.testing.assert_close(slope, 5 / beta / 4 * torch.autograd.grad(rebel, logp)[0])
    flat = slopes(CentredReward(beta), torch.zeros(2, 2).double(), batch_of([2, 2], [0, 0], 2))
    assert flat[0] == 0 and not flat[1].any()


def test_prompts_are_not_centred_together() -> None:
    """Flow-Factory's pool is the batch: what a prompt's samples all gained then pulls at another prompt's."""
    gain = torch.tensor([[0.5], [0.5], [0.0], [0.0]]).double()
    batch = batch_of([1, -1, 1, -1], [0, 0, 1, 1])
    own, mixed = (slopes(CentredReward(1.0, pool=pool), gain, batch)[1] for pool in ("group", "batch"))  # type: ignore[arg-type]
    torch.testing.assert_close(own[:2], own[2:])
    assert float((mixed[0] - mixed[2]).abs()) > 0.1


def test_the_logit_of_d3po_is_bounded() -> None:
    """beta log(1.1 / .9) = .0201: the loss stays within .683 and .703, and outside the band nothing pulls back."""
    part, batch = composition.build("d3po").objective, batch_of(*PAIR)
    losses = []
    for far in (-50.0, 0.0, 50.0):
        loss, slope = slopes(part, torch.tensor([[far], [-far]]).double(), batch)
        losses.append(loss)
        assert bool((slope != 0).all()) == (far == 0)
    bound = 0.1 * math.log(1.1 / 0.9)
    assert bound == pytest.approx(0.0201, abs=5e-5)
    wanted = [math.log1p(math.exp(bound)), math.log(2), math.log1p(math.exp(-bound))]
    assert losses == pytest.approx(wanted) and losses[2] > 0.683 and losses[0] < 0.7033
    assert 10.0 * math.log(1.1 / 0.9) == pytest.approx(2.007, abs=1e-3)  # SPO's beta
    free = slopes(DecisionPair(0.1), torch.tensor([[-50.0], [50.0]]).double(), batch)
    assert free[0] == pytest.approx(math.log1p(math.exp(10))) and bool((free[1] != 0).all())


@pytest.mark.parametrize(("beta", "factor"), [(0.001, 0.9995), (1.0, 0.5), (2.0, 0.0), (5000.0, -2499.0)])
def test_dspo_unlearns_winners_at_the_beta_of_dpo(beta: float, factor: float) -> None:
    """At the reference the gradient is (1 - beta / 2) times plain training on winners: hence the guard."""
    part = ScorePreference(0.001)
    if beta >= 2:
        with pytest.raises(ValueError, match="unlearns them; give a value between 0 and 2"):
            ScorePreference(beta)
    object.__setattr__(part, "beta", beta)
    theta = torch.tensor([0.4], dtype=torch.float64, requires_grad=True)
    base = {"noise": torch.tensor([[0.1], [1.3]]).double(), "said": torch.tensor([[0.9], [0.2]]).double()}
    said = base["said"] + theta  # noise predictions, whose reference has the same theta now
    logp = -((said - base["noise"]) ** 2)
    apart = (said - said.detach()) ** 2 / 0.5**2  # of velocities at t = .5
    none = torch.zeros(2, 1).double()
    extra = {"log_ratio/reference": none, "prediction/reference": apart}
    loss = part(Likelihood(logp, extra), batch_of(*PAIR)).mean()
    (slope,) = torch.autograd.grad(loss, theta)
    plain = 2 * float(said[0] - base["noise"][0])
    assert float(slope) == pytest.approx(factor * plain, abs=1e-9)


def test_dspo_away_from_the_reference_by_hand() -> None:
    beta, t = 0.6, 0.25
    theta = torch.tensor([0.3, -0.2], dtype=torch.float64, requires_grad=True)
    noise, reference = torch.tensor([0.4, 1.1]).double(), torch.tensor([0.5, 0.7]).double()
    said = reference + theta
    error, before = (said - noise) ** 2, (reference - noise) ** 2
    inside = -beta / 2 * ((error[0] - before[0]) - (error[1] - before[1]))
    by_hand = ((said[0] - noise[0]) - beta * (1 - inside.sigmoid()) * (said[0] - reference[0])) ** 2
    extra = {
        "log_ratio/reference": (before - error).detach()[:, None],
        "prediction/reference": ((said - reference) ** 2 / (1 - t) ** 2)[:, None],
    }
    ours = ScorePreference(beta)(Likelihood(-error[:, None], extra), batch_of(*PAIR, t=t)).mean()
    assert float(ours) == pytest.approx(float(by_hand))
    first, second = (torch.autograd.grad(value, theta, retain_graph=True)[0] for value in (ours, by_hand))
    torch.testing.assert_close(first, second)


# ------------------------------------------------------------------------------------------- on a Gaussian, by hand
class Shifted:
    """The exact velocity of data N(.5, .25) plus ``theta`` everywhere; its reference has theta 0."""

    latent_shape, device = (1,), torch.device("cpu")

    def __init__(self, theta: float) -> None:
        self.theta = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.weights = PointerWeights({"theta": self.theta})
        self.weights.update_ema("reference", 0.0)
        with torch.no_grad():
            self.theta += theta

    @contextmanager
    def using(self, name: str):
        with self.weights.using(name):
            yield self

    def velocity(self, x: Tensor, t: Tensor, condition, *, guidance=None, cfg_grad="cond") -> Tensor:
        t = t[:, None]
        variance = (1 - t) ** 2 * 0.25 + t**2
        slope = (t - (1 - t) * 0.25) / variance
        return slope * (x - (1 - t) * 0.5) - 0.5 + self.theta


def test_diffusion_dpo_on_a_gaussian() -> None:
    """The margin of two samples 1.7 apart is ``2 theta t 1.7 / V_t``: 1.0200, 1.6320, 1.1298 at t = .2, .5, .9."""
    t = torch.tensor([0.2, 0.5, 0.9]).double().expand(2, 3)
    clean = torch.tensor([1.1, -0.6]).double()[:, None, None].expand(2, 3, 1)
    noise = torch.tensor([0.3, -1.2, 0.8]).double()[None, :, None].expand(2, 3, 1)
    rows, beta = matching_rows(clean, noise, t), 4.0
    index = TinyCondition(torch.zeros(2).long())
    live = Matching(draws=3)(Shifted(0.3), rows, index, ("reference",))  # type: ignore[arg-type]
    gain = live.extra["log_ratio/reference"]
    margin = gain[1] - gain[0]
    assert margin.tolist() == pytest.approx([1.0200, 1.6320, 1.1298], abs=5e-5)
    batch = replace(batch_of(*PAIR, decisions=3), probe=rows)
    loss = DecisionPair(beta / 2)(live, batch)
    variance = (1 - t) ** 2 * 0.25 + t**2
    torch.testing.assert_close(loss, torch.nn.functional.softplus(beta * 0.3 * t * 1.7 / variance))


def test_shared_draws_make_the_gradient_of_a_group_less_noisy() -> None:
    """Of the advantage-weighted error by theta, of eight samples of the Gaussian at four stratified times: the same
    mean, less spread, because the common noise falls out of a centred sum."""
    generator = torch.Generator().manual_seed(0)
    clean = 0.5 + 0.5 * torch.randn(1, 8, 1, generator=generator).double().expand(4000, 8, 4)
    advantage = clean - clean.mean(dim=1, keepdim=True)

    def slope(count: int) -> Tensor:
        t = (torch.arange(4) + torch.rand(4000, count, 4, generator=generator).double()) / 4
        noise = torch.randn(4000, count, 4, generator=generator).double()
        x = (1 - t) * clean + t * noise
        v = Shifted(0.0).velocity(x.reshape(-1, 1), t.expand_as(x).reshape(-1), None).reshape(x.shape).detach()
        return (advantage * 2 * (v - (noise - clean))).mean(dim=(1, 2))

    own, shared = slope(8), slope(1)
    assert float(own.mean()) == pytest.approx(float(shared.mean()), rel=0.03)
    assert float(shared.std()) < 0.8 * float(own.std())


# ------------------------------------------------------------------------------------------- through the network
def test_ram_with_the_live_velocity_is_weighted_matching_and_a_penalty() -> None:
    """``mean (v - sg(v_ref + m A (u - v)))^2`` has the gradient of the plain parts; with v_old in its place it has that
    of `LinearisedScore`."""
    for linearised in (False, True):
        it = trial("ram", linearised=linearised)
        v, rows, _ = velocities(it)
        reference, old = velocities(it, "reference")[0], velocities(it, "old")[0]
        at = (old if linearised else v).detach()
        target = reference + 100 * it.advantage[:, None, None] * ((rows.noise - rows.clean) - at)
        wanted = it.gradient_of(((v - target.detach()).double() ** 2).mean() / 100)
        assert alike(it.gradient(), wanted)
        assert not alike(trial("ram", linearised=not linearised).gradient(), wanted, 1e-2)


@pytest.mark.parametrize("strength", [1.0, 0.2])
def test_diffusion_nft_with_equal_weights_is_ram_anchored_at_old(strength: float) -> None:
    """``m A = (2 r - 1) / b`` with the old policy as reference; the factor is ``a b t^2``."""
    times = UniformTimes(low=0.4, high=0.4)
    it = trial("diffusion_nft", strength=strength, reference=0.0)
    contrasted = ContrastedMatching(draws=1, times=times, strength=strength, adaptive=False)
    it.algorithm = replace(it.algorithm, estimator=contrasted, objective=ImplicitPair(strength, 5.0))
    nft = it.gradient()
    good = (it.advantage / 5).clamp(-1, 1) / 2 + 0.5
    it.advantage = (2 * good - 1) / strength
    plain = Matching(draws=1, times=times)
    anchored = (Prediction(1.0, "old"),)
    it.algorithm = replace(it.algorithm, estimator=plain, objective=LinearisedScore(), regularizers=anchored)
    assert alike(nft, 5 * strength * 0.4**2 * it.gradient(), 1e-4)


def velocities(it, weights: str = "live"):
    """``(v, probe, x_t)`` at the probe's points under a weight set."""
    rows = it.probe()
    t = rows.t[..., None]
    x = ((1 - t) * rows.clean + t * rows.noise).float()
    index = it.rollout.condition.index.repeat_interleave(rows.t.shape[1])
    with it.policy.using(weights):
        v = it.policy.guided(x.flatten(0, 1), rows.t.flatten(), index, 1)
    return v.reshape(x.shape), rows, x


def test_a_norm_guard_acts_on_longer_velocities_alone() -> None:
    """Value and gradient 0 up to the reference's length (and margin), beyond along v."""
    v = torch.tensor([[3.0, 4.0], [0.3, 0.4]]).double().requires_grad_()
    growth = (v.norm(dim=1) / 2 - 1)[:, None]
    batch = batch_of([1, -1], [0, 0])
    penalty = NormGuard()(Likelihood(growth, {"norm_growth/reference": growth}), batch)
    assert penalty[:, 0].tolist() == pytest.approx([1.5**2, 0])
    (slope,) = torch.autograd.grad(penalty.sum(), v)
    assert torch.equal(slope[1], torch.zeros(2).double())
    assert float(torch.nn.functional.cosine_similarity(slope[0], v[0].detach(), dim=0)) == pytest.approx(1)
    kept = NormGuard(margin=1.5)(Likelihood(growth, {"norm_growth/reference": growth}), batch)
    assert not kept.any()
    it = trial("diffusion_nft", regularizers=[{"use": "Prediction"}])
    it.algorithm = replace(it.algorithm, estimator=Matching(), objective=ScoreFunction())
    it.gradient()
    v = velocities(it)[0]
    before = velocities(it, "reference")[0]
    growth = v.norm(dim=2) / before.norm(dim=2) - 1
    assert it.metrics["norm_growth/reference"] == pytest.approx(float(growth.mean()), rel=1e-3)


# ---------------------------------------------------------------------------------------------- finite differences
@pytest.mark.parametrize(("gamma", "noise"), [(0.0025, 0.045), (0.2, 0.3729), (0.5, 0.5354)])
def test_churn_is_coefficients_preserving_sampling(gamma: float, noise: float) -> None:
    """Noise scaled to ``1 / (1 + gamma)`` and filled up with ``sqrt(1 - 1 / (1 + gamma)^2)`` of a new one."""
    made = composition.build({"use": "fdfo", "churn": gamma}).sampler
    assert made.dynamics.noise == pytest.approx(noise, abs=1e-4) and made.own_noise == made.dynamics.noise
    t, t_next = torch.tensor([0.8]).double(), torch.tensor([0.5]).double()
    a, b, s = CPS(made.dynamics.noise).coefficients(t, t_next)
    kept = 1 / (1 + gamma)
    assert float(s) == pytest.approx(0.5 * math.sqrt(1 - kept**2))
    x, v = 0.3, -1.1
    churned = 0.5 * (x - 0.8 * v) + 0.5 * kept * (x + 0.2 * v)
    assert float(a) * x + float(b) * v == pytest.approx(churned)
    with pytest.raises(ValueError, match="both samples of a pair the same"):
        composition.build({"use": "fdfo", "churn": 0.0})


def test_a_pair_starts_from_one_noise_with_a_little_of_its_own() -> None:
    policy = TinyFlow(torch.randn(3, 4000, generator=torch.Generator().manual_seed(0)))
    group = torch.tensor([0, 0, 1, 1])
    draw = Draw.of(seeds(0, "s", count=4), group, 0, 5)
    shared = FlowSampler(steps=1, share_noise=True)._noise(policy, draw)  # type: ignore[arg-type]
    churned = FlowSampler(steps=1, share_noise=True, own_noise=0.2)._noise(policy, draw)  # type: ignore[arg-type]
    assert torch.equal(shared[0], shared[1]) and not torch.equal(churned[0], churned[1])
    angle = 0.2 * math.pi / 2
    assert float((churned * shared).mean()) == pytest.approx(math.cos(angle), abs=0.03)
    assert float((churned[0] * churned[1]).mean()) == pytest.approx(math.cos(angle) ** 2, abs=0.05)
    assert float(churned.square().mean()) == pytest.approx(1, abs=0.05)


def test_the_direction_of_a_pair_and_its_gradient_at_the_old_policy() -> None:
    """Half the difference over its mean square; there the ratio is 1 and the gradient ``2 dR d / D`` of the velocity,
    at every state; the loss is least at ``1 + width sign(dR)``."""
    final = torch.tensor([[1.0, 2.0], [0.0, 4.0]])
    half = (final[0] - final[1]).double() / 2
    d = half / (half.square().mean() + 1e-6)
    torch.testing.assert_close(directions(final, torch.tensor([3, 3])), torch.stack([d, -d]).float())
    it = trial("fdfo", steps=5)
    rows = it.probe()
    assert rows.t.shape == (18, 5) and torch.equal(rows.x[:, 0], it.rollout.trace.states[:, 0])
    live = it.algorithm.estimator(it.policy, rows, it.rollout.condition)
    index = it.rollout.condition.index.repeat_interleave(5)

    def at_states(weights: str) -> Tensor:
        with it.policy.using(weights):
            return it.policy.guided(rows.x.flatten(0, 1), rows.t.flatten(), index, 1).reshape(rows.x.shape)

    v, old = at_states("live"), at_states("old")
    target = old - rows.direction
    by_hand = -((v - target).double() ** 2).mean(dim=2) + (rows.direction.double() ** 2).mean(dim=2)
    torch.testing.assert_close(live.logp, by_hand, rtol=1e-3, atol=5e-4)  # large squares, subtracted in float32
    with it.policy.using("old"):
        assert not it.algorithm.estimator(it.policy, rows, it.rollout.condition).logp.any()
    velocity, d = old.detach().double().requires_grad_(), rows.direction.double()
    logp = -((velocity - (old.detach().double() - d)) ** 2).mean(dim=2) + (d**2).mean(dim=2)
    batch = Batch(
        it.advantage[:, None].expand(18, 5), Likelihood(torch.zeros(18, 5)), torch.ones(18, 5), it.rollout.group, rows
    )
    (slope,) = torch.autograd.grad(Quadratic(0.03)(Likelihood(logp), batch).sum(), velocity)
    wanted = 2 * it.advantage[:, None, None] * rows.direction / rows.direction.shape[2]
    torch.testing.assert_close(slope, wanted.double(), rtol=1e-4, atol=1e-6)
    for sign in (1.0, -1.0):
        around = torch.log1p(torch.tensor([[0.03 * sign], [0.03 * sign + 1e-3], [0.03 * sign - 1e-3]]).double())
        losses = Quadratic(0.03)(Likelihood(around), batch_of([sign] * 3, [0] * 3))[:, 0]
        assert losses.argmin() == 0


def test_finite_differences_of_a_linear_reward_point_along_its_gradient() -> None:
    """E[dR d] is parallel to w for ``R = w . x``."""
    generator = torch.Generator().manual_seed(2)
    w = torch.tensor([1.0, -2.0, 0.5, 0.0] * 8)
    final = torch.randn(60000, 32, generator=generator)
    group = torch.arange(30000).repeat_interleave(2)
    rewards = (final @ w).reshape(-1, 2)
    difference = (rewards - rewards.mean(dim=1, keepdim=True)).reshape(-1)
    mean = (difference[:, None] * directions(final, group)).mean(dim=0)
    assert float(torch.nn.functional.cosine_similarity(mean, w, dim=0)) > 0.999


def test_directions_need_recorded_states() -> None:
    with pytest.raises(ValueError, match="records no state"):
        Directions().decisions(0)
    made = rollout_of(None, POINTS)
    with pytest.raises(ValueError, match="give the sampler a window"):
        Directions().probe(made, moved_flow(), made.seeds)


def test_the_direction_of_a_pair_is_the_covariance_of_reward_and_sample() -> None:
    """``Cov (ddof 0) = (R1 - R2)(x1 - x2) / 4``: DiffusionART's direction is FDFO's up to scale, for both samples."""
    final = torch.tensor([[1.0, 2.0, -1.0], [0.5, 4.0, 0.0]])
    rewards = torch.tensor([0.9, 0.2])
    covariance = ((rewards - rewards.mean())[:, None] * (final - final.mean(dim=0))).mean(dim=0)
    torch.testing.assert_close(covariance, (0.9 - 0.2) * (final[0] - final[1]) / 4)
    for length in ("inverse", "unit"):
        d = directions(final, torch.tensor([0, 0]), length)  # type: ignore[arg-type]
        for own, gap in zip(d, (rewards - rewards.mean()).tolist(), strict=True):
            assert float(torch.nn.functional.cosine_similarity(own * gap, covariance, dim=0)) == pytest.approx(1)
        if length == "unit":
            assert d.square().mean(dim=1).tolist() == pytest.approx([1, 1], abs=1e-5)


def test_an_anchor_turns_a_rejected_sample_into_a_good_one() -> None:
    """Where the first sample fits worse than at the reference; with s = 1 it is Diffusion-DPO, and a sample paired with
    itself has no gradient."""
    batch, part = batch_of(*PAIR), DecisionPair(2.0, anchor=True)
    fits, worse = torch.tensor([[0.2], [0.1]]).double(), torch.tensor([[-0.2], [0.1]]).double()
    assert torch.equal(slopes(part, fits, batch)[1], slopes(DecisionPair(2.0), fits, batch)[1])
    assert slopes(part, fits, batch)[1][1] > 0 > slopes(part, worse, batch)[1][1]
    assert slopes(part, worse, batch)[0] == pytest.approx(math.log1p(math.exp(-2 * (-0.2 + 0.1))))
    same = slopes(part, torch.full((2, 1), 0.3).double(), batch)[1]
    assert float(same.sum()) == pytest.approx(0)


def test_training_times_of_stable_diffusion() -> None:
    """Even indices are not even times: the training index of a port that draws t evenly is another method."""
    times = TrainingTimes().times()
    assert times[[0, 249, 499, 749, 999]].tolist() == pytest.approx([0.028, 0.409, 0.617, 0.803, 0.936], abs=1.5e-3)
    quantiles = times.quantile(torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95]).double())
    assert quantiles.tolist() == pytest.approx([0.184, 0.410, 0.618, 0.803, 0.916], abs=1.5e-3)
    assert float(((1 - times) ** 2).mean()) == pytest.approx(0.22, abs=5e-3)
    turbo = TrainingTimes(indices=(249, 499, 749, 999))
    drawn = turbo(3, times, seeds(0, "t", count=200))
    assert sorted(drawn.unique().tolist()) == pytest.approx(turbo.times().tolist())
    assert ((1 - turbo.times()) ** 2).tolist() == pytest.approx([0.349, 0.146, 0.039, 0.004], abs=1.5e-3)
    assert TrainingTimes().share_below(0.02, times) == 0 and TrainingTimes().share_below(1.0, times) == 1
    with pytest.raises(ValueError, match="from 0 to 999"):
        TrainingTimes(indices=(1000,))


def test_a_pair_of_siblings_starts_from_one_state() -> None:
    """Of each group the state whose samples differ most; close ones are left out."""
    nodes = torch.tensor([[0, 0], [0, 1], [2, 2], [2, 3], [0, 0], [0, 1], [0, 2], [0, 3]])
    group = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    rewards = torch.tensor([0.9, 0.8, 0.1, 0.7, 0.5, 0.5, 0.5, 0.5]).double()[:, None]
    scores = Scores(rewards, torch.ones(1).double(), ("r",), group, group, group >= 0, nodes=nodes)
    assert SiblingPair()(scores, {}).tolist() == [0, 0, -1, 1, 0, 0, 0, 0]
    gap = 1 / (1 + math.exp(-0.6)) * 2 - 1
    assert SiblingPair(gap - 1e-6)(scores, {}).any() and not SiblingPair(gap + 1e-6)(scores, {}).any()


def test_data_are_preferred_whatever_the_rewards() -> None:
    group = torch.tensor([0, 0])
    known = {"source": torch.tensor([DATA, POLICY])}
    rewards = torch.tensor([[0.0], [1.0]]).double()
    scores = Scores(rewards, torch.ones(1).double(), ("r",), group, group, torch.ones(2).bool(), **known)
    assert BySource()(scores, {}).tolist() == [1, -1]
    with pytest.raises(ValueError, match="take a sampler that mixes them"):
        BySource()(replace(scores, source=None), {})
    with pytest.raises(ValueError, match="a FlowSampler without the window LastSteps"):
        Mixed(sampler=FlowSampler(window=LastSteps()))


# ------------------------------------------------------------------------------------------------- smaller options
def test_soft_clipping_weights_times_and_decays() -> None:
    ids = torch.zeros(4).long()
    scores = Scores(
        torch.tensor([[0.0], [1.0], [2.0], [9.0]]).double(), torch.ones(1).double(), ("r",), ids, ids, ids == 0
    )
    soft = GroupCentred(scale="none", clip=2.0, soft=True)(scores, {})
    assert soft.tolist() == pytest.approx([2 * math.tanh(a / 2) for a in (-3.0, -2.0, -1.0, 6.0)])
    assert ExponentialWeight(2.0, normalised=False)(scores, {}).tolist() == pytest.approx(
        [math.exp(r / 2) for r in (0, 1, 2, 9)]
    )
    times = UniformTimes(low=0.1, tilt=1.0)
    drawn = times(1, torch.linspace(1, 0, 5).double(), seeds(0, "t", count=4000))
    assert float(drawn.mean()) == pytest.approx(0.1 + 0.9 * 2 / 3, abs=0.01)
    assert times.share_below(0.4, drawn) == pytest.approx(float((drawn < 0.4).double().mean()), abs=0.02)
    with pytest.raises(ValueError, match="use 0 for an even one"):
        UniformTimes(tilt=-1)
    assert [Ramp(0.005, 0.999, base=0.25)(n) for n in (0, 50, 1000)] == pytest.approx([0.25, 0.5, 0.999])
