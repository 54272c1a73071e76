"""DMD2 against its release: both losses, written out for the noise prediction of a DDPM model."""

from __future__ import annotations

from typing import Any

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
