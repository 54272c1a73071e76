"""Methods whose samples share steps (BranchGRPO, TreeGRPO, TempFlow-GRPO, Flash-GRPO, G2RPO, E-GRPO), and with rewards
of steps (DenseGRPO, TP-GRPO)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from flowrl import composition
from flowrl.math.flow import FlowSDE
from tests.fidelity import cell, release
from tests.fidelity.bench import GUIDANCE, Trial, alike, sd3_times, trial
from tests.fidelity.test_flow_grpo_family import cps, sde
from tests.fidelity.test_step_methods import dance

release("branch_grpo", "Fredreic1849/BranchGRPO ffc3c90")
release("tree_grpo", "none to be had; arXiv:2512.08153, abstract and project page")
release("tempflow_grpo", "as ported by Tencent-Hunyuan/UniRL 5e3dfd8; the authors' README")
release("flash_grpo", "Shredded-Pork/Flash-GRPO 2375974")
release("g2rpo, e_grpo", "shengjun-zhang/VisualGRPO 809e8f7")
release("dense_grpo", "none to be had; arXiv:2601.20218, abstract")
release("turning_point", "YunzeTong/TurningPoint-GRPO f9f6ff4")

Kernel = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def flow_sde(x: Tensor, v: Tensor, x_next: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
    """The log-density of Flow-GRPO's kernel at noise level .7."""
    return sde(x, v, x_next, t, t_next, 0.7)[0]


