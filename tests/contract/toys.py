"""Toy worlds on which every preset of a family can be run in milliseconds."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from flowrl import composition
from flowrl.estimators.matching import MatchingRows
from flowrl.math.random import derive, seeds
from flowrl.models.control.policy import ControlPolicy
from flowrl.models.tiny_flow import TinyCondition, TinyFlow
from flowrl.models.tiny_text import TinyText
from flowrl.parts.advantages import RawReward
from flowrl.parts.algorithm import Algorithm
from flowrl.samplers.branching import OneStepSampler, TreeSampler
from flowrl.samplers.categorical import CategoricalSampler
from flowrl.samplers.causal import CausalSampler
from flowrl.samplers.chunks import sample
from flowrl.samplers.demonstrations import Demonstrations
from flowrl.samplers.deployed import Deployed
from flowrl.samplers.episodes import EpisodeSampler
from flowrl.samplers.gaussian import GaussianSampler
from flowrl.samplers.mixed import Mixed
from flowrl.samplers.recorded import MakesNothing, Recorded
from flowrl.samplers.verified import PastVerified
from flowrl.step import UpdateSettings, improve
from flowrl.types import Draw, Likelihood, Prompt, Rollout, Rows, Scores, Table, prompts_of
from tests.contract.toy_environment import choosing_policy, demonstrations, toy_policy


@dataclass(frozen=True)
class GivenNoise(MatchingRows):
    """A probe of noise that a test chose."""

    given: Tensor

    @property
    def noise(self) -> Tensor:
        return self.given


def matching_rows(clean: Tensor, noise: Tensor, t: Tensor) -> MatchingRows:
    """Where a policy is asked to denoise: latents and noise [N, M, ...], times [N, M]."""
    none = torch.zeros(t.shape, dtype=torch.int64)
    return GivenNoise(clean, none, none, t, t.shape[1], noise)


MODES = torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 2.0]])
PROMPTS = ("a", "b")
GROUP = 16
LENGTH, END = 3, 0
SIZES = {
    "masked": {"length": LENGTH, "steps": LENGTH, "block": LENGTH},
    "causal": {"length": LENGTH},
    "reward": {"length": LENGTH},
    "diffusion": {},
    "control": {"environment": "tests.contract.toy_environment:make", "decisions": 3},
}

NEEDS: dict[str, dict[str, Any]] = {
    "spg": {"length": 4, "block": 2},  # two blocks, the second one cut short
    "stable_drl": {"length": 4, "block": 2},
    "bvpo": {"trace_end": "2", "empty_trace": ""},
    "brpo": {"budgets": (1, 2), "answers": 2, "think_end": "2", "cut": "", "bridge": ""},
    "d_treerpo": {"length": 4, "steps": 4, "block": 1},  # each of its two levels takes blocks of its own
    "igpo": {"correct": 0.6, "sampler": {"least": 1, "most": 1, "low": 0.4, "high": 0.9}},  # hints of a token
    "diffusion_policy": {"length": 3},
    "mip": {"length": 3},
    "ptp": {"length": 3, "past_weight": 0.5},
    "fql": {"width": 64, "depth": 2},
    "pa_rl": {"width": 64, "depth": 2, "candidates": 8, "keep": 4},
    "expo": {"width": 64, "depth": 2, "candidates": 4, "edits": 4},
    "qam": {"width": 64, "depth": 2, "critics": 3},
    "dqc": {"width": 64, "depth": 2, "backup": 2, "candidates": 8},
    "gtpo": {"most": 2.0},  # nats; three tokens of nearly even odds are above its .7
}
"""Arguments without which a preset would have nothing to do in these worlds."""


@dataclass
class Iteration:
    policy: Any
    rollout: Rollout
    scores: Scores
    advantage: Tensor
    draw: Draw


def variants() -> list[str]:
    """All presets; those for several families once more for each but the default, as ``sft/masked``."""
    pairs = [(name, composition.families(name)) for name in composition.preset_names()]
    return [each for name, kinds in pairs for each in (name, *(f"{name}/{kind}" for kind in kinds[1:]))]


OF_EACH_KIND = (
    "adjoint_matching",
    "branch_grpo",
    "chord",
    "diffusion_nft",
    "dpo",
    "draft",
    "flow_grpo",
    "forking_tokens",
    "fpo",
    "grpo",
    "just_grpo",
    "marble",
    "opd",
    "ppo",
    "reward_model",
    "rwr",
    "spg",
    "trajectory_pg",
)
"""Presets that stand for the others in quick tests."""


def thorough(names: list[str], quick: tuple[str, ...] = OF_EACH_KIND) -> list[Any]:
    """The names as parameters of a test, those that others stand for among the slow tests."""
    return [pytest.param(name, marks=[] if name in quick else pytest.mark.slow) for name in names]


def spec_of(variant: str) -> dict[str, Any]:
    """The preset of `variants` as a config has it."""
    name, _, kind = variant.partition("/")
    return {"use": name, **({"family": kind} if kind else {})}


def family(variant: str) -> str:
    return variant.partition("/")[2] or composition.families(variant)[0]


def known_options(variant: str) -> Mapping[str, Any]:
    """The options of a preset by name."""
    return inspect.signature(composition.find_preset(variant.partition("/")[0])).parameters


def taken(variant: str, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Those of these sizes that a preset has: one that decodes token by token has no steps and blocks of its own."""
    known = known_options(variant)
    return {key: value for key, value in sizes.items() if key in known or key not in ("steps", "block")}


