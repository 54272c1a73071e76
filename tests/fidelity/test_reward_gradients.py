"""Methods that follow the reward's own gradient: DRaFT, ReFL, AlignProp, DRTune, SRPO, Adjoint Matching, ROCM."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from flowrl import composition
from flowrl.math.random import normal
from tests.fidelity import cell, release
from tests.fidelity.bench import GUIDANCE, DDPMFlow, alike, trial

release("draft, draft_lv", "none that could be read; arXiv:2309.17400, abstract and ports")
release("refl", "THUDM/ImageReward, ImageReward/ReFL.py and scripts/train_refl.sh")
release("align_prop", "mihirp1998/AlignProp b22918a")
release("drtune", "none; the abstract of arXiv:2405.00760")
release("srpo", "Tencent-Hunyuan/SRPO 81e5898, SRPO_training_hpsv2.sh")
release("adjoint_matching", "microsoft/soc-fine-tuning-sd 489f904")
release("rocm", "none; the abstract of arXiv:2503.06171")


def reward(clean: Tensor) -> Tensor:
    """[N], as the trial's judge has it."""
    return clean.double().sum(dim=1).tanh()


def ask(it: Any, x: Tensor, t: float | Tensor, scale: float, rows: Tensor | None = None) -> Tensor:
    """The guided velocity of some samples, all of them by default, written out."""
    index = it.rollout.condition.index
    index = index if rows is None else index[rows]
    times = t if isinstance(t, Tensor) else torch.full((len(x),), t, dtype=torch.float64)
    return it.policy.guided(x, times, index, scale)


def start_of(it: Any) -> Tensor:
    """Where the recorded steps begin."""
    assert it.rollout.trace is not None
    return it.rollout.trace.states[:, 0]


# -------------------------------------------------------------------------------------------------------------- DRaFT
@cell("draft", "loss, gradient", "equal", "minus the reward, through the last K Euler steps and the guidance of each")
@pytest.mark.parametrize("last", [1, 3])
def test_draft_gradient(last: int) -> None:
    it: Any = trial("draft", flat=False, last=last, steps=10)
    times, x = it.policy.times(10), start_of(it)
    for k in range(10 - last, 10):
        x = x + float(times[k + 1] - times[k]) * ask(it, x, float(times[k]), GUIDANCE)
    assert alike(it.gradient(), it.gradient_of(-reward(x).mean()))


@cell("draft", "defaults", "equal", "one step with a gradient, of fifty; no penalty, no cap")
def test_draft_settings() -> None:
    made: Any = composition.build("draft")
    assert made.sampler.steps == 50 and made.sampler.window.count == 1
    assert made.objective.cap is None and not made.regularizers


@cell("draft", "defaults", "option", "`last: null` is DRaFT, through all steps; `reference` holds it back")
def test_draft_options() -> None:
    it: Any = trial("draft", flat=False, last=None, steps=6, reference=0.5)
    times, x, apart = it.policy.times(6), start_of(it), 0
    for k in range(6):
        t = float(times[k])
        with it.policy.using("reference"), torch.no_grad():
            held = ask(it, x.detach(), t, GUIDANCE)
        v = ask(it, x, t, GUIDANCE)
        apart = apart + (v - held).double().square().mean() / 6
        x = x + float(times[k + 1] - times[k]) * v
    assert alike(it.gradient(), it.gradient_of(-reward(x).mean() + 0.5 * apart))


@cell("draft_lv", "loss, gradient", "equal", "the mean over fresh noises of the last step's gradient")
def test_draft_lv_gradient() -> None:
    it: Any = trial("draft_lv", flat=False, steps=10)
    t, rows, loss = float(it.policy.times(10)[-2]), it.probe(), 0
    for j in range(2):
        x = ((1 - t) * it.rollout.final + t * rows.noise[:, j]).float()
        loss = loss - reward(x - t * ask(it, x, t, GUIDANCE)).mean() / 2
    assert alike(it.gradient(), it.gradient_of(loss))


