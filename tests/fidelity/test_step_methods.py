"""DDPO and LOOP, DanceGRPO, MixGRPO: methods on recorded steps outside Flow-GRPO's code."""

from __future__ import annotations

import math
from collections import deque

import pytest
import torch
from torch import Tensor

from flowrl import composition
from flowrl.parts.selections import AllSamples
from flowrl.types import Draw
from tests.fidelity import cell, release
from tests.fidelity.bench import GUIDANCE, DDPMFlow, GuidedFlow, Trial, alike, trial
from tests.fidelity.test_flow_grpo_family import sde

release("ddpo, ddpo_sf", "kvablack/ddpo-pytorch 1958463, 16 Nov 2023")
release("loop", "none by its authors; arXiv:2503.00897, on DDPO's code")
release("dance_grpo", "XueZeyue/DanceGRPO 15cc71d, 16 Oct 2025")
release("mix_grpo", "Tencent-Hunyuan/MixGRPO e5cdd6a, 8 Aug 2025")


def ddim(x: Tensor, v: Tensor, x_next: Tensor, t: Tensor, t_next: Tensor, eta: float) -> Tensor:
    """ddim_with_logprob: the chain of a noise-predicting model with alpha_bar, eta and the mean of the log-density. The
    recorded flow states are brought to the model's own scale first."""
    scale, scale_next = ((1 - t) ** 2 + t**2).sqrt(), ((1 - t_next) ** 2 + t_next**2).sqrt()
    a, a_next = ((1 - t) / scale) ** 2, ((1 - t_next) / scale_next) ** 2
    noise, x, x_next = x + (1 - t) * v, x / scale, x_next / scale_next
    std = eta * ((1 - a_next) / (1 - a) * (1 - a / a_next)).sqrt()
    clean = (x - (1 - a).sqrt() * noise) / a.sqrt()
    mean = a_next.sqrt() * clean + (1 - a_next - std**2).sqrt() * noise
    log_prob = -((x_next - mean) ** 2) / (2 * std**2) - std.log() - math.log(math.sqrt(2 * math.pi))
    return log_prob.mean(dim=1)


def dance(x: Tensor, v: Tensor, x_next: Tensor, t: Tensor, t_next: Tensor, eta: float) -> Tensor:
    """flux_step with sde_solver: the score from the predicted clean latent, constant eta."""
    clean, dt = x - t * v, t_next - t
    score = -(x - clean * (1 - t)) / t**2
    mean = x + dt * v - 0.5 * eta**2 * score * dt
    std = eta * (-dt).sqrt()
    log_prob = -((x_next - mean) ** 2) / (2 * std**2) - std.log() - math.log(math.sqrt(2 * math.pi))
    return log_prob.mean(dim=1)


def released_loss(it: Trial, kernel, level: float, clip: float) -> Tensor:
    """Clipped ratio of every trained step, averaged over all samples; both guidance branches in the graph."""
    rows, policy, index = it.probe(), it.policy, it.rollout.condition.index
    advantage, terms = it.advantage.clamp(-5, 5), []
    for j in range(rows.t.shape[1]):
        x, x_next = rows.x[:, j].double(), rows.x_next[:, j].double()
        t, t_next = rows.t[:, j][:, None], rows.t_next[:, j][:, None]

        def log_prob(x=x, x_next=x_next, t=t, t_next=t_next) -> Tensor:
            return kernel(x, policy.guided(x.float(), t[:, 0], index, GUIDANCE).double(), x_next, t, t_next, level)

        with policy.using("sampled"):
            before = log_prob()
        ratio = (log_prob() - before).exp()
        terms.append(torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + clip)).mean())
    return torch.stack(terms).mean()


@cell(
    "ddpo, loop",
    "loss, gradient",
    "equal",
    "clipped DDIM(1) steps on a DDPM grid, off policy, both guidance branches in the graph, the last step included",
)
@pytest.mark.parametrize("name", ["ddpo", "loop"])
def test_ddpo_gradient(name: str) -> None:
    it = trial(name, off=0.02, flow=DDPMFlow, steps=10, clip=1e-3)
    assert it.rollout.trace.t.shape[1] == 10
    assert alike(it.gradient(), it.gradient_of(released_loss(it, ddim, 1.0, 1e-3)))
    assert 0.05 < it.metrics["clip_fraction"] < 0.95