def small(name: str, steps: int = 6, **spec: Any) -> Algorithm:
    """The preset (or one of `variants`) at toy sizes; only resource-like arguments are changed."""
    kind = family(name)
    sizes = {**spec_of(name), **taken(name, SIZES[kind]), **NEEDS.get(name.partition("/")[0], {})}
    if kind == "masked" and {"family", "draws"} <= set(known_options(name)):
        sizes["draws"] = 2
    algorithm = composition.build({**sizes, **spec})
    if kind == "control":
        steps = 2 if algorithm.network.get("kind") == "mip" else steps
        return replace(algorithm, sampler=small_sampler(algorithm.sampler, steps))
    if is_recorded(algorithm):
        changes = {"diffusion": {"steps": steps}, "masked": SIZES["masked"]}.get(kind, {})
        sampler: Any = algorithm.sampler
        return replace(algorithm, sampler=replace(sampler, sampler=replace(sampler.sampler, **changes)))
    if kind == "diffusion":
        return replace(algorithm, sampler=small_sampler(algorithm.sampler, steps))
    return algorithm


def is_recorded(algorithm: Algorithm) -> bool:
    """Whether it reads its samples from a data set."""
    return isinstance(algorithm.sampler, Recorded | Demonstrations)


def records(algorithm: Algorithm, policy: Any, count: int, iteration: int, seed: int) -> list[Prompt]:
    """Prompts with samples in the columns that the algorithm reads: what the policy's reference would make, the better
    ones first, and their rewards (as labels: above the median or not) in the columns of ratings."""
    sampler: Any = getattr(algorithm.sampler, "data", algorithm.sampler)
    if isinstance(sampler, Demonstrations):
        return sampler.prepared(demonstrations(count, derive(seed, "records", iteration)), "toys")
    alone = len(sampler.columns) == 1 and not sampler.ratings
    each = 8 if alone else len(sampler.columns)  # demonstrations are the best of eight
    texts = [PROMPTS[index % len(PROMPTS)] for index in range(count) for _ in range(each)]
    group = torch.arange(count).repeat_interleave(each)
    draw = Draw.of(seeds(seed, "records", iteration, count=count * each), group, iteration, 0, prompts_of(texts))
    base = start(algorithm, disturbed=False)
    final = maker(sampler)(base, base.condition(draw.prompts), draw).final
    rewards, made = reward(base, final), base.decode(final)
    found = []
    for index in range(count):
        rows = (group == index).nonzero()[:, 0]
        rows = rows[rewards[rows].argsort(descending=True, stable=True)].tolist()
        columns = {name: made[row] for name, row in zip(sampler.columns, rows, strict=False)}
        said = [bool(rewards[row] > rewards.median()) if each == 1 else float(rewards[row]) for row in rows]
        columns |= dict(zip(sampler.ratings, said, strict=False))
        found.append(Prompt(texts[index * each], index, columns))
    return sampler.prepared(found, "toys")


def maker(recorded: Any) -> Any:
    """What makes samples where an algorithm reads them: of a reward model a sampler of the policy that it implies."""
    return CausalSampler(length=LENGTH) if isinstance(recorded.sampler, MakesNothing) else recorded.sampler


