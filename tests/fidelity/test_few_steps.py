"""DMD2 against its release, written out for the noise prediction of a DDPM model; TDM-R1 against its port."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from flowrl import composition
from flowrl.companions import learned_by
from flowrl.estimators.distribution import STEP_STREAM
from flowrl.math.random import normal
from flowrl.step import UpdateSettings, improve
from tests.contract.toys import Recorder, disturb
from tests.fidelity import cell, release
from tests.fidelity.bench import DDPMFlow, alike, trial

release("dmd2", "tianweiy/DMD2 8d8fa55, 5 Mar 2025")
release("tdm_r1", "no code of the authors; its port, X-GenGroup/Flow-Factory 1593258")


def noised(clean: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``add_noise`` of a DDPM scheduler: the state, and the square roots of a and 1 - a [N, 1]."""
    signal, sigma = ((value / ((1 - t) ** 2 + t**2).sqrt())[:, None].float() for value in (1 - t, t))
    return signal * clean + sigma * noise, signal, sigma


def noise_of(it: Any, state: Tensor, signal: Tensor, sigma: Tensor, t: Tensor, scale: float) -> Tensor:
    """The network's prediction of the noise at a state of the variance-preserving process."""
    x = state / (signal + sigma)
    return x + (1 - t)[:, None].float() * it.policy.guided(x, t, it.rollout.condition.index, scale)


def trained() -> Any:
    """A trial whose fake score is neither the live nor the real one."""
    it: Any = trial("dmd2", flat=False, flow=DDPMFlow, guidance=2.0)
    disturb(it.policy, 0.1)
    return it


@cell(
    "dmd2", "loss, gradient", "equal", "half the square of x0 less itself moved by both scores' difference over a size"
)
def test_dmd2_gradient() -> None:
    it = trained()
    rows, times = it.probe(), it.rollout.trace.t[0]
    step = torch.tensor([int((times == t).nonzero()) for t in rows.t[:, 0]])
    assert set(step.tolist()) == {0, 1, 2, 3}
    x, t, s = it.rollout.trace.states[torch.arange(len(step)), step], rows.t[:, 0], rows.noised_to[:, 0]
    noise = normal(rows.seeds[:, 0], (x.shape[1],), stream=STEP_STREAM)
    image = x - t[:, None].float() * it.policy.guided(x, t, it.rollout.condition.index, 1.0)
    with torch.no_grad():
        state, signal, sigma = noised(image, noise, s)
        away = {}
        for name, scale in (("reference", 2.0), ("fake", 1.0)):
            with it.policy.using(name):
                predicted = (state - sigma * noise_of(it, state, signal, sigma, s, scale)) / signal
            away[name] = image - predicted
        moved = (away["reference"] - away["fake"]) / away["reference"].abs().mean(dim=1, keepdim=True)
    loss = 0.5 * torch.nn.functional.mse_loss(image, (image - moved).detach())
    assert alike(it.gradient(), it.gradient_of(loss), 1e-3)


@cell(
    "dmd2", "loss, gradient", "equal", "the fake score: error of the noise at what a step predicted, without guidance"
)
def test_dmd2_fake_score() -> None:
    it = trained()
    companion = it.algorithm.companions[0]
    rows = companion.estimator.probe(it.rollout, it.policy, it.draw.seeds)
    clean, noise, t = rows.clean[:, 0], rows.noise[:, 0], rows.t[:, 0]
    recorder = Recorder(it.policy.parameters())
    learned = (learned_by(companion, it.algorithm), it.rollout, it.scores, companion.advantage(it.scores, {}))
    with it.policy.weights.learning("fake"):
        improve(it.policy, recorder, *learned, UpdateSettings(max_grad_norm=1e9))
        state, signal, sigma = noised(clean, noise, t)
        error = (noise_of(it, state, signal, sigma, t, 1.0) - noise).square().mean()
        assert alike(recorder.gradients[0], it.gradient_of(error), 1e-3)


@cell("dmd2", "defaults", "equal", "four steps, noised again; indices 20 to 980; five fake updates; guidance 8, fake 1")
def test_dmd2_settings() -> None:
    made: Any = composition.build("dmd2")
    fake = made.companions[0]
    assert (made.sampler.steps, made.sampler.guidance, made.sampler.dynamics.noise) == (4, 1.0, 1.0)
    assert (made.estimator.guidance, made.estimator.real, made.estimator.times.start) == (8.0, "reference", 20)
    assert (fake.updates, fake.lr, fake.estimator.guidance, fake.estimator.weight) == (5, None, 1.0, "noise")
    every, some = fake.estimator.times.times(), made.estimator.times.times()
    assert len(every) == 1000 and torch.equal(some, every[20:981])


