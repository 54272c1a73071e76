"""Iterations of small runs on a device, with the embedded worlds as models."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowrl import composition
from flowrl.config import Config
from flowrl.runtime.timing import PhaseTimer
from flowrl.session import Session, open_session
from flowrl.startup.preflight import check_run
from flowrl.train import iterate
from tests import fakegpu
from tests.contract.toys import known_options, taken
from tests.device.commands import watched
from tests.launching import settled

WORLDS = {"diffusion": "shapes", "causal": "countdown", "masked": "sudoku", "reward": "countdown"}
SIZES: dict[str, dict[str, Any]] = {
    "diffusion": {"sampler": {"steps": 4}},
    "causal": {"length": 8},
    "masked": {"length": 16, "steps": 4, "block": 8},
    "reward": {"length": 24},
}


TREES: dict[str, dict[str, Any]] = {
    "branch_grpo": {"sampler": {"steps": 4, "forks": [0, 1]}},
    "tree_grpo": {"sampler": {"steps": 4, "forks": [0, 1], "width": 2}},
    "tempflow_grpo": {"sampler": {"steps": 4, "siblings": 2}},
    "g2rpo": {"sampler": {"steps": 4, "siblings": 2}},
    "e_grpo": {"sampler": {"steps": 4, "siblings": 2, "candidates": [0, 2], "merge": [1, 2]}},
    "d_treerpo": {"branches": 2},
    "brpo": {"budgets": [3, 5], "answers": 2, "think_end": "", "cut": "", "bridge": ""},
}
"""Trees that fit into a group of four."""


def config(preset: str, device: str, **changes: Any) -> dict[str, Any]:
    """A run of 2 prompts x 4 samples with LoRA; ``changes`` of a section are laid over it."""
    family = composition.build(preset).family
    world, sizes = WORLDS[family], taken(preset, SIZES[family])
    if preset in ("bgpo", "vrpo", "elbo_pg", "ebpo"):
        sizes["draws"] = 2
    if preset == "igpo":
        sizes["hints"] = 2
    if preset == "tracerl":
        sizes["merge"] = 2
    guidance = known_options(preset).get("guidance")
    if guidance is not None and guidance.default not in (None, guidance.empty):
        sizes["guidance"] = 1.0  # the pipeline is loaded without
    sizes |= TREES.get(preset, {})
    if preset in ("flow_grpo_fast", "mix_grpo"):  # whose windows need room
        sizes["sampler"] = {"steps": 8}
    made: dict[str, Any] = {
        "name": preset,
        "model": {"path": world, "device": device, "lora": {"rank": 4, "alpha": 8}},
        "algorithm": {"use": preset, **sizes},
        "data": {"train": f"{world}:train", "test": f"{world}:test", "prompts": 2, "group": 4},
        "rewards": [{"use": world}],
        "optimizer": {"lr": 1e-3},
        "train": {"iterations": 1, "updates": 2, "micro_batch": 4, "sample_batch": 8, "threads": 1},
    }
    if family == "reward":
        made["data"] |= {"train": f"{world}:pairs_test", "test": f"{world}:pairs_test", "group": 2}
    if family == "diffusion":
        made["model"]["call"] = {"guidance_scale": 1.0}
    for section, values in changes.items():
        made[section] = {**made.get(section, {}), **values}
    return made


@dataclass(frozen=True)
class Outcome:
    """An iteration's metrics without times, the trained weights after it, and what the device saw."""

    metrics: dict[str, float]
    weights: dict[str, Tensor]
    events: fakegpu.Events


def iteration(session: Session) -> Outcome:
    """One iteration of a session."""
    with watched() as events:
        metrics, _, _ = iterate(session, PhaseTimer())
    weights = {name: tensor.cpu().clone() for name, tensor in session.policy.weights.state().items()}
    return Outcome(settled(metrics), weights, events)


def first_iteration(settings: dict[str, Any]) -> Outcome:
    """The first iteration of a run of these settings."""
    torch.manual_seed(0)
    session = open_session(check_run(Config.of(settings)))
    with closing(session.rewards):
        return iteration(session)


def distance(one: dict[str, Any], other: dict[str, Any]) -> tuple[float, str]:
    """Largest difference of two outcomes' numbers, relative to 1 or the larger of them, and where it is."""
    worst = (0.0, "")
    assert one.keys() == other.keys(), one.keys() ^ other.keys()
    for name in one:
        a, b = (torch.as_tensor(x[name]).double() for x in (one, other))
        gap = (a - b).abs() / torch.maximum(a.abs(), b.abs()).clamp(min=1.0)
        gap = torch.where((a == b) | (a.isnan() & b.isnan()), 0.0, gap.nan_to_num(torch.inf, torch.inf))
        worst = max(worst, (float(gap.max()) if gap.numel() else 0.0, name))
    return worst
