"""Flow-GRPO and what was built on its code: Fast, FlowCPS, GRPO-Guard."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from flowrl import composition
from flowrl.samplers.windows import RandomWindow
from flowrl.types import Draw
from tests.fidelity import cell, release
from tests.fidelity.bench import GUIDANCE, Trial, alike, cosine, released_advantage, trial

FLOW_GRPO = "yifan123/flow_grpo, 4 Nov 2025"
release("flow_grpo, flow_grpo_fast, grpo_guard", FLOW_GRPO)
release("flow_cps", "IamCreateAI/FlowCPS b402c7a, 11 Sep 2025")

Step = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor, Tensor]]


def sde(x: Tensor, v: Tensor, x_next: Tensor, t: Tensor, t_next: Tensor, level: float) -> tuple[Tensor, Tensor, Tensor]:
    """``(log_prob, mean, std without the step's length)``, as sd3_sde_with_logprob writes them for sde_type 'sde'."""
    dt = t_next - t
    std = (t / (1 - torch.where(t == 1, t_next, t))).sqrt() * level
    mean = x * (1 + std**2 / (2 * t) * dt) + v * (1 + std**2 * (1 - t) / (2 * t)) * dt
    whole = std * (-dt).sqrt()
    log_prob = -((x_next - mean) ** 2) / (2 * whole**2) - whole.log() - math.log(math.sqrt(2 * math.pi))
    return log_prob.mean(dim=1), mean, std


def cps(x: Tensor, v: Tensor, x_next: Tensor, t: Tensor, t_next: Tensor, level: float) -> tuple[Tensor, Tensor, Tensor]:
    """The same for sde_type 'cps'."""
    std = t_next * math.sin(level * math.pi / 2)
    mean = (x - t * v) * (1 - t_next) + (x + v * (1 - t)) * (t_next**2 - std**2).sqrt()
    return -((x_next - mean) ** 2).mean(dim=1), mean, std


def replay(it: Trial, kernel: Step, level: float, keep: Tensor, j: int, scale: float, detach: bool = False):
    """Step ``j`` of the kept samples under the weights in use: ``(log_prob, mean, std)``."""
    steps = it.rollout.trace
    x, x_next = steps.x[keep, j].double(), steps.x_next[keep, j].double()
    t, t_next = steps.t[keep, j][:, None], steps.t_next[keep, j][:, None]
    v = it.policy.guided(x.float(), t[:, 0], it.rollout.condition.index[keep], scale, detach)
    return kernel(x, v.double(), x_next, t, t_next, level)


def released_loss(
    it: Trial,
    kernel: Step,
    level: float,
    clip: float,
    *,
    kl: float = 0.0,
    plain_kl: bool = False,
    scale: float = GUIDANCE,
    keep: Tensor | None = None,
    detach: bool = False,
) -> Tensor:
    """The training loop of the released scripts on a recorded rollout, written out: one term per step, averaged."""
    keep = it.scores.group != 2 if keep is None else keep  # the flat group has no advantage
    advantage = it.advantage[keep].clamp(-5, 5)
    terms = []
    for j in range(it.rollout.trace.t.shape[1]):
        arguments = (it, kernel, level, keep, j, scale)
        with it.policy.using("sampled"):
            before, _, _ = replay(*arguments)
        log_prob, mean, std = replay(*arguments, detach)
        ratio = (log_prob - before).exp()
        terms.append(torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + clip)).mean())
        if kl:
            with it.policy.using("reference"):
                _, mean_ref, _ = replay(*arguments)
            squared = (mean - mean_ref) ** 2
            terms[-1] = terms[-1] + kl * (squared if plain_kl else squared / (2 * std**2)).mean()
    return torch.stack(terms).mean()


@cell(
    "flow_grpo",
    "loss, gradient",
    "equal",
    "clipped steps and KL, off policy, both guidance branches in the graph, samples of flat groups left out",
)
def test_flow_grpo_gradient() -> None:
    it = trial("flow_grpo", off=0.02, clip=0.002)
    assert 0 < it.rollout.trace.t.shape[1] == 9
    assert alike(it.gradient(), it.gradient_of(released_loss(it, sde, 0.7, 0.002, kl=0.04)))
    assert 0.05 < it.metrics["clip_fraction"] < 0.95 and it.metrics["kl/reference"] > 0