def small_sampler(sampler: Any, steps: int) -> Any:
    """With few steps, and trees that fit into a group."""
    if isinstance(sampler, TreeSampler):
        return replace(sampler, steps=steps, forks=(0, 1), width=2)
    if isinstance(sampler, Mixed):
        return replace(sampler, sampler=small_sampler(sampler.sampler, steps))
    if isinstance(sampler, OneStepSampler):
        merge = sampler.merge if len(sampler.merge) == 1 else (1, 2)
        candidates = None if sampler.candidates is None else (0, 2)
        siblings = min(sampler.siblings, 4)
        return replace(sampler, steps=steps, candidates=candidates, merge=merge, siblings=siblings)
    if isinstance(sampler, EpisodeSampler | Demonstrations | PastVerified):
        return replace(sampler, sampler=small_sampler(sampler.sampler, steps))
    kept = isinstance(sampler, GaussianSampler | CategoricalSampler | Deployed)
    return sampler if kept else replace(sampler, steps=steps)


def start(algorithm: Algorithm, disturbed: bool = True) -> Any:
    """A policy whose weight sets all hold its present weights, but for the teachers."""
    if algorithm.family == "diffusion":
        policy: Any = TinyFlow(MODES, prompts=PROMPTS)
    elif algorithm.family == "control":
        needed = {name: getattr(algorithm, name) for name in ("residual", "beside", "acting", "network")}
        choosing = isinstance(getattr(algorithm.sampler, "sampler", None), CategoricalSampler)
        policy = choosing_policy() if choosing else toy_policy(noise=algorithm.explores, **needed)
    else:
        length = algorithm.sampler.length
        policy = TinyText(3, length, PROMPTS, causal=algorithm.family in ("causal", "reward"), end=END, scale=0.5)
    if disturbed:
        disturb(policy)
    for name in algorithm.weight_sets:
        policy.update_ema(name, 0.0)
    for name in algorithm.teachers:
        teach(policy, name)
    return policy


def teach(policy: Any, name: str) -> None:
    """Make a weight set a teacher's, which knows what is rewarded: the first mode, or ones and no end."""
    before = [parameter.detach().clone() for parameter in policy.parameters()]
    with torch.no_grad():
        if isinstance(policy, TinyFlow):
            for parameter, taught in zip(policy.parameters(), first_mode(), strict=True):
                parameter.copy_(taught)
        else:
            policy.table[..., 1] += 2.0
            policy.table[..., END] -= 1.0
        policy.update_ema(name, 0.0)
        for parameter, value in zip(policy.parameters(), before, strict=True):
            parameter.copy_(value)


