"""Methods on random times: AWM, DiffusionNFT, FPO and FPO++."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from flowrl import composition
from flowrl.estimators.matching import MatchingRows
from flowrl.estimators.times import GridTimes
from flowrl.math.random import seeds
from flowrl.parts.objectives import AsymmetricClip, ClippedMean
from flowrl.types import Batch, Likelihood
from tests.contract.toys import matching_rows
from tests.fidelity import cell, release
from tests.fidelity.bench import Trial, alike, released_advantage, sd3_times, trial

release("awm", "scxue/advantage_weighted_matching be51372, 27 Mar 2026")
release("diffusion_nft", "NVlabs/DiffusionNFT 24af555, 22 Sep 2025")
release("fpo", "akanazawa/fpo 418c255, 12 Jan 2026 (playground)")
release("fpo_pp", "none by its authors; arXiv:2602.02481, the project's page and typoverflow/flow-rl")
release("rwr, raft", "none for flow models; the papers' weights")


def velocities(it: Trial, weights: str = "live") -> tuple[Tensor, MatchingRows, Tensor]:
    """``(v, probe, x_t)``: the unguided velocity [N, M, ...] at the probe's points under a weight set."""
    rows = it.probe()
    t = rows.t[..., None]
    x = ((1 - t) * rows.clean + t * rows.noise).float()
    index = it.rollout.condition.index.repeat_interleave(rows.t.shape[1])
    with it.policy.using(weights):
        v = it.policy.guided(x.flatten(0, 1), rows.t.flatten(), index, 1)
    return v.reshape(x.shape), rows, x


@cell(
    "awm",
    "loss, gradient",
    "equal",
    "ratio of the generalised Huber link of the matching error, penalties to reference and slow copy, advantage cut "
    "at 5 and scaled to 1, flat groups kept in the mean",
)
def test_awm_gradient() -> None:
    it = trial("awm")
    v, rows, _ = velocities(it)
    q = ((v - (rows.noise - rows.clean)).double() ** 2).mean(dim=2)
    log_prob = -((q + 1e-10) ** 0.25 - 1e-10**0.25) * rows.t / 0.25
    ratio = (log_prob - log_prob.detach()).exp()
    advantage = (released_advantage(it.scores.rewards[:, 0], it.scores.group, whole=True).clamp(-5, 5) / 5)[:, None]
    loss = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(0, 2)).mean()
    for weight, name in ((1e-3, "reference"), (1.0, "ema_policy")):
        loss = loss + weight * ((v - velocities(it, name)[0]) ** 2).mean()
    assert alike(it.gradient(), it.gradient_of(loss))
    assert it.metrics["prediction/ema_policy"] > 0


@cell(
    "awm",
    "defaults",
    "equal",
    "six times of a 14-step grid from {1}, {2, 3}, ..., {10, 11}, the GenEval and OCR recipes' `discrete_wo_init`; "
    "power 0.25, penalties 0.001 and 1, decay min(0.3, 0.001 n), no guidance, clip 1",
)
def test_awm_settings() -> None:
    made = composition.build("awm")
    assert (made.sampler.steps, made.estimator.draws, made.estimator.power, made.sampler.guidance) == (14, 6, 0.25, 1.0)
    assert {term.to: term.weight for term in made.regularizers} == {"reference": 1e-3, "ema_policy": 1.0}
    assert [made.ema_weights[0].decay(n) for n in (0, 100, 300, 900)] == [0.0, 0.1, 0.3, 0.3]
    assert _drawn(made.estimator.times, 14, 6) == _released_strata(14, 6, first=1)
    assert _released_strata(14, 6, first=1) == [{1}, {2, 3}, {4, 5}, {6, 7}, {8, 9}, {10, 11}]


@cell(
    "awm", "defaults", "option", "`skip: 0, reference: 0.0001` for PickScore, whose `discrete` times include pure noise"
)
def test_awm_pickscore() -> None:
    made = composition.build({"use": "awm", "skip": 0, "reference": 1e-4})
    assert _drawn(made.estimator.times, 14, 6) == _released_strata(14, 6, first=0)


