"""GARDO, DiverseGRPO and DDRL: what holds a policy that a reward misleads."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from flowrl import composition
from flowrl.math.random import normal, seeds
from flowrl.parts.penalty_weights import Doubted
from flowrl.types import DATA, Draw, Prompt, Scores
from tests.contract.toys import disturb
from tests.fidelity import cell, release
from tests.fidelity.bench import GUIDANCE, PROMPTS, SIZE, GuidedFlow, Trial, alike, trial
from tests.fidelity.test_flow_grpo_family import cps, replay, sde

release("gardo", "tinnerhrhe/GARDO 1cc77fb, 6 Jan 2026; also in yifan123/flow_grpo 94e23ee")
release("ddrl", "nvidia-cosmos/cosmos-rl 89f2e5b")
release("diverse_grpo", "none; arXiv:2512.21514, on Flow-GRPO's code")


def judged(it: Trial, seed: int = 1) -> Trial:
    """With two watched judges and the novelty of every sample."""
    n = len(it.scores.group)
    generator = torch.Generator().manual_seed(seed)
    further = torch.rand(n, 3, generator=generator, dtype=torch.float64)
    scores = replace(
        it.scores,
        rewards=torch.cat([it.scores.rewards, further], dim=1),
        weights=torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64),
        names=("sum", "aesthetic", "imagereward", "novelty"),
    )
    return replace(it, scores=scores, advantage=it.algorithm.advantage(scores, {}))


def released_gate(rewards: Tensor, share: float, sign: float) -> Tensor:
    """The ranks, the best being 1, and the percentile of those at 0 or above; ``sign`` 1 is the released one."""
    ranks = []
    for column in rewards.T:
        order = column.argsort(descending=True)
        rank = torch.empty_like(order)
        rank[order] = torch.arange(1, len(column) + 1)
        ranks.append(rank.double())
    doubt = sign * (ranks[0] - (ranks[1] + ranks[2]) / 2)
    threshold = np.percentile([value for value in doubt.tolist() if value >= 0], 100 - share * 100)
    return doubt > threshold


def released_credit(reward: Tensor, distance: Tensor, group: Tensor) -> Tensor:
    """PerPromptStatTracker.update of type 'gardo'."""
    out = torch.empty_like(reward)
    for key in group.unique():
        mine = group == key
        centred = reward[mine] - reward[mine].mean()
        out[mine] = centred * torch.where(centred < 0, 1.0, distance[mine] / distance[mine].mean())
    return out


def step_losses(it: Trial, gate: Tensor, clip: float, kl: float, to: str, plain: bool = False) -> Tensor:
    """The released loop: clipped steps, and the KL's mean over the samples of the gate."""
    every, terms = torch.ones(len(gate)).bool(), []
    advantage = it.advantage.clamp(-5, 5)
    for j in range(it.rollout.trace.t.shape[1]):
        arguments = (it, sde, 0.7, every, j, GUIDANCE)
        with it.policy.using("sampled"):
            before, _, _ = replay(*arguments)
        log_prob, mean, std = replay(*arguments)
        ratio = (log_prob - before).exp()
        terms.append(torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + clip)).mean())
        with it.policy.using(to):
            _, mean_ref, _ = replay(*arguments)
        squared = (mean - mean_ref) ** 2
        terms[-1] = terms[-1] + kl * (squared if plain else squared / (2 * std**2))[gate].mean()
    return torch.stack(terms).mean()


@cell("gardo", "loss, gradient", "equal", "clipped steps, and the KL to the anchor as a mean over the doubted samples")
def test_gardo_gradient() -> None:
    it = judged(trial("gardo", off=0.02, flat=False, clip=0.002, penalty_weight={"share": 0.2}))
    weight = it.algorithm.penalty_weight
    assert weight is not None
    gate = released_gate(it.scores.rewards[:, :3], 0.2, 1)
    assert 0 < int(gate.sum()) < len(gate)
    held = replace(it, scores=replace(it.scores, penalty_weight=weight(it.scores, {})))
    assert alike(held.gradient(), it.gradient_of(step_losses(it, gate, 0.002, 0.04, "anchor")))
    assert not alike(held.gradient(), it.gradient(), 1e-3)  # without the gate


@cell("gardo", "loss", "equal", "the centred reward, above the mean times the relative distance to the nearest sample")
def test_gardo_advantage() -> None:
    it = judged(trial("gardo", flat=False))
    found = released_credit(it.scores.rewards[:, 0], it.scores.rewards[:, 3], it.scores.group)
    assert torch.allclose(it.advantage, found.clamp(-5, 5))
    # the sheet's example: distances of the features (1, 0), (.99, .14), (0, 1), (.7, .7)
    features = torch.nn.functional.normalize(torch.tensor([[1, 0], [0.99, 0.14], [0, 1], [0.7, 0.7]]).double(), dim=1)
    distance = 1 - (features @ features.T).fill_diagonal_(-1).max(dim=1).values
    credit = released_credit(torch.tensor([1, 1, 1, 0]).double(), distance, torch.zeros(4))
    assert torch.allclose(credit, torch.tensor([0.019, 0.019, 0.570, -0.75]).double(), atol=1e-3)