@cell(
    "draft_lv",
    "defaults",
    "deviation",
    "two noises, beside none of the sampler's own",
    reason="how many the paper draws, and whether the finished sample's own step is one of them, could not be read",
)
def test_draft_lv_settings() -> None:
    made: Any = composition.build("draft_lv")
    assert made.estimator.draws == 2


# --------------------------------------------------------------------------------------------------------- ReFL
@cell("refl", "loss, gradient", "equal", "0.001 relu(2 - r) of the clean latent that the drawn step predicts")
def test_refl_gradient() -> None:
    it: Any = trial("refl", flat=False, flow=DDPMFlow, cap=0.5, scale=0.7)
    rows, loss = it.probe(), 0
    for i in range(len(it.scores.group)):
        k = int(rows.number[i, 0])
        assert 30 <= k < 40
        x = it.rollout.trace.states[i, k - 30][None]
        t = float(it.policy.times(40)[k])
        a = (1 - t) ** 2 / ((1 - t) ** 2 + t**2)  # of the variance-preserving process
        v = ask(it, x, t, 1.0, torch.tensor([i]))
        noise, seen = x + (1 - t) * v, x / ((1 - t) ** 2 + t**2) ** 0.5
        clean = (seen - (1 - a) ** 0.5 * noise) / a**0.5
        loss = loss + 0.7 * (0.5 - reward(clean)).relu().sum() / len(it.scores.group)
    found = it.gradient()
    assert float(found.norm()) > 0 and alike(found, it.gradient_of(loss), 1e-3)


@cell("refl", "defaults", "equal", "40 steps of DDPM, one of the last ten, relu(2 - r) times 0.001, no guidance")
def test_refl_settings() -> None:
    made: Any = composition.build("refl")
    assert (made.sampler.steps, made.sampler.window.count, made.sampler.guidance) == (40, 10, 1.0)
    assert (made.objective.cap, made.objective.scale, made.sampler.dynamics.eta) == (2.0, 1e-3, 1.0)
    assert {int(n) for n in trial("refl", flat=False).probe().number[:, 0]} <= set(range(30, 40))


@cell(
    "refl",
    "defaults",
    "deviation",
    "each sample draws its step, and is sampled to the end",
    reason="the release draws one step for a batch and stops there; here the run's rewards also score whole samples, "
    "so that what is watched is what the model makes. Its pre-training loss on captioned images is left out",
)
def test_refl_draws() -> None:
    it: Any = trial("refl", flat=False)
    assert len(it.probe().number.unique()) > 3 and float(it.rollout.times[-1]) == 0


# --------------------------------------------------------------------------------------------------------- AlignProp
@cell("align_prop", "loss, gradient", "equal", "through DDIM's steps with their noise, from the cut on, guidance 5")
def test_align_prop_gradient() -> None:
    """The released step, in the coordinates of Stable Diffusion."""
    it: Any = trial("align_prop", flat=False, flow=DDPMFlow, steps=10, spread=0.2)
    rows, times, loss = it.probe(), it.policy.times(10), 0
    cuts = rows.number[:, 0]
    assert len(cuts.unique()) > 2
    for i in range(len(cuts)):
        x = it.rollout.trace.states[i, cuts[i] - 1][None]
        for k in range(int(cuts[i]), 10):
            t, t_next = float(times[k]), float(times[k + 1])
            a, a_next = ((1 - u) ** 2 / ((1 - u) ** 2 + u**2) for u in (t, t_next))
            v = ask(it, x, t, 5.0, torch.tensor([i]))
            clean, noise = x - t * v, x + (1 - t) * v
            variance = (1 - a_next) / (1 - a) * (1 - a / a_next)
            z = normal(it.draw.seeds[i : i + 1], (16,), stream=k + 1)
            seen = a_next**0.5 * clean + max(1 - a_next - variance, 0) ** 0.5 * noise + variance**0.5 * z
            x = seen * ((1 - t_next) ** 2 + t_next**2) ** 0.5
        loss = loss - 0.01 * reward(x).sum() / len(cuts)
    assert alike(it.gradient(), it.gradient_of(loss), 1e-3)