def linear(x: Tensor, v: Tensor, x_next: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
    """The same with g = .98 t, the kernel for Wan."""
    dt, g = t_next - t, 0.98 * t
    mean = x * (1 + g**2 / (2 * t) * dt) + v * (1 + g**2 * (1 - t) / (2 * t)) * dt
    whole = g * (-dt).sqrt()
    return (-((x_next - mean) ** 2) / (2 * whole**2) - whole.log()).mean(dim=1)


def clipped(it: Trial, kernel: Kernel, clip: float, advantage: Tensor, scale: float = GUIDANCE) -> Tensor:
    """[N, D] of every recorded step, both guidance branches in the graph."""
    steps, index, columns = it.rollout.trace, it.rollout.condition.index, []
    for j in range(steps.t.shape[1]):
        x, x_next = steps.x[:, j].double(), steps.x_next[:, j].double()
        t, t_next = steps.t[:, j][:, None], steps.t_next[:, j][:, None]

        def log_prob(x=x, x_next=x_next, t=t, t_next=t_next) -> Tensor:
            return kernel(x, it.policy.guided(x.float(), t[:, 0], index, scale).double(), x_next, t, t_next)

        with it.policy.using("sampled"):
            before = log_prob()
        ratio, a = (log_prob() - before).exp(), advantage[:, j]
        columns.append(torch.maximum(-a * ratio, -a * ratio.clamp(1 - clip, 1 + clip)))
    return torch.stack(columns, dim=1)


def blocks(it: Trial, size: int) -> list[slice]:
    """Bunches of so many samples that follow one another."""
    return [slice(start, start + size) for start in range(0, len(it.draw), size)]


def normalised(values: Tensor, ddof: int, eps: float) -> Tensor:
    """By mean and standard deviation."""
    return (values - values.mean()) / (values.std(correction=ddof) + eps)


@cell(
    "branch_grpo",
    "loss, gradient",
    "equal",
    "the mean of its leaves for every node, normalised in its depth; clipped edges, each once, averaged",
)
def test_branch_gradient() -> None:
    it = trial("branch_grpo", off=0.02, each=16, flat=False, clip=2e-3)
    steps, reward = it.rollout.trace, it.scores.total
    kept, advantage = torch.zeros(steps.t.shape, dtype=torch.bool), torch.zeros(steps.t.shape).double()
    for d in range(steps.t.shape[1]):
        leaves = 16 >> sum(fork <= d for fork in (0, 3, 6, 9))  # below a node that step d leads to
        kept[::leaves, d] = True
        for tree in blocks(it, 16):
            level = normalised(reward[tree].reshape(-1, leaves).mean(dim=1), 1, 1e-8)
            advantage[tree, d] = level.repeat_interleave(leaves)
    assert torch.allclose(it.advantage, advantage.clamp(-5, 5))
    loss = clipped(it, lambda *given: dance(*given, 0.3), 2e-3, advantage.clamp(-5, 5))
    assert alike(it.gradient(), it.gradient_of(loss[kept].mean()))
    assert 0.05 < it.metrics["clip_fraction"] < 0.95


@cell("branch_grpo", "defaults", "equal", "16 leaves of 20 steps that fork at 0, 3, 6 and 9, eta .3, clip 1e-3, no KL")
def test_branch_defaults() -> None:
    made = composition.build("branch_grpo")
    sampler = made.sampler
    assert (sampler.steps, sampler.forks, sampler.width, sampler.dynamics.noise) == (20, (0, 3, 6, 9), 2, 0.3)
    assert made.objective.clip_range == (1e-3, 1e-3) and not made.regularizers and sampler.decode_clean


@cell(
    "branch_grpo",
    "loss, gradient",
    "option",
    "pruning by depth: `loss_weight: {use: without_events, events: [...]}`, the mean over the edges that stay",
)
def test_branch_pruning() -> None:
    pruned = {"use": "without_events", "events": [2, 9, 12]}
    it = trial("branch_grpo", off=0.02, each=16, flat=False, clip=2e-3, loss_weight=pruned)
    kept = torch.zeros(it.rollout.trace.t.shape, dtype=torch.bool)
    for d in range(kept.shape[1]):
        kept[:: 16 >> sum(fork <= d for fork in (0, 3, 6, 9)), d] = d not in (2, 9, 12)  # depths 3, 10 and 13
    loss = clipped(it, lambda *given: dance(*given, 0.3), 2e-3, it.advantage)
    assert alike(it.gradient(), it.gradient_of(loss[kept].mean()))


@cell(
    "branch_grpo",
    "loss",
    "deviation",
    "the noise of a fork has the standard deviation that scores it",
    reason="the release multiplies it by 4 and scores it with the kernel's own, so its samples are not the policy's, "
    "and log-densities are off by 7.5 per latent element",
)
def test_branch_noise_of_a_fork() -> None:
    it = trial("branch_grpo", each=16)
    squared = it.rollout.trace.squared  # of 16 elements
    assert 12 < float(squared[::8, 0].mean()) < 20 and 14 < float(squared[:, 9].mean()) < 18
    z = torch.randn(10_000, generator=torch.Generator().manual_seed(0)).double()
    assert float((((4 * z) ** 2) / 2 - z**2 / 2).mean()) == pytest.approx(7.5, abs=0.3)


@cell(
    "branch_grpo",
    "defaults",
    "deviation",
    "its last step is not trained",
    reason="its noise explores nothing; `sampler: {window: {drop: 0}}` trains it",
)
def test_branch_last_step() -> None:
    assert len(composition.build("branch_grpo").sampler.recordable(sd3_times(20))) == 19


@cell("tree_grpo", "loss, gradient", "equal", "normalised leaves, their mean for every edge; clipped steps")
def test_tree_gradient() -> None:
    it = trial("tree_grpo", off=0.02, each=27, flat=False, clip=2e-3)
    reward, advantage = it.scores.total, torch.zeros(81, 3).double()
    for tree in blocks(it, 27):
        leaves = normalised(reward[tree], 1, 1e-8)
        for d, below in enumerate((9, 3, 1)):
            advantage[tree, d] = leaves.reshape(-1, below).mean(dim=1).repeat_interleave(below)
    assert torch.allclose(it.advantage, advantage)
    assert alike(it.gradient(), it.gradient_of(clipped(it, flow_sde, 2e-3, advantage).mean()))


@cell(
    "tree_grpo",
    "defaults",
    "deviation",
    "three forks of width 3 at the first of ten steps, Flow-GRPO's kernel and clip",
    reason="neither abstract nor project page gives them",
)
def test_tree_defaults() -> None:
    made = composition.build("tree_grpo")
    assert (made.sampler.forks, made.sampler.width, made.sampler.steps) == ((0, 1, 2), 3, 10)


@cell(
    "tempflow_grpo",
    "loss, gradient",
    "equal",
    "six siblings of one step normalised together; clipped step times 2.25 s",
)
def test_tempflow_gradient() -> None:
    it = trial("tempflow_grpo", off=0.02, each=54, flat=False, clip=2e-3)
    assert it.rollout.trace.t.shape == (162, 1)
    advantage = torch.cat([normalised(it.scores.total[rows], 0, 1e-4) for rows in blocks(it, 6)])
    t, t_next = it.rollout.trace.t, it.rollout.trace.t_next
    level = 0.7 * (t / (1 - torch.where(t == 1, t_next, t))).sqrt()
    loss = clipped(it, flow_sde, 2e-3, advantage[:, None]) * 2.25 * level * (t - t_next).sqrt()
    assert alike(it.gradient(), it.gradient_of(loss.mean()))
    assert 0.05 < it.metrics["clip_fraction"] < 0.95


@cell("tempflow_grpo", "defaults", "equal", "six branches, weight 2.25, clip 1e-4, advantages within 5, no KL")
def test_tempflow_defaults() -> None:
    made = composition.build("tempflow_grpo")
    assert (made.sampler.siblings, made.loss_weight.scale, made.advantage.clip) == (6, 2.25, 5.0)
    assert made.objective.clip_range == (1e-4, 1e-4) and not made.regularizers


@cell(
    "tempflow_grpo",
    "loss",
    "deviation",
    "samples of other starts are not compared",
    reason="the port's `advantage_group: seed`; its default, all samples of the prompt, credits a step with its start",
)
def test_tempflow_compares_siblings_alone() -> None:
    it = trial("tempflow_grpo", each=54, flat=False)
    means = torch.stack([it.advantage[rows].mean() for rows in blocks(it, 6)])
    assert float(means.abs().max()) < 1e-9


@cell(
    "flash_grpo",
    "loss, gradient",
    "equal",
    "one clipped step of the kernel for Wan, weighted by the released formula over its mean in the batch",
)
def test_flash_gradient() -> None:
    it = trial("flash_grpo", off=0.02, flat=False, clip=2e-3)
    t, t_next = it.rollout.trace.t, it.rollout.trace.t_next
    g, root = 0.98 * t, (t - t_next).sqrt()
    weight = 1 / (root / g + g * root * (1 - t) / (2 * t))
    assert len(t.unique()) > 1
    loss = clipped(it, linear, 2e-3, it.advantage[:, None]) * weight / weight.mean()
    assert alike(it.gradient(), it.gradient_of(loss.mean()))


@cell(
    "flash_grpo",
    "defaults",
    "equal",
    "one step of the first .51 of 20, drawn for each prompt; clip 1e-3, guidance 4.5, std of the batch, no KL",
)
def test_flash_defaults() -> None:
    made = composition.build("flash_grpo")
    sampler = made.sampler
    assert (sampler.steps, sampler.choice, sampler.guidance) == (20, "group", 4.5)
    assert sampler.noisy_steps() == list(range(10)) and made.objective.clip_range == (1e-3, 1e-3)
    assert (made.advantage.scale, made.advantage.ddof) == ("global", 0) and not made.regularizers


@cell(
    "g2rpo, e_grpo",
    "loss, gradient",
    "equal",
    "twelve siblings normalised for each stride; clipped steps, merged where they are",
)
@pytest.mark.parametrize(("name", "clip"), [("g2rpo", 1.0), ("e_grpo", 2e-3)])
def test_granular_gradient(name: str, clip: float) -> None:
    strides = len(composition.build(name).sampler.strides)
    it = trial(name, off=0.02, each=12 * strides * 2, flat=False, clip=clip)
    reward = it.scores.total.reshape(-1, 12, strides)  # bunches, siblings, ends
    each = (reward - reward.mean(dim=1, keepdim=True)) / (reward.std(dim=1, correction=1, keepdim=True) + 1e-8)
    summed = each.sum(dim=2) / strides  # as a mean over ends has it
    loss = clipped(it, flow_sde, clip, summed.repeat_interleave(strides, dim=1).reshape(-1, 1))
    assert alike(it.gradient(), it.gradient_of(loss.mean()))


@cell(
    "g2rpo",
    "loss",
    "deviation",
    "the advantages of the strides are averaged, and each is clipped by itself",
    reason="ends are samples of their own; two strides and twice the learning rate are the release's sum",
)
def test_granular_mean() -> None:
    it = trial("g2rpo", each=24, flat=False)
    assert it.advantage.shape == (72,) and torch.equal(it.rollout.trace.x_next[0], it.rollout.trace.x_next[1])


@cell(
    "g2rpo",
    "defaults",
    "equal",
    "16 steps, the first half noisy in turn, eta .7, strides 1 and 2, clip 1e-4, std of the siblings (ddof 1)",
)
def test_granular_defaults() -> None:
    made = composition.build("g2rpo")
    assert made.sampler.noisy_steps() == list(range(8)) and made.sampler.strides == (1, 2)
    assert made.objective.clip_range == (1e-4, 1e-4) and made.advantage.ddof == 1


@cell(
    "e_grpo",
    "defaults",
    "equal",
    "steps 0, 1, 2 and 4 of 16, made of 1, 1, 2 and 3 of the grid (`finetune_g2rpo_hps_merge`)",
)
def test_merged_defaults() -> None:
    sampler = composition.build("e_grpo").sampler
    assert (sampler.candidates, sampler.merge, sampler.strides) == ((0, 1, 2, 4), (1, 1, 2, 3), (1,))


@cell(
    "e_grpo",
    "loss",
    "deviation",
    "after a merged step the trajectory goes on from the time that the step ended at",
    reason="the release goes on one grid step behind the step's beginning, whatever was merged, so its network is told "
    "a time that the state is not at",
)
def test_after_a_merged_step() -> None:
    it = trial("e_grpo", each=48, iteration=0, steps=8, sampler={"candidates": [1, 3], "merge": [2, 3]})
    times, t_next = sd3_times(8), it.rollout.trace.t_next[:, 0]
    assert sorted(t_next.unique().tolist()) == sorted(times[[3, 6]].tolist())
    x = it.rollout.trace.x_next[:, 0]
    late = (t_next == times[6]).nonzero()[:, 0]
    x, condition = x[late], it.rollout.condition.take(late)
    for k in (6, 7):
        v = it.policy.velocity(x, times[k].expand(len(x)), condition)
        x = x + (times[k + 1] - times[k]).float() * v
    assert torch.allclose(x, it.rollout.final[late], atol=1e-5)
    s = FlowSDE(0.7).coefficients(times[[3, 3]], times[[4, 6]])[2]
    assert float(s[1]) > 1.5 * float(s[0])


def gains(it: Trial) -> tuple[Tensor, Tensor]:
    """``(rewards [N, D + 1] of the deterministic ends of all states, the sample's own)``, walked by hand."""
    steps, times, columns = it.rollout.trace, it.rollout.times, []
    with it.policy.using("sampled") as asked:
        for d in range(steps.states.shape[1]):
            x = steps.states[:, d]
            for k in range(d, len(times) - 1):
                v = asked.velocity(x, times[k].expand(len(x)), it.rollout.condition)
                x = x + (times[k + 1] - times[k]).float() * v
            columns.append(x.double().sum(dim=1).tanh())
    return torch.stack(columns, dim=1).detach(), it.rollout.final.double().sum(dim=1).tanh()


def by_group(values: Tensor, group: Tensor) -> Tensor:
    """[N, D] normalised for every step in every group, as PerPromptStatTracker does with rewards of steps."""
    out = torch.zeros_like(values)
    for g in group.unique():
        mine = values[group == g]
        out[group == g] = (mine - mine.mean(dim=0)) / (mine.std(dim=0, correction=0) + 1e-4)
    return out


@cell(
    "dense_grpo", "loss, gradient", "equal", "gains of deterministic completions, normalised for every step; Flow-GRPO"
)
def test_dense_gradient() -> None:
    it = trial("dense_grpo", off=0.02, flat=False, clip=2e-3, kl=0.0)
    rewards, _ = gains(it)
    advantage = by_group(rewards[:, 1:] - rewards[:, :-1], it.scores.group)
    assert torch.allclose(it.advantage, advantage.clamp(-5, 5), atol=1e-3)
    loss = clipped(it, flow_sde, 2e-3, it.advantage)
    assert alike(it.gradient(), it.gradient_of(loss.mean()))


@cell(
    "dense_grpo",
    "defaults",
    "deviation",
    "Flow-GRPO's settings, and its noise level at all times",
    reason="the abstract says that the noise is adapted to each time, and not how",
)
def test_dense_defaults() -> None:
    made = composition.build("dense_grpo")
    assert (made.sampler.steps, made.sampler.dynamics, made.sampler.preview) == (10, FlowSDE(0.7), "ode")


@cell(
    "turning_point",
    "loss, gradient",
    "equal",
    "the whole gain for every step and a turning point's own besides, normalised for every step; FlowCPS's measure",
)
def test_turning_gradient() -> None:
    it = trial("turning_point", off=0.02, flat=False, clip=2e-3)
    rewards, end = gains(it)
    whole = end - rewards[:, 0]
    own = rewards[:, 1:] - rewards[:, :-1]
    signs = own.sign() * whole[:, None].sign()
    reward = whole[:, None].expand_as(own).clone()
    for t in range(own.shape[1]):
        turns = signs[:, 0] > 0 if t == 0 else (signs[:, t - 1] < 0) & (signs[:, t] > 0)
        reward[:, t] += turns.double() * own[:, t]
    assert torch.allclose(it.advantage, by_group(reward, it.scores.group).clamp(-5, 5), atol=1e-3)
    loss = clipped(it, lambda *given: cps(*given, 0.7)[0], 2e-3, it.advantage)
    assert alike(it.gradient(), it.gradient_of(loss.mean()))


@cell(
    "turning_point",
    "defaults",
    "equal",
    "ten steps, nine noisy, CPS .7, clip 1e-5, guidance 4.5, std of the group, no KL (`pickscore_sd3_fast_op3`)",
)
def test_turning_defaults() -> None:
    made = composition.build("turning_point")
    sampler = made.sampler
    assert (sampler.steps, sampler.recorded, sampler.dynamics.noise, sampler.guidance) == (10, 9, 0.7, 4.5)
    assert made.objective.clip_range == (1e-5, 1e-5) and made.advantage.scale == "group" and not made.regularizers


@cell(
    "turning_point",
    "loss",
    "option",
    "`base: gain`, the form of the paper's text: every step's own gain, and from a turning point to the end instead",
)
def test_turning_points_of_the_text() -> None:
    it = trial("turning_point", flat=False, base="gain")
    rewards, end = gains(it)
    own, whole = rewards[:, 1:] - rewards[:, :-1], end - rewards[:, 0]
    signs = own.sign() * whole[:, None].sign()
    turns = signs > 0
    turns[:, 1:] &= signs[:, :-1] < 0
    wanted = by_group(torch.where(turns, end[:, None] - rewards[:, :-1], own), it.scores.group)
    assert torch.allclose(it.advantage, wanted.clamp(-5, 5), atol=1e-3)