@cell(
    "gardo",
    "loss",
    "equal",
    "the samples that the reward rates below its judges are held, as the released ranks have it; the paper's, those it "
    "rates above them, by `penalty_weight: {rated: above}`",
)
def test_gardo_holds_what_the_release_holds() -> None:
    it = judged(trial("gardo", flat=False))
    assert it.algorithm.penalty_weight == Doubted(rated="below")
    for rated, sign in (("above", -1), ("below", 1)):
        weight = Doubted(share=0.2, rated=rated)(it.scores, {})
        assert torch.equal(weight > 0, released_gate(it.scores.rewards[:, :3], 0.2, sign))
        assert float(weight.mean()) == 1.0
    rewards = it.scores.rewards.clone()
    rewards[0, :3] = torch.tensor([1e3, -1e3, -1e3])  # liked by the reward alone
    spoiled = replace(it.scores, rewards=rewards)
    assert Doubted()(spoiled, {})[0] > 0 and Doubted(rated="below")(spoiled, {})[0] == 0


@cell(
    "gardo",
    "defaults",
    "equal",
    "beta .04, clip 1e-4, a tenth of those above 0, within .02 and .2 and by a tenth, renewal above 3e-4 or after 15",
)
def test_gardo_defaults() -> None:
    made = composition.build("gardo")
    assert [made.regularizers[0].weight, made.objective.clip_range] == [0.04, (1e-4, 1e-4)]
    renewal, weight, seen, beta, memory = made.coefficients[0], Doubted(), [], 0.1, {}
    levels = torch.rand(60, generator=torch.Generator().manual_seed(2)).tolist()
    for level in levels:
        if seen and level > max(seen):
            beta *= 1.1
        elif seen and level < min(seen):
            beta *= 0.9
        beta = float(np.clip(beta, 0.02, 0.2))
        seen = [*seen, level][-20:]
        assert weight._followed(level, memory) == beta
    prev, age, reset = 0, 0.0, False
    for epoch, kl in enumerate(torch.rand(80, generator=torch.Generator().manual_seed(3)).mul(3.1e-4).tolist()):
        renewed = (epoch != 0 and reset) or epoch - prev > 15
        assert renewed == (epoch > 0 and age == 0)
        prev, reset = (epoch, False) if renewed else (prev, reset)
        reset |= kl > 3e-4
        age = renewal(age, {"kl/anchor": kl}, epoch + 1)


@cell(
    "diverse_grpo",
    "loss, gradient",
    "deviation",
    "a bonus of .2 / n for a picture of a cluster of n, and the shift of the mean in early steps alone",
    reason="only the forms are known from what could be read of the paper; the numbers are ours",
)
def test_diverse_grpo_gradient() -> None:
    it = trial("diverse_grpo", off=0.02, flat=False, clip=0.002)
    generator = torch.Generator().manual_seed(1)
    rare = 1 / torch.randint(1, 5, (len(it.scores.group),), generator=generator).double()
    scores = replace(
        it.scores,
        rewards=torch.stack([it.scores.rewards[:, 0], rare], dim=1),
        weights=torch.tensor([1.0, 0.0], dtype=torch.float64),
        names=("sum", "rarity"),
    )
    it = replace(it, scores=scores, advantage=it.algorithm.advantage(scores, {}))
    total, out = scores.total + 0.2 * rare, torch.empty_like(rare)
    for key in scores.group.unique():
        mine = scores.group == key
        out[mine] = (total[mine] - total[mine].mean()) / (total.std(correction=0) + 1e-4)
    assert torch.allclose(it.advantage, out)
    t = it.rollout.trace.t[0]
    early = int((t >= 0.8).sum())
    assert 0 < early < len(t)
    every = torch.ones(len(rare)).bool()
    clipped = step_losses(it, every, 0.002, 0.0, "reference")
    shifts = []
    for j in range(early):
        arguments = (it, sde, 0.7, every, j, GUIDANCE)
        with it.policy.using("reference"):
            _, mean_ref, _ = replay(*arguments)
        shifts.append(((replay(*arguments)[1] - mean_ref) ** 2).mean())
    assert alike(it.gradient(), it.gradient_of(clipped + torch.stack(shifts).sum() / len(t)))


