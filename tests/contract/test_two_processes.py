"""Every preset on two processes: the gradients, weights and metrics of one. The processes are threads, which make every
exchange that real ones make; `tests.parity.test_ranks` has real ones."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from flowrl.config import Config
from flowrl.data import PromptSet
from flowrl.runtime.timing import PhaseTimer
from flowrl.score import load_rewards
from flowrl.score.given import GivenReward
from flowrl.session import Session
from flowrl.train import iterate
from flowrl.types import OneProcess, Prompt, Ranks
from tests.contract.toys import (
    GROUP,
    MODES,
    PROMPTS,
    family,
    is_recorded,
    records,
    small,
    spec_of,
    start,
    thorough,
    variants,
)
from tests.launching import settled
from tests.threads import in_threads

UNEVEN = 3
"""Groups, of which one process has two."""
ITERATIONS, UPDATES = 2, 2


class Plain(torch.optim.SGD):
    """Gradient descent, which divides no rounding by rounding, and keeps the gradients [parameters] it was given."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, lr=0.05)
        self.gradients: list[Tensor] = []

    def step(self, closure: Any = None) -> Any:
        every = [p for group in self.param_groups for p in group["params"]]
        self.gradients.append(
            torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in every])
        )
        return super().step(closure)


def reward_of(kind: str, power: int) -> Any:
    """`tests.contract.toys.reward` of what a policy decodes to, to a power; longer prompts earn less."""

    def texts(completions: list[str], prompts: list[str], **columns: Any) -> list[float]:
        return [(text.count("1") / 3) ** power for text in completions]

    def closeness(images: Tensor, prompts: list[str], **columns: Any) -> Tensor:
        near = (-((images[:, 0, 0] - MODES[0]) ** 2).sum(dim=1) / 4).exp() ** power
        return near / torch.tensor([float(len(prompt)) for prompt in prompts])

    def pictures(images: Tensor, prompts: list[str], **columns: Any) -> Tensor:
        return closeness(images, prompts)

    pictures.gradient = closeness
    return pictures if kind == "diffusion" else texts


def session_of(variant: str, where: str) -> Session:
    """A run of the preset on its toy: a few groups, which two processes cannot share evenly."""
    algorithm, kind = small(variant), family(variant)
    policy, group = start(algorithm), GROUP
    prompts = [Prompt(PROMPTS[n % len(PROMPTS)], n) for n in range(UNEVEN)]
    if is_recorded(algorithm) or hasattr(algorithm.sampler, "prepared"):
        count = 5 if is_recorded(algorithm) else UNEVEN
        prompts = records(algorithm, policy, count, 0, 0)
    given: dict[str, GivenReward] = {}
    specs: list[Any] = ["feedback"]
    if is_recorded(algorithm):
        group = algorithm.sampler.group
    elif kind == "control":
        specs = ["episode_return"]  # the environment's own
    else:
        kinds = getattr(algorithm.advantage, "rewards", 1)
        every = [GivenReward.of(reward_of(kind, 1 + n), f"toy{n}") for n in range(kinds)]
        given = {reward.use: reward for reward in every}
        specs = [{"use": reward.use, "weight": 1 / kinds} for reward in every]
    config = Config.of({
        "name": "toy",
        "out": where,
        "model": {"path": {"diffusion": "shapes", "control": "avoid"}.get(kind, "countdown")},
        "algorithm": spec_of(variant),
        "data": {"prompts": len(prompts), "group": group, "test": None},
        "rewards": specs,
        "optimizer": {"max_grad_norm": 1.0},
        "train": {"iterations": 9, "updates": UPDATES, "micro_batch": 7, "sample_batch": 1000, "ema": None},
        "eval": {"every": 0, "weights": "live"},
        "monitor": {"samples": 0},
        "log": {"samples": 0},
    })  # fmt: skip
    rewards = load_rewards(config.rewards, given=given)
    beside = {each.name: Plain(policy.parameters()) for each in algorithm.companions}
    optimizer = Plain(policy.parameters())
    return Session(config, policy, algorithm, PromptSet(tuple(prompts)), None, rewards, optimizer, companions=beside)


def run(sessions: list[Session], ranks: Ranks) -> tuple[list[Tensor], list[dict[str, float]], int]:
    """The gradients, then the weights; the metrics; and how many samples this process held."""
    session = sessions[ranks.rank]
    session.ranks = ranks
    metrics, held = [], 0
    for _ in range(ITERATIONS):
        found, made, _ = iterate(session, PhaseTimer())
        metrics.append(settled(found))
        held += int((made.share.here >= 0).sum())
    every: list[Any] = [session.optimizer, *session.companions.values()]
    gradients = [gradient for optimizer in every for gradient in optimizer.gradients]
    weights = [value.flatten() for _, value in sorted(session.policy.weights.state().items())]
    return [*gradients, torch.cat(weights)], metrics, held


@pytest.mark.parametrize("name", thorough(variants(), quick=("dpo", "flow_grpo", "grpo")))
def test_two_processes_are_one(name: str, tmp_path: Any) -> None:
    make = partial(session_of, name, str(tmp_path))
    wanted, told, alone = run([make()], OneProcess())
    both = in_threads(2, partial(run, [make(), make()]))
    assert any(float(each.norm()) > 0 for each in wanted[:-1]), "nothing was learned"
    assert [held for *_, held in both] != [alone, alone] and sum(held for *_, held in both) == alone
    for found, metrics, _ in both:
        assert len(found) == len(wanted)
        for mine, other in zip(found, wanted, strict=True):
            assert float((mine - other).norm()) < 1e-4 * float(other.norm()) + 1e-7
        for mine, other in zip(metrics, told, strict=True):
            assert mine == pytest.approx(other, rel=1e-3, abs=1e-5, nan_ok=True)
    (first, *_), (second, *_) = both
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True)), "the processes drift"