def _drawn(times: GridTimes, steps: int, draws: int) -> list[set[int]]:
    """The indices that each draw takes, over many samples."""
    grid = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    index = ((1 - times(draws, grid, seeds(0, "strata", count=400))) * steps).round().long()
    return [set(column.tolist()) for column in index.T]


def _released_strata(steps: int, draws: int, first: int) -> list[set[int]]:
    """train_sd3_awm.py: whole parts of evenly spaced bounds, one draw between each two."""
    bounds = torch.linspace(first, int(steps * 0.9), steps=draws + 1)
    low, high = bounds[:-1].long(), bounds[1:].long()
    u = torch.rand(500, draws, generator=torch.Generator().manual_seed(0))
    return [set(column.tolist()) for column in (low + (u * (high - low)).long()).T]


@cell(
    "awm",
    "defaults",
    "deviation",
    "samples are made by Euler steps",
    reason="the release uses SA-Solver with a grid of its own (tau 0.4, or 0 for PickScore); no likelihood of it is "
    "needed, so that any sampler will do, and none of its order is built",
)
def test_awm_sampler() -> None:
    it = trial("awm")
    assert it.algorithm.sampler.solver == "euler" and it.rollout.trace is None


@cell(
    "diffusion_nft",
    "loss, gradient",
    "equal",
    "implicit positive and negative policy around an old one that differs from the live one, for b of 1 and 0.1, "
    "and the penalty to the reference; flat groups kept in the mean",
)
@pytest.mark.parametrize("strength", [1.0, 0.1])
def test_nft_gradient(strength: float) -> None:
    it = trial("diffusion_nft", strength=strength)
    v, rows, x = velocities(it)
    old, reference = velocities(it, "old")[0], velocities(it, "reference")[0]
    advantage = released_advantage(it.scores.rewards[:, 0], it.scores.group, whole=True)
    r = ((advantage / 5).clamp(-1, 1) / 2 + 0.5)[:, None]
    t, parts = rows.t[..., None], []
    for sign in (1, -1):
        error = (x - t * (old + sign * strength * (v - old))) - rows.clean
        weight = error.detach().abs().double().mean(dim=2).clamp(min=1e-5)
        parts.append((error.double() ** 2).mean(dim=2) / weight)
    loss = ((r * parts[0] + (1 - r) * parts[1]) / strength).mean() * 5 + 1e-4 * ((v - reference) ** 2).mean()
    assert alike(it.gradient(), it.gradient_of(loss))


@cell(
    "diffusion_nft",
    "defaults",
    "equal",
    "ten DPM-Solver++ steps of the old policy without guidance, nine of all ten times at random, b 1, reference 1e-4, "
    "old policy's decay min(0.001 n, 0.5)",
)
def test_nft_settings() -> None:
    made = composition.build("diffusion_nft")
    assert (made.sampler.steps, made.sampler.solver, made.sampler.guidance, made.behaviour) == (
        10,
        "dpmpp_2m",
        1.0,
        "old",
    )
    times = made.estimator.times(made.estimator.draws, sd3_times(10), seeds(0, "nft", count=300))
    assert all(len(set(row)) == 9 for row in times.tolist())  # int(10 * 0.99) of a random order of all ten
    assert set(times.flatten().tolist()) == set(sd3_times(10)[:-1].tolist())
    assert [made.ema_weights[0].decay(n) for n in (0, 100, 500, 900)] == [0.0, 0.1, 0.5, 0.5]


@cell(
    "diffusion_nft",
    "defaults",
    "option",
    "OCR: `strength: 0.1` and a decay that starts after 75 steps (`ema_weights`); several rewards: `steps: 25, "
    "draws: 24`",
)
def test_nft_ocr() -> None:
    ramp = {"use": "ramp", "slope": 0.0075, "most": 0.999, "start": 75}
    made = composition.build(
        {"use": "diffusion_nft", "strength": 0.1, "ema_weights": {"use": "ema", "name": "old", "decay": ramp}}
    )
    found = [made.ema_weights[0].decay(n) for n in (0, 75, 100, 209, 500)]
    assert found == pytest.approx([0, 0, 0.1875, 0.999, 0.999])
    assert made.estimator.strength == made.objective.strength == 0.1