@cell("align_prop", "defaults", "equal", "50 steps of DDIM(1), guidance 5, cut round(N(42, 5)), loss times 0.01")
def test_align_prop_settings() -> None:
    made: Any = composition.build("align_prop")
    assert (made.sampler.steps, made.sampler.guidance, made.sampler.dynamics.eta) == (50, 5.0, 1.0)
    assert (made.objective.scale, made.estimator.inputs, made.estimator.checkpoint) == (0.01, True, True)
    assert 49 * made.estimator.around == pytest.approx(41, abs=0.5)
    assert 49 * made.estimator.spread == pytest.approx(5, abs=0.2)


@cell("align_prop", "defaults", "option", "`around: null` draws the cut uniformly; `draft` has the fixed cut 49")
def test_align_prop_options() -> None:
    made: Any = composition.build({"use": "align_prop", "around": None})
    assert made.estimator.first == "random" and made.estimator.around is None


@cell(
    "align_prop",
    "defaults",
    "deviation",
    "each sample draws its cut",
    reason="the release draws one for a batch: the same expected gradient, of more variance",
)
def test_align_prop_draws() -> None:
    assert len(trial("align_prop", flat=False, steps=10, spread=0.2).probe().number[:, 0].unique()) > 2


# ------------------------------------------------------------------------------------------------------------ DRTune
@cell("drtune", "loss, gradient", "equal", "the sum over spaced steps of dt (dv / dtheta)^T r', no input in the graph")
def test_drtune_gradient() -> None:
    it: Any = trial("drtune", flat=False, steps=10, trained=3, stop=4)
    rows, times, loss = it.probe(), it.policy.times(10), 0
    for i in range(len(it.scores.group)):
        states = it.rollout.trace.states[i]
        last = int(rows.event[i, -1])
        assert 6 <= last < 10
        steps = [last - 2 * ((last + 1) // 3), last - (last + 1) // 3, last]
        assert rows.event[i].tolist() == steps
        velocity = [ask(it, states[k][None], float(times[k]), GUIDANCE, torch.tensor([i])) for k in steps]
        if last == 9:
            end, gains = states[10][None], [float(times[k + 1] - times[k]) for k in steps]
        else:  # the clean latent that the judged step predicts
            end = states[last][None] - float(times[last]) * velocity[-1].detach()
            gains = [float(times[k + 1] - times[k]) for k in steps[:-1]] + [-float(times[last])]
        moved = end + sum(gain * (v - v.detach()) for gain, v in zip(gains, velocity, strict=True))
        loss = loss - reward(moved).sum() / len(it.scores.group)
    assert alike(it.gradient(), it.gradient_of(loss), 1e-4)


@cell(
    "drtune",
    "defaults",
    "deviation",
    "five steps of fifty, evenly spaced back from the judged one, which is among the last five",
    reason="the abstract tells neither numbers nor laws, and no code was found",
)
def test_drtune_settings() -> None:
    made: Any = composition.build("drtune")
    assert (made.sampler.steps, made.estimator.trained, made.estimator.stop) == (50, 5, 5)


# -------------------------------------------------------------------------------------------------------------- SRPO
@cell("srpo", "loss, gradient", "equal", "relu(0.7 - r), the mean of the branches, each with its texts and its k")
def test_srpo_gradient() -> None:
    it: Any = trial("srpo", flat=False, steps=8, good="aaaa{}", bad="b{}", cap=5.0)
    rows, loss = it.probe(), 0
    noise = normal(it.draw.seeds, (16,), stream=0)
    for branch in (0, 1):
        t, start = rows.t[:, branch, None], rows.start[:, branch, None]
        k = rows.emphasis[:, branch]
        x = ((1 - start) * it.rollout.final + start * noise).float()
        moved = x + (t - start) * ask(it, x, start[:, 0], 1.0)
        score = reward((moved - t * noise) / (1 - t))
        good, bad = 6 * score, 3 * score
        first, second = (good, bad) if branch == 0 else (bad, good)
        assert bool(((start > t) == (branch == 0)).all())
        loss = loss + (5.0 - (1 + k) * first + second).relu().mean() / 2
    assert alike(it.gradient(), it.gradient_of(loss), 1e-4)


@cell(
    "srpo",
    "defaults",
    "equal",
    "25 steps of shift 3, times .750 to .964, steps of a tenth, HPSv2's k, cap 0.7",
)
def test_srpo_settings() -> None:
    made: Any = composition.build("srpo")
    assert (made.sampler.steps, made.sampler.shift, made.objective.cap) == (25, 3.0, 0.7)
    assert made.estimator.width == pytest.approx(0.1 * (0.964 - 0.750))
    assert (made.estimator.denoise, made.estimator.invert) == ((0.1, 0.25), (0.3, 0.01))


@cell("srpo", "defaults", "option", "`denoise: [0.1, 0.5], invert: [0.6, 0.01]` for PickScore")
def test_srpo_pickscore() -> None:
    made: Any = composition.build({"use": "srpo", "denoise": [0.1, 0.5], "invert": [0.6, 0.01]})
    assert tuple(made.estimator.invert) == (0.6, 0.01)


@cell(
    "srpo",
    "defaults",
    "deviation",
    "each sample has a time and a noise of its own, and the control words are ours",
    reason="a time and a noise that all processes share are what its loop has at hand, not the method; its words "
    "are in its data",
)
def test_srpo_draws() -> None:
    rows = trial("srpo", flat=False, steps=8).probe()
    assert len(rows.t[:, 0].unique()) == len(rows.t) and not torch.equal(rows.noise[0], rows.noise[1])


# -------------------------------------------------------------------------------------------------- Adjoint Matching
def adjoints(it: Any, steps: int) -> list[Tensor]:
    """a_0, ..., a_T of all samples: the lean adjoint of the reference, by the kernel written out."""
    states, times = it.rollout.trace.states, it.policy.times(steps)
    end = it.rollout.final.clone().requires_grad_()
    found = [-it.algorithm.estimator.scale * torch.autograd.grad(reward(end).sum(), end)[0]]
    for k in reversed(range(steps)):
        x = states[:, k].clone().requires_grad_()
        with it.policy.using("reference"), torch.enable_grad():
            moved = (step_of(it, x, times, k)[0] * found[0]).sum()
            found.insert(0, torch.autograd.grad(moved, x)[0])
    return found


def step_of(it: Any, x: Tensor, times: Tensor, k: int) -> tuple[Tensor, float]:
    """Mean and deviation of the memoryless step: g^2 = 2 t / (1 - t), the drift with the predicted noise."""
    t, t_next = float(times[k]), float(times[k + 1])
    g2 = 2 * t / (1 - (t if t < 1 else t_next))
    v, dt = ask(it, x, t, GUIDANCE), t_next - t
    return x + v * dt + g2 / (2 * t) * (x + (1 - t) * v) * dt, (g2 * -dt) ** 0.5


def regression(it: Any, steps: int, later: int) -> Tensor:
    """``sum_k sum_D ((mean - mean of the reference) / s + s a_{k + later})^2`` over the drawn steps."""
    rows, a, loss = it.probe(), adjoints(it, steps), torch.zeros((), dtype=torch.float64)
    states, times = it.rollout.trace.states, it.policy.times(steps)
    for k in range(steps):
        drawn = (rows.event == k).any(dim=1)
        with it.policy.using("reference"), torch.no_grad():
            held = step_of(it, states[:, k], times, k)[0]
        mean, s = step_of(it, states[:, k], times, k)
        error = ((mean - held) / s + s * a[k + later]).double().square().sum(dim=1)
        loss = loss + error[drawn].sum() / len(drawn)
    return loss


@cell("adjoint_matching", "loss, gradient", "equal", "regression of four steps on the lean adjoint, summed")
@pytest.mark.parametrize("pairing", ["next", "same"])
def test_adjoint_matching_gradient(pairing: str) -> None:
    it: Any = trial("adjoint_matching", flat=False, steps=6, scale=2.0, pairing=pairing)
    assert alike(it.gradient(), it.gradient_of(regression(it, 6, int(pairing == "next"))), 1e-4)


@cell("adjoint_matching", "defaults", "equal", "50 steps, two of the first 60 % and two of the others, lambda 100")
def test_adjoint_matching_settings() -> None:
    made: Any = composition.build("adjoint_matching")
    assert (made.sampler.steps, made.estimator.early, made.estimator.late, made.estimator.split) == (50, 2, 2, 0.6)
    assert made.estimator.scale == 100 and made.sampler.dynamics.noise_level == 2**0.5


@cell(
    "adjoint_matching",
    "defaults",
    "option",
    "`sampler: {dynamics: ddim}` for SD; `pairing: same`",
)
def test_adjoint_matching_options() -> None:
    made: Any = composition.build({"use": "adjoint_matching", "pairing": "same", "sampler": {"dynamics": "ddim"}})
    assert made.sampler.dynamics.eta == 1.0 and made.estimator.pairing == "same"


@cell(
    "adjoint_matching",
    "loss",
    "deviation",
    "a step is paired with the adjoint after it",
    reason="the released code pairs it with that before it: the same limit of many steps, and too small a tilt at "
    "few (0.083 of 0.12 at ten steps of DDIM(1) on Gaussian data). Samples of extreme loss are not masked",
)
def test_adjoint_matching_pairing() -> None:
    it: Any = trial("adjoint_matching", flat=False, steps=6, scale=2.0)
    assert not alike(it.gradient(), it.gradient_of(regression(it, 6, 0)), 1e-2)


# -------------------------------------------------------------------------------------------------------------- ROCM
@cell(
    "rocm",
    "loss, gradient",
    "equal",
    "the reward through every consistency step, less beta times divergences",
)
def test_rocm_gradient() -> None:
    """delta^2 / 2 = a' |f - f_ref|^2 / (2 (1 - a')) of the variance-preserving process, per latent element."""
    it: Any = trial("rocm", flat=False, weight=0.4, steps=5)
    times, x, held_to = it.policy.times(5), start_of(it), 0
    for k in range(5):
        t, t_next = float(times[k]), float(times[k + 1])
        with it.policy.using("reference"), torch.no_grad():
            other = x.detach() - t * ask(it, x.detach(), t, 1.0)
        v = ask(it, x, t, 1.0)
        clean = x - t * v
        if t_next > 0:
            a_next = (1 - t_next) ** 2 / ((1 - t_next) ** 2 + t_next**2)
            apart = (x.detach() - t * v - other).double().square().mean(dim=1)
            held_to = held_to + (a_next / (1 - a_next) * apart / 2).mean() / 5
        z = normal(it.draw.seeds, (16,), stream=k + 1)
        x = (1 - t_next) * clean + t_next * z
    assert alike(it.gradient(), it.gradient_of(-reward(x).mean() + 0.4 * held_to), 1e-4)


@cell(
    "rocm",
    "defaults",
    "deviation",
    "four steps, KL of weight 0.1 per latent element, the mean over the steps",
    reason="the abstract tells neither numbers nor how divergences are reduced, and no code was found",
)
def test_rocm_settings() -> None:
    made: Any = composition.build("rocm")
    assert (made.sampler.steps, made.regularizers[0].weight, made.regularizers[0].kind) == (4, 0.1, "kl")