@cell(
    "ddpo_sf",
    "loss, gradient, defaults",
    "equal",
    "the same steps by score function, one update a batch, as DDPO's paper",
)
def test_ddpo_sf_gradient() -> None:
    it = trial("ddpo_sf", flow=DDPMFlow, steps=10)
    assert alike(it.gradient(), it.gradient_of(released_loss(it, ddim, 1.0, 1e-3)))  # at ratio 1 both are the score


@cell(
    "ddpo",
    "defaults",
    "equal",
    "50 steps, eta 1, clip 1e-4, all 50 trained: the last ends at the first training time and is decoded as it is",
)
def test_ddpo_trains_all_steps() -> None:
    made = composition.build("ddpo")
    grid = made.sampler.grid(DDPMFlow())
    assert made.sampler.recordable(grid) == range(50) and made.objective.clip_range == (1e-4, 1e-4)
    a = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2).cumprod(dim=0)[0]
    assert float((1 - grid[-1]) ** 2 / ((1 - grid[-1]) ** 2 + grid[-1] ** 2)) == pytest.approx(float(a), rel=1e-12)
    it = trial("ddpo", flow=DDPMFlow, steps=10)
    last, t = it.rollout.trace.x_next[:, -1], it.rollout.times[-1]
    own = last * (a.sqrt() / (1 - t)).float()  # in the scale of the model: x_flow sqrt(a) / (1 - t)
    assert torch.allclose(it.rollout.final, own, rtol=1e-5)


@cell(
    "ddpo",
    "defaults",
    "deviation",
    "on the grid of a flow model the steps with negligible noise are not trained",
    reason="the release has no such grid; with the step from 0.144 to 0.001 the shapes benchmark ended at .60, "
    "without it at about .72",
)
def test_ddpo_on_a_flow_grid() -> None:
    it = trial("ddpo", steps=10)
    assert it.rollout.trace.t.shape[1] == 8
    it.gradient()
    assert math.isfinite(it.metrics["ratio/log_square"])


@cell(
    "ddpo",
    "defaults",
    "equal",
    "advantage over a deque of 16 rewards a prompt, the batch's statistics before 16 are there",
)
def test_ddpo_advantage() -> None:
    algorithm, memory, seen = composition.build("ddpo"), {}, {}
    for iteration in range(8):
        it = trial("ddpo", iteration=iteration, flow=DDPMFlow, steps=5)
        reward, prompts = it.scores.rewards[:, 0] + iteration, it.scores.prompt_ids
        it.scores.rewards[:, 0] = reward
        ours = algorithm.advantage(it.scores, memory)
        for p in prompts.unique().tolist():
            kept = seen.setdefault(p, deque(maxlen=16))
            kept.extend(reward[prompts == p].tolist())
            basis = torch.tensor(kept, dtype=torch.float64) if len(kept) >= 16 else reward
            theirs = (reward[prompts == p] - basis.mean()) / (basis.std(correction=0) + 1e-6)
            assert torch.allclose(ours[prompts == p], theirs.clamp(-5, 5), atol=1e-9)


@cell(
    "ddpo",
    "data",
    "deviation",
    "45 common animals in configs/sd15_ddpo.yaml",
    reason="the release draws from the 398 animals among ImageNet's classes for compressibility; `data.train` takes a "
    "file of them, one a line",
)
def test_ddpo_prompts() -> None:
    from pathlib import Path

    lines = (Path(__file__).parents[2] / "configs/prompts/animals.txt").read_text().split("\n")
    assert len([line for line in lines if line.strip()]) == 45