@cell("dmd2", "defaults", "option", "SD1.5 in one step, ten fake updates: `steps: 1`, `guidance: 1.75`, `updates: 10`")
def test_dmd2_options() -> None:
    made: Any = composition.build({"use": "dmd2", "steps": 1, "guidance": 1.75, "updates": 10, "real": "base"})
    assert (made.sampler.recorded, made.estimator.guidance, made.companions[0].updates) == (1, 1.75, 10)
    assert made.teachers == ("base",) == (made.estimator.real,)


@cell(
    "dmd2",
    "loss",
    "deviation",
    "no GAN loss",
    reason="it needs real pictures and a discriminator on the fake score's features; in the release its weight is 5e-3",
)
def test_dmd2_has_no_discriminator() -> None:
    made: Any = composition.build("dmd2")
    assert len(made.companions) == 1 and not made.regularizers


# -------------------------------------------------------------------------------------------------------------- TDM-R1
def tdm(**spec: Any) -> Any:
    """A trial whose weight sets all differ."""
    it: Any = trial("tdm_r1", flat=False, guidance=2.5, guided=0.6, **spec)
    for number, name in enumerate(("fake", "surrogate", "slow")):
        disturb(it.policy, 0.03 * (1 + number))
        it.policy.update_ema(name, 0.0)
    disturb(it.policy, 0.1)
    return it


def stage(it: Any, rows: Any, k: int) -> tuple[Tensor, ...]:
    """Of step k: state, its time, that of the next one, the time it is noised to, and the new noise."""
    trace = it.rollout.trace
    x, t, mid = trace.states[:, k], trace.t[:, k].double(), trace.t_next[:, k].double()
    return x, t, mid, rows.noised_to[:, k], rows.fresh[:, k]