@cache
@torch.enable_grad()
def first_mode() -> list[Tensor]:
    """The weights of a toy flow that was fitted to samples of the first mode."""
    policy = TinyFlow(MODES, prompts=PROMPTS)
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.02)
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        noise, near = torch.randn(2, 128, 2, generator=generator)
        t = torch.rand(128, 1, generator=generator)
        clean, index = MODES[0] + policy.std * near, torch.arange(128) % len(PROMPTS)
        x = (1 - t) * clean + t * noise
        loss = (policy.velocity(x, t[:, 0], TinyCondition(index)) - (noise - clean)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return [parameter.detach() for parameter in policy.parameters()]


def reward(policy: Any, final: Tensor) -> Tensor:
    """Closeness to the first mode, the share of ones before the end, or an episode's return, in [0, 1]."""
    if isinstance(policy, TinyFlow):
        return (-((final - MODES[0]) ** 2).sum(dim=1) / 4).exp().double()
    if isinstance(policy, ControlPolicy):
        return final[:, 0]
    texts = policy.decode(final)
    return torch.tensor([text.count("1") / policy.length for text in texts]).double()


@dataclass(frozen=True)
class ToyJudge:
    """The toys' reward with its gradient; of other words than the first of several it likes little."""

    policy: Any
    names: tuple[str, ...] = ("toy",)

    def __call__(self, clean: Tensor, rows: Tensor) -> Tensor:
        return reward(self.policy, self.policy.decode(clean, graph=True)[:, 0, 0])[:, None]

    def in_words(self, clean: Tensor, rows: Tensor, templates: Sequence[str]) -> list[Tensor]:
        return [self(clean, rows) * 0.2**k for k in range(len(templates))]


def rollout_of(
    condition: Any, final: Tensor, trace: Any = None, *, group: Any = None, seeds: Any = None, times: Any = None
) -> Rollout:
    """A rollout that no sampler made: rows of one group, with the streams 0, 1, ..."""
    rows = torch.arange(len(final))
    group = torch.zeros_like(rows) if group is None else group
    draw = Draw.of(rows if seeds is None else seeds, group, 0, 0)
    return Rollout.of(draw, condition, final, trace, times=times)


def table_of(advantage: Tensor, mask: Tensor, old: Likelihood | None = None, rows: Rows | None = None) -> Table:
    """A table of one group that no update made."""
    group = torch.zeros(len(mask), dtype=torch.long)
    even = torch.ones(mask.shape, dtype=torch.float64)
    return Table(rows or Rows(), group, group, None, advantage, mask, even, old)


def roll(algorithm: Algorithm, policy: Any, iteration: int = 0, seed: int = 0, rows: int = 1000) -> Iteration:
    count, each, asked = GROUP * len(PROMPTS), GROUP, prompts_of(PROMPTS)
    if is_recorded(algorithm):
        each = algorithm.sampler.group
        asked = records(algorithm, policy, count // each, iteration, seed)
    elif hasattr(algorithm.sampler, "prepared"):  # demonstrations beside the policy's own samples
        asked = records(algorithm, policy, len(PROMPTS), iteration, seed)
    group = torch.arange(count // each).repeat_interleave(each)
    prompts = [asked[g] for g in group]
    shared = derive(seed, "shared", iteration)
    draw = Draw.of(seeds(seed, "sample", iteration, count=count), group, iteration, shared, prompts)
    condition = policy.condition(draw.prompts)
    with policy.using(algorithm.behaviour):
        rollout = sample(algorithm.sampler, policy, condition, draw, rows)
    if algorithm.judged:
        rollout = replace(rollout, judge=ToyJudge(policy))
    kinds = getattr(algorithm.advantage, "rewards", 1)  # several: powers of the one, of which their mean is the total
    rewards = torch.stack([reward(policy, rollout.final) ** (1 + kind) for kind in range(kinds)], dim=1)
    weights, names = torch.full((kinds,), 1 / kinds).double(), tuple(f"toy_{kind}" for kind in range(kinds))
    if algorithm.family == "control":
        names = ("episode_return",)
    said = {"source": rollout.source, "feedback": rollout.feedback, "nodes": rollout.nodes}
    if rollout.trace is not None and rollout.trace.previews is not None:
        said["steps"] = torch.stack([reward(policy, step) for step in rollout.trace.previews.unbind(dim=1)], dim=1)
    scores = Scores(rewards, weights, names, group, group, torch.ones(count).bool(), **said)
    return Iteration(policy, rollout, scores, algorithm.advantage(scores, {}), draw)


def level(algorithm: Algorithm, policy: Any, iteration: int) -> float:
    """The mean reward of what the policy makes."""
    if hasattr(algorithm.sampler, "prepared"):
        own: Any = maker(algorithm.sampler) if is_recorded(algorithm) else algorithm.sampler
        heldout = own.heldout(None, None, None)
        algorithm = replace(algorithm, sampler=heldout, advantage=RawReward())
    return float(roll(algorithm, policy, iteration).scores.rewards.mean())


class Recorder(torch.optim.SGD):
    """An optimiser that notes the gradients it is given and changes nothing."""

    def __init__(self, parameters) -> None:
        super().__init__(parameters, lr=0.0)
        self.gradients: list[Tensor] = []

    def step(self, closure=None):
        parts = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.param_groups[0]["params"]]
        self.gradients.append(torch.cat([g.flatten().clone() for g in parts]))


def gradients(algorithm: Algorithm, it: Iteration, **settings) -> list[Tensor]:
    recorder = Recorder(it.policy.parameters())
    algorithm = replace(algorithm, ema_weights=())  # measuring moves no target either
    options = UpdateSettings(max_grad_norm=1e9, **settings)
    improve(it.policy, recorder, algorithm, it.rollout, it.scores, it.advantage, options)
    return recorder.gradients


def disturb(policy: Any, size: float = 0.05) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))