@cell(
    "flow_grpo, grpo_guard, flow_cps",
    "gradient",
    "option",
    "`cfg_grad: cond`, the unconditional branch detached (the code of 15 Jul to 19 Aug 2025), the cheaper one",
)
def test_the_conditional_branch_alone() -> None:
    for name, kernel, level in (("flow_grpo", sde, 0.7), ("flow_cps", cps, 0.7)):
        cheap = trial(name, kl=0.0, cfg_grad="cond")
        detached = cheap.gradient_of(released_loss(cheap, kernel, level, 1e-4, detach=True))
        assert alike(cheap.gradient(), detached)
        assert cosine(detached, trial(name, kl=0.0).gradient()) < 0.99  # another gradient, not a cheaper form of it
    assert composition.build({"use": "grpo_guard", "cfg_grad": "cond"}).estimator.cfg_grad == "cond"


@cell(
    "flow_grpo",
    "gradient",
    "deviation",
    "a single sample exactly at its group's mean stays in the mean",
    reason="a group is compared as a whole; `selection: nonzero_advantage` leaves it out as the release does",
)
def test_a_sample_without_advantage() -> None:
    it = trial("flow_grpo", kl=0.0)
    it.advantage[4] = 0.0
    released = it.gradient_of(released_loss(it, sde, 0.7, 1e-4, keep=it.advantage != 0))
    assert alike(it.gradient(), released * 11 / 12)
    other = trial("flow_grpo", kl=0.0, selection="nonzero_advantage")
    other.advantage[4] = 0.0
    assert alike(other.gradient(), released)


@cell(
    "flow_grpo, flow_grpo_fast, flow_cps, grpo_guard",
    "defaults",
    "equal",
    "advantage: group mean; standard deviation of all rewards (Guard: of the group), ddof 0, plus 1e-4, cut to 5",
)
def test_advantage() -> None:
    for name in ("flow_grpo", "flow_grpo_fast", "flow_cps", "grpo_guard"):
        it = trial(name)
        expected = released_advantage(it.scores.rewards[:, 0], it.scores.group, whole=name != "grpo_guard").clamp(-5, 5)
        assert torch.allclose(it.advantage, expected, atol=1e-9), name


@cell(
    "flow_grpo",
    "defaults",
    "equal",
    "10 steps at noise 0.7, 9 trained, clip 1e-4, KL 0.04 (`kl: 0.01` for PickScore), the pipeline's guidance",
)
def test_flow_grpo_settings() -> None:
    made = composition.build("flow_grpo")
    assert (made.sampler.steps, made.sampler.dynamics.noise_level, made.sampler.recorded) == (10, 0.7, 9)
    assert (made.objective.clip_range, made.regularizers[0].weight, made.sampler.guidance) == ((1e-4, 1e-4), 0.04, None)


def starts(window: RandomWindow, steps: int) -> set[int]:
    """Where a window begins, in many iterations."""
    none = torch.zeros(1, dtype=torch.int64)
    return {window(steps, Draw.of(none, none, i, 17 * i)).recorded.start for i in range(200)}