def renoised(x: Tensor, v: Tensor, t: Tensor, mid: Tensor, s: Tensor, fresh: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The port's conditional renoising: clean latent, mixed noise and state."""
    t, mid, s = (value[:, None].float() for value in (t, mid, s))
    clean, noise = x - t * v, x + (1 - t) * v
    old = (1 - s) / (1 - mid) * mid
    mixed = (old * noise + (s**2 - old**2).sqrt() * fresh) / s
    return clean, mixed, (1 - s) * clean + s * mixed


def clean_by(it: Any, name: str, x: Tensor, s: Tensor, scale: float) -> Tensor:
    with it.policy.using(name):
        return x - s[:, None].float() * it.policy.guided(x, s, it.rollout.condition.index, scale)


@cell("tdm_r1", "loss, gradient", "equal", "three directions at every step, each over its own mean distance; squared")
def test_tdm_r1_generator() -> None:
    it = tdm()
    rows, loss = it.probe(), 0
    for k in range(4):
        x, t, mid, s, fresh = stage(it, rows, k)
        assert bool(((mid < s) & (s < t)).all())
        v = it.policy.guided(x, t, it.rollout.condition.index, 1.0)
        student = x - t[:, None].float() * v
        with torch.no_grad():
            clean, _, at = renoised(x, v, t, mid, s, fresh)
            real, fake = clean_by(it, "reference", at, s, 2.5), clean_by(it, "fake", at, s, 1.0)
            liked, plain = clean_by(it, "surrogate", at, s, 2.5), clean_by(it, "reference", at, s, 1.0)
        pulls = ((1.0, real - fake, real), (0.6 / 1.5, real - plain, real), (0.7, liked - real, liked))
        for weight, correction, towards in pulls:
            size = (clean - towards).abs().mean(dim=1, keepdim=True)
            delta = student - (clean + correction)
            loss = loss + weight * (0.5 * delta.square() / size).mean() / 4
    assert alike(it.gradient(), it.gradient_of(loss), 1e-3)


@cell("tdm_r1", "loss, gradient", "equal", "the fake score: clean error by min(SNR, 5) and a density ratio within 20")
def test_tdm_r1_fake_score() -> None:
    it = tdm(passes=1)
    fake, loss = it.algorithm.companions[0], 0
    rows = fake.estimator.probe(it.rollout, it.policy, it.draw.seeds)
    recorder = Recorder(it.policy.parameters())
    learned = (learned_by(fake, it.algorithm), it.rollout, it.scores, fake.advantage(it.scores, {}))
    with it.policy.weights.learning("fake"):
        improve(it.policy, recorder, *learned, UpdateSettings(max_grad_norm=1e9))
        for k in range(4):
            x, t, mid, s, fresh = stage(it, rows, k)
            v = (it.rollout.trace.states[:, k + 1] - x) / (mid - t)[:, None].float()
            clean, mixed, at = renoised(x, v, t, mid, s, fresh)
            found = at - s[:, None].float() * it.policy.guided(at, s, it.rollout.condition.index, 1.0)
            ratio = (0.5 * (fresh.square().mean(dim=1) - mixed.square().mean(dim=1))).exp()
            weight = ((1 - s) ** 2 / s**2).clamp(max=5) * ratio
            loss = loss + (weight * (found - clean).square().mean(dim=1)).mean() / 4
        assert alike(recorder.gradients[0], it.gradient_of(loss), 1e-3)


@cell("tdm_r1", "loss, gradient", "equal", "the surrogate: DGPO's loss of the states after each step, later ones more")
def test_tdm_r1_surrogate() -> None:
    it = tdm(clip=0.03)
    surrogate, loss, stopped = it.algorithm.companions[1], 0, 0
    rows = surrogate.estimator.probe(it.rollout, it.policy, it.draw.seeds)
    advantage = surrogate.advantage(it.scores, {})
    index, group = it.rollout.condition.index, it.scores.group
    recorder = Recorder(it.policy.parameters())
    learned = (learned_by(surrogate, it.algorithm), it.rollout, it.scores, advantage)

    def error(k: int, scale: float) -> Tensor:
        s, noise, clean = rows.t[:, k], rows.noise[:, k], it.rollout.trace.states[:, k + 1]
        at = (1 - s)[:, None].float() * clean + s[:, None].float() * noise
        return (it.policy.guided(at, s, index, scale) - (noise - clean)).square().mean(dim=1).double()

    with it.policy.weights.learning("surrogate"):
        improve(it.policy, recorder, *learned, UpdateSettings(max_grad_norm=1e9))
        for k in range(4):
            mine = error(k, 1.0)
            with torch.no_grad():
                with it.policy.using("reference"):
                    known = error(k, 2.5)
                with it.policy.using("slow"):
                    slow = error(k, 1.0)
            ratio = (slow - mine.detach()).exp()
            gone = torch.where(advantage > 0, ratio > 1.03, ratio < 0.97)
            improved = torch.where(advantage > 0, mine.detach() < known, mine.detach() > known)
            gone = gone | (improved & ((mine.detach() - known) ** 2 > 0.05))
            stopped += int(gone.sum())
            kept = torch.where(gone, mine.detach(), mine)
            for g in group.unique():
                one = group == g
                z = (advantage * (mine.detach() - known))[one].mean()
                loss = loss + (k + 2) / 4 * (z.sigmoid() * advantage * kept)[one].sum() / len(group) / 4
            loss = loss + (k + 2) / 4 * 0.001 * (mine - known).square().mean() / 4
        assert 0 < stopped < 4 * len(group)
        assert alike(recorder.gradients[0], it.gradient_of(loss), 1e-3)


@cell(
    "tdm_r1", "defaults", "equal", "4 Euler steps; .3 x 3.5 and .7; beta 1, clip 1e-3, .001, .05; slow copy to .3; 3e-4"
)
def test_tdm_r1_settings() -> None:
    made: Any = composition.build("tdm_r1")
    fake, surrogate = made.companions
    assert (made.sampler.steps, made.sampler.guidance, made.estimator.guidance) == (4, 1.0, 4.5)
    assert (made.estimator.guided, made.estimator.rewarded) == (pytest.approx(0.3 * 3.5), 0.7)
    assert (surrogate.objective.beta, surrogate.objective.clip, surrogate.objective.most) == (1.0, 1e-3, 0.05)
    assert (surrogate.regularizers[0].weight, surrogate.advantage.scale, surrogate.advantage.clip) == (
        1e-3,
        "global",
        5.0,
    )
    assert [surrogate.ema_weights[0].decay(n) for n in (0, 100, 1000)] == pytest.approx([0.001, 0.101, 0.3])
    assert (fake.lr, surrogate.lr, fake.estimator.snr, fake.estimator.importance) == (3e-4, 3e-4, 5.0, 20.0)


@cell(
    "tdm_r1",
    "defaults",
    "deviation",
    "five passes of the fake score; all learners have the run's betas",
    reason="the port's number of passes could not be read, five are DMD2's; there the surrogate's first beta is .9 and "
    "the others' 0. The authors' own training code is not released",
)
def test_tdm_r1_passes() -> None:
    made: Any = composition.build("tdm_r1")
    assert (made.companions[0].epochs, made.companions[1].epochs) == (5, 1)