def _small_batch(advantage: Tensor, old: Tensor) -> Batch:
    none = torch.zeros(old.shape)
    rows = matching_rows(none, none, none)
    weight = torch.full(old.shape, 1 / old.numel())
    return Batch(advantage, Likelihood(old), weight, torch.zeros(len(old)).long(), rows)


@cell(
    "fpo",
    "loss, gradient",
    "equal",
    "off policy: one ratio of the noise-prediction errors' mean per sample, PPO's clip on it",
)
def test_fpo_loss() -> None:
    generator = torch.Generator().manual_seed(2)
    error, old = (torch.rand(40, 8, generator=generator).double() * 0.4 for _ in range(2))
    advantage = torch.randn(40, 1, generator=generator).double().expand(40, 8)
    logp = (-error).requires_grad_()
    (ours,) = torch.autograd.grad(ClippedMean(0.05, 0.05)(Likelihood(logp), _small_batch(advantage, -old)).mean(), logp)
    error = error.requires_grad_()
    rho = (old.mean(dim=1, keepdim=True) - error.mean(dim=1, keepdim=True)).exp()
    gain = torch.minimum(rho * advantage[:, :1], rho.clamp(0.95, 1.05) * advantage[:, :1])
    (theirs,) = torch.autograd.grad(-gain.mean(), error)
    assert torch.allclose(ours, -theirs, atol=1e-15) and 0.1 < float((theirs == 0).double().mean()) < 0.9


@cell("fpo", "gradient", "equal", "on policy, the error of the predicted noise, through the network")
def test_fpo_gradient() -> None:
    it = trial("fpo")
    v, rows, x = velocities(it)
    noise = (x - rows.t[..., None] * v) + v  # the release predicts x0 first, then adds the velocity
    error = ((noise - rows.noise).double() ** 2).mean(dim=2).mean(dim=1)
    assert alike(it.gradient(), it.gradient_of((it.advantage * (error - error.detach())).mean()), 1e-4)


@cell("fpo", "defaults", "equal", "clip 0.05, eight draws, ten Euler steps, losses averaged before the exponential")
def test_fpo_settings() -> None:
    made = composition.build("fpo")
    assert (made.objective.clip_range, made.estimator.draws, made.sampler.steps) == ((0.05, 0.05), 8, 10)
    assert made.estimator.weight == "noise"
    assert composition.build({"use": "fpo", "weight": "t2"}).estimator.weight == "t2"


@cell(
    "fpo",
    "defaults",
    "deviation",
    "times below 0.02 are not drawn",
    reason="the release's grid ends at 0.1; SD3's last time is 0.0089, where the error tells nothing of the policy",
)
def test_fpo_leaves_out_the_degenerate_time() -> None:
    times = composition.build("fpo").estimator.times
    assert times.usable(sd3_times(10)).tolist() == sd3_times(10)[:9].tolist()
    released = torch.linspace(1, 0, 11, dtype=torch.float64)
    assert times.usable(released).tolist() == released[:10].tolist()  # all of the release's own grid


@cell(
    "fpo",
    "data",
    "deviation",
    "group advantage; the times of a sample are spread over the grid",
    reason="an image is one action with one reward, for which the release has no case; it draws times independently",
)
def test_fpo_advantage() -> None:
    assert type(composition.build("fpo").advantage).__name__ == "GroupCentred"