@cell("diverse_grpo", "defaults", "deviation", "Flow-GRPO's but for bonus and pull", reason="no code is released")
def test_diverse_grpo_defaults() -> None:
    made, base = composition.build("diverse_grpo"), composition.build("flow_grpo")
    assert made.sampler == base.sampler and made.objective == base.objective
    assert made.regularizers[0].weight == 1.0 and base.regularizers[0].weight == 0.04


def data_trial(**spec: object) -> tuple[Trial, Tensor]:
    """DDRL rolled out on a group of own samples and a recorded one for each prompt, and which rows are recorded."""
    algorithm = composition.build({"use": "ddrl", **spec})
    policy = GuidedFlow()
    disturb(policy, 0.1)
    count = 5 * len(PROMPTS)
    group = torch.arange(len(PROMPTS)).repeat_interleave(5)
    pictures = torch.randn(len(PROMPTS), SIZE, generator=torch.Generator().manual_seed(4))
    policy.encode = lambda given, seeds: torch.stack([pictures[int(one[0, 0, 0])] for one in given])  # pyright: ignore
    columns = [{"image": torch.full((3, 2, 2), float(k))} for k in range(len(PROMPTS))]
    prompts = [Prompt(PROMPTS[g], g, columns[g]) for g in group.tolist()]
    draw = Draw.of(seeds(0, "fidelity", count=count), group, 3, 0, prompts)
    rollout = algorithm.sampler(policy, policy.condition(draw.prompts), draw)
    reward = rollout.final.double().sum(dim=1).tanh()
    scores = Scores(reward[:, None], torch.ones(1).double(), ("sum",), group, group, torch.ones(count).bool())
    scores = replace(scores, source=rollout.source)
    made = Trial(algorithm, policy, rollout, scores, algorithm.advantage(scores, {}), draw)
    policy.update_ema("sampled", 0.0)
    return made, rollout.source == DATA


@cell("ddrl", "loss, gradient", "equal", "clipped steps, and .01 of the denoising error of data at their noise levels")
def test_ddrl_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowrl.samplers.recorded.picture_of", lambda value, prompt: value)
    it, data = data_trial(steps=8, share=1.0, data=0.5)
    steps, index = it.rollout.trace, it.rollout.condition.index
    assert int(data.sum()) == len(PROMPTS) and steps.squared[data].isnan().all()
    reward, group, policing, errors = it.scores.total, it.scores.group, [], []
    advantage = torch.zeros_like(reward)
    for key in group.unique():
        mine = (group == key) & ~data
        advantage[mine] = (reward[mine] - reward[mine].mean()) / (reward[mine].std() + 1e-4)
    noise = normal(it.draw.seeds, (SIZE,), stream=0)
    for j in range(steps.t.shape[1]):
        t = steps.t[0, j]
        x, x_next = steps.x[~data, j].double(), steps.x_next[~data, j].double()
        at = (t.expand(len(x), 1), steps.t_next[~data, j][:, None])
        log_prob = cps(x, it.policy.guided(x.float(), at[0][:, 0], index[~data], 1.0).double(), x_next, *at, 0.193)[0]
        policing.append((-advantage[~data] * (log_prob - log_prob.detach()).exp()).mean())
        clean = it.rollout.final[data]
        noisy = (1 - t) * clean.double() + t * noise[data].double()
        v = it.policy.guided(noisy.float(), t.expand(len(clean)), index[data], 1.0)
        errors.append((v.double() - (noise[data] - clean).double()).square().mean())
    whole = torch.stack(policing).mean() + 0.5 * torch.stack(errors).mean()
    assert alike(it.gradient(), it.gradient_of(whole / 1.5), 1e-4)


@cell(
    "ddrl",
    "defaults",
    "equal",
    "weight .01, clip 1e-4, 20 steps, half of them trained, no guidance, advantages within 5",
)
def test_ddrl_defaults() -> None:
    made = composition.build("ddrl")
    share = made.aggregation.share
    assert share / (1 - share) == pytest.approx(0.01) and made.objective.clip_range == (1e-4, 1e-4)
    assert made.sampler.sampler.steps == 20 and made.sampler.sampler.guidance == 1.0
    assert made.estimator.fraction == 0.5 and made.advantage.clip == 5.0
    churn = 1 / (20 + 1)  # eta of rl_training_step
    assert made.sampler.sampler.dynamics.noise == pytest.approx(2 / math.pi * math.acos(1 / (1 + churn)), abs=1e-3)


@cell(
    "ddrl",
    "loss",
    "deviation",
    "the error of the velocity",
    reason="the release weighs the error of the clean sample as EDM does, which is t^2 + (1 - t)^2 of the velocity's",
)
def test_ddrl_weight_of_a_time() -> None:
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    sigma = t / (1 - t)
    assert torch.allclose((sigma**2 + 1) / sigma**2 * t**2, t**2 + (1 - t) ** 2)