@cell(
    "flow_grpo_fast",
    "defaults",
    "equal",
    "no guidance, CPS noise 0.8, three steps that end in the first half (start 0 to 2 of 10, 0 of 6), clip 1e-5, no KL",
)
def test_fast_settings() -> None:
    made = composition.build("flow_grpo_fast")
    for steps in (10, 6, 16):
        drawn = {random.Random(seed).randint(0, steps // 2 - 3) for seed in range(200)}  # the released expression
        assert starts(made.sampler.window, steps) == drawn
    assert (made.sampler.dynamics.noise, made.sampler.guidance, made.objective.clip_range) == (0.8, 1.0, (1e-5, 1e-5))
    assert not made.regularizers and made.sampler.recorded == 3


@cell(
    "flow_grpo_fast", "loss, gradient", "equal", "clipped CPS steps of the window with the measure -mean (x' - mean)^2"
)
def test_fast_gradient() -> None:
    it = trial("flow_grpo_fast", off=0.02, clip=1e-3)
    assert alike(it.gradient(), it.gradient_of(released_loss(it, cps, 0.8, 1e-3, scale=1.0)))
    assert 0.05 < it.metrics["clip_fraction"] < 0.95


@cell("flow_grpo_fast", "defaults", "option", "the guided configuration: `guidance: 4.5, size: 2, kernel: sde`")
def test_fast_guided() -> None:
    it = trial("flow_grpo_fast", guidance=4.5, size=2, kernel="sde")
    assert it.rollout.trace.t.shape[1] == 2
    assert alike(it.gradient(), it.gradient_of(released_loss(it, sde, 0.8, 1e-5)))


@cell(
    "flow_grpo_fast",
    "defaults",
    "deviation",
    "one window for all samples of an iteration",
    reason="the release draws one per call of the pipeline, so members of a group differ in it, which adds its own "
    "variance to their rewards",
)
def test_fast_window_is_shared() -> None:
    it = trial("flow_grpo_fast")
    assert (it.rollout.trace.t == it.rollout.trace.t[:1]).all()


@cell(
    "flow_cps", "loss, gradient", "equal", "CPS at all steps, -mean (x' - mean)^2, and the mean's squared shift as KL"
)
def test_cps_gradient() -> None:
    it = trial("flow_cps", off=0.02, clip=1e-3)
    assert alike(it.gradient(), it.gradient_of(released_loss(it, cps, 0.7, 1e-3, kl=0.04, plain_kl=True)))


@cell("flow_cps", "defaults", "equal", "10 steps at noise 0.7, 9 trained, clip 1e-4, KL 0.04")
def test_cps_settings() -> None:
    made = composition.build("flow_cps")
    assert (made.sampler.steps, made.sampler.dynamics.noise, made.sampler.recorded) == (10, 0.7, 9)
    assert (made.objective.clip_range, made.regularizers[0].weight) == ((1e-4, 1e-4), 0.04)


def guard_loss(it: Trial, clip: float, whole_batch: bool) -> Tensor:
    """train_sd3_GRPO_Guard.py with rationorm, on the kept samples."""
    keep = it.scores.group != 2
    advantage, steps, terms = it.advantage[keep].clamp(-5, 5), it.rollout.trace, []
    for j in range(steps.t.shape[1]):
        arguments = (it, sde, 0.7, keep, j, GUIDANCE)
        with it.policy.using("sampled"):
            before, mean_before, _ = replay(*arguments)
        log_prob, mean, std = replay(*arguments)
        length = (steps.t[0, j] - steps.t_next[0, j]).sqrt()
        spread = length * std.mean()
        squared = (mean - mean_before) ** 2
        bias = (squared.mean() if whole_batch else squared.mean(dim=1)) / (2 * spread**2)
        ratio = ((log_prob - before + bias) * spread).exp()
        loss = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + clip)).mean()
        terms.append(loss / length**2)
    return torch.stack(terms).mean()


@cell(
    "grpo_guard", "loss, gradient", "equal", "the normalised ratio, on and off policy, each step divided by its length"
)
@pytest.mark.parametrize("off", [0.0, 0.02])
def test_guard_gradient(off: float) -> None:
    it = trial("grpo_guard", off=off, clip=1e-3)
    assert alike(it.gradient(), it.gradient_of(guard_loss(it, 1e-3, whole_batch=False)), 2e-4)


@cell(
    "grpo_guard",
    "gradient",
    "deviation",
    "every sample has its own bias of the mean",
    reason="the release averages it over all samples of a batch (`log_prob.ndim` is 1 there); the formula has each "
    "sample's own",
)
def test_guard_bias_of_the_batch() -> None:
    it = trial("grpo_guard", off=0.002)
    ours, released = it.gradient(), it.gradient_of(guard_loss(it, 2e-6, whole_batch=True))
    assert cosine(ours, released) > 1 - 1e-3


@cell(
    "grpo_guard",
    "defaults",
    "equal",
    "clip 2e-6 (`clip: 4e-6` for PickScore), no KL, 10 steps at noise 0.7, 9 trained; "
    "learning rate 1e-4 belongs to the recipe",
)
def test_guard_settings() -> None:
    made = composition.build("grpo_guard")
    assert (made.objective.clip_range, made.regularizers, made.sampler.recorded) == ((2e-6, 2e-6), (), 9)
    assert (made.sampler.dynamics.noise_level, made.advantage.scale) == (0.7, "group")