@cell(
    "fpo_pp",
    "loss, gradient",
    "equal",
    "a ratio per draw, clipped for good samples; for bad ones rho A - |A| (rho - 1)^2 / (2 eps), by finite differences",
)
def test_fpo_pp_loss() -> None:
    def gain(rho: float, a: float, eps: float) -> float:
        if a >= 0:
            return min(rho * a, min(max(rho, 1 - eps), 1 + eps) * a)
        return rho * a - abs(a) * (rho - 1) ** 2 / (2 * eps)

    # the slope of the gain in rho, as the page states it: A at 1, nothing at 1 - eps, back beyond; never flat far above
    for rho, slope in ((1.0, -1.0), (0.95, 0.0), (0.9, 1.0), (1.2, -5.0)):
        assert (gain(rho + 1e-6, -1, 0.05) - gain(rho - 1e-6, -1, 0.05)) / 2e-6 == pytest.approx(slope, abs=1e-6)
    generator = torch.Generator().manual_seed(4)
    logp = (0.03 * torch.randn(30, 4, generator=generator).double()).requires_grad_()
    advantage = torch.randn(30, 1, generator=generator).double().expand(30, 4)
    old = torch.zeros(30, 4).double()
    loss = AsymmetricClip(0.01)(Likelihood(logp), _small_batch(advantage, old))
    (slopes,) = torch.autograd.grad(loss.sum(), logp)
    for d, a, value, slope in zip(logp.flatten().tolist(), advantage.flatten().tolist(), loss.flatten().tolist(),
                                  slopes.flatten().tolist(), strict=True):  # fmt: skip
        assert value == pytest.approx(-gain(math.exp(d), a, 0.01), abs=1e-12)
        there = [-gain(math.exp(d + h), a, 0.01) for h in (1e-7, -1e-7)]
        assert slope == pytest.approx((there[0] - there[1]) / 2e-7, abs=1e-5)


@cell(
    "fpo_pp",
    "defaults",
    "deviation",
    "clip 0.01, weight t and the mean over the latent's elements; eight draws",
    reason="the sources' settings are for control: clip 0.05, the plain velocity error (`weight: uniform`), its sum "
    "over the square root of the size; ours were chosen on images",
)
def test_fpo_pp_settings() -> None:
    made = composition.build("fpo_pp")
    assert made.objective == AsymmetricClip(0.01) and made.estimator.weight == "t" and made.estimator.draws == 8
    assert not made.objective.coupled
    assert composition.build({"use": "fpo_pp", "weight": "uniform"}).estimator.weight == "uniform"


@cell("rwr", "loss, gradient", "equal", "exp(r / .2) with mean 1 in the group, times the matching error of own samples")
def test_rwr_gradient() -> None:
    it = trial("rwr")
    weight = torch.zeros_like(it.scores.rewards[:, 0])
    for key in it.scores.group.unique():
        rows = it.scores.group == key
        weight[rows] = torch.softmax(it.scores.rewards[rows, 0] / 0.2, dim=0) * rows.sum()
    assert alike(it.gradient(), it.gradient_of((weight[:, None] * _errors(it)).mean()))


@cell(
    "raft",
    "loss, gradient",
    "equal",
    "the matching error of the best sample of each group; groups without one left out",
)
def test_raft_gradient() -> None:
    it = trial("raft")
    rewards, group = it.scores.rewards[:, 0], it.scores.group
    best = torch.zeros_like(rewards)
    kept = torch.zeros_like(rewards, dtype=torch.bool)
    for key in group.unique():
        rows = group == key
        if rewards[rows].std() > 0:
            kept |= rows
            best[rows] = (rewards[rows] == rewards[rows].max()).to(best)
    assert alike(it.gradient(), it.gradient_of((best[kept, None] * _errors(it)[kept]).mean()))


def _errors(it: Trial) -> Tensor:
    """[N, M]: the mean squared distance of the velocity to noise - clean."""
    v, rows, _ = velocities(it)
    return ((v - (rows.noise - rows.clean)).double() ** 2).mean(dim=2)


@cell(
    "rwr, raft",
    "defaults",
    "deviation",
    "four logit-normal times of 10-step samples; rwr's temperature is 0.2",
    reason="no code of the authors trains flow models, and the papers give no numbers for pictures",
)
def test_rwr_and_raft_settings() -> None:
    for name in ("rwr", "raft"):
        made = composition.build(name)
        assert (made.sampler.steps, made.estimator.draws, made.estimator.weight) == (10, 4, "uniform")
        assert type(made.estimator.times).__name__ == "LogitNormalTimes" and made.regularizers == ()
    assert composition.build("rwr").advantage.temperature == 0.2