@cell(
    "loop", "defaults", "equal", "advantage r_i - mean of the others, as the abstract has it; clip and steps are DDPO's"
)
def test_loop_advantage() -> None:
    it = trial("loop", flow=DDPMFlow, steps=5, flat=False)
    reward, group = it.scores.rewards[:, 0], it.scores.group
    for i in range(len(reward)):
        others = (group == group[i]) & (torch.arange(len(group)) != i)
        assert float(it.advantage[i]) == pytest.approx(float(reward[i] - reward[others].mean()), abs=1e-12)


@cell(
    "dance_grpo",
    "loss, gradient",
    "equal",
    "clipped steps of the constant-noise SDE, a random share of them per sample, flat groups kept in the mean",
)
def test_dance_gradient() -> None:
    it = trial("dance_grpo", off=0.02, clip=1e-3)
    assert it.probe().t.shape[1] == int(15 * 0.6)
    assert alike(it.gradient(), it.gradient_of(released_loss(it, dance, 0.3, 1e-3)))
    assert it.algorithm.selection == AllSamples()


@cell(
    "dance_grpo",
    "defaults",
    "equal",
    "16 steps, eta 0.3, clip 1e-4, int(15 x 0.6) steps per sample, group std with ddof 1 and 1e-8, one initial noise a "
    "group, the predicted clean latent decoded",
)
def test_dance_settings() -> None:
    made = composition.build("dance_grpo")
    assert (made.sampler.steps, made.sampler.dynamics.noise, made.objective.clip_range) == (16, 0.3, (1e-4, 1e-4))
    assert made.sampler.share_noise and made.sampler.decode_clean and not made.regularizers
    it = trial("dance_grpo", flat=False)
    assert it.probe().t.shape[1] == 9
    first = it.rollout.trace.x[:, 0]
    assert torch.equal(first[0], first[5]) and not torch.equal(first[0], first[6])
    mine = it.scores.rewards[:6, 0]
    assert torch.allclose(it.advantage[:6], (mine - mine.mean()) / (mine.std() + 1e-8), atol=1e-9)


@cell(
    "dance_grpo, mix_grpo",
    "defaults",
    "option",
    "times by the fixed shift 3: `sampler: {shift: 3.0}`, as in the recipes",
)
def test_the_fixed_shift() -> None:
    """linspace(1, 0, T + 1), then 3 t / (1 + 2 t)."""
    for name, steps in (("dance_grpo", 16), ("mix_grpo", 25)):
        even = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        assert torch.allclose(trial(name, sampler={"shift": 3.0}).rollout.times, 3 * even / (1 + 2 * even), atol=1e-12)
        assert torch.equal(trial(name).rollout.times, GuidedFlow().times(steps))  # without it, the model's scheduler's


@cell("mix_grpo", "loss, gradient", "equal", "clipped SDE steps inside the window, Euler steps outside")
def test_mix_gradient() -> None:
    it = trial("mix_grpo", off=0.02, clip=1e-3, iteration=60)
    assert it.rollout.trace.t[0].tolist() == it.policy.times(25)[2:6].tolist()  # moved by 1 every 25 iterations
    assert alike(it.gradient(), it.gradient_of(released_loss(it, _mixed, 0.7, 1e-3)))


def _mixed(*arguments) -> Tensor:
    return sde(*arguments)[0]


@cell(
    "mix_grpo",
    "defaults",
    "equal",
    "25 steps at noise 0.7, a window of 4 that moves by 1 every 25 iterations and rolls back, clip 1e-4, group std "
    "with ddof 1, rewards normalised one by one",
)
def test_mix_settings() -> None:
    made = composition.build("mix_grpo")
    none = torch.zeros(1, dtype=torch.int64)
    start, kept = 0, 0
    for iteration in range(500):  # GRPOTrainingStates, progressive, overlapping by 1
        assert made.sampler.window(25, Draw.of(none, none, iteration, 0)).recorded == range(start, start + 4)
        kept += 1
        if kept == 25:
            start, kept = start + 1, 0
    assert (made.sampler.steps, made.sampler.dynamics.noise_level, made.objective.clip_range) == (25, 0.7, (1e-4, 1e-4))
    assert (made.advantage.merge, made.advantage.ddof, made.sampler.share_noise) == ("advantages", 1, True)
