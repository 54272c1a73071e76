"""An environment for toys: a point on a plane whose place is the action itself, and rewards for being near the first of
three modes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch

from flowrl.models.control.beside import begin_flows
from flowrl.models.control.cloning import clone
from flowrl.models.control.load import CriticNetwork, choose_trained, new_network
from flowrl.models.control.network import ControlNetwork, NoiseNetwork
from flowrl.models.control.new import untrained
from flowrl.models.control.policy import ControlConfig, ControlPolicy
from flowrl.types import Acting, Beside, Prompt, Residual

MODES = np.array([[2.0, 0.0], [-2.0, 0.0], [0.0, 2.0]])
DECISIONS = 2
"""Of an episode that goes well; an action far from all modes ends it."""


class Plane:
    """An observation is the seed's noise and how many decisions were made. Each decision pays up to a half. Choices, of
    which one is 1, are places as well, the first of them nearer to the first mode."""

    observation_size, action_size = 2, 2

    def __init__(self, count: int) -> None:
        self._count = count

    def reset(self, seeds: Sequence[int], prompts: Sequence[Prompt]) -> np.ndarray:
        """[N, 2]"""
        self._own = np.array([np.random.default_rng(seed).normal() for seed in seeds])
        self._time = np.zeros(len(seeds))
        return self._observed(np.arange(len(seeds)))

    def step(self, actions: np.ndarray, rows: np.ndarray):
        """Rewards by distance; a second decision is cut by the time limit."""
        self._time[rows] += 1
        away = np.linalg.norm(actions[:, None] - MODES, axis=2)
        reward = 0.5 * np.exp(-(away[:, 0] ** 2) / 4)
        lost = away.min(axis=1) > 3
        known = {"success": (away[:, 0] < 1).astype(float), "mode": away.argmin(axis=1)}
        return self._observed(rows), reward, lost, self._time[rows] >= DECISIONS, known

    def _observed(self, rows: np.ndarray) -> np.ndarray:
        return np.stack([self._own[rows], self._time[rows]], axis=1)


def make(count: int) -> Plane:
    """As a config names it: ``tests.contract.toy_environment:make``."""
    return Plane(count)


CONFIG = ControlConfig(observation=2, action=2, chunk=1, width=32, depth=2, steps=8)


@cache
@torch.enable_grad()
def _cloned() -> ControlNetwork:
    generator = torch.Generator().manual_seed(0)
    observed = torch.randn(600, 2, generator=generator)
    modes = torch.from_numpy(MODES).float()[torch.randint(3, (600,), generator=generator)]
    chunks = modes + 0.3 * torch.randn(600, 2, generator=generator)
    return clone(CONFIG, observed, chunks[:, None], steps=300, batch=128, lr=5e-3)[0]


def toy_policy(
    critic: bool = True,
    noise: bool = False,
    residual: Residual | None = None,
    tuned_from: float | None = None,
    beside: Mapping[str, Beside] | None = None,
    acting: Acting | None = None,
    network: Mapping[str, Any] | None = None,
    **shape: Any,
) -> ControlPolicy:
    """A flow with three modes; at times above ``tuned_from`` by a copy of it that does not learn. With what else
    ``network`` and ``shape`` say of its configuration, and the flow's weights where they fit."""
    shape |= network or {}
    config = replace(CONFIG, tuned_from=tuned_from, residual=0.0 if residual is None else residual.scale)
    config = replace(config, beside=dict(beside or {}), acting=acting, **shape)
    config = replace(config, steps=2) if config.kind == "mip" else config
    made = new_network(config)
    own = made.state_dict()
    known = {name: value for name, value in _cloned().state_dict().items() if value.shape == own[name].shape}
    made.load_state_dict(own | known)
    begin_flows(made, [name for name, form in config.beside.items() if form.kind == "flow"])
    choose_trained(made, residual)
    read = 2 * config.history if residual is None else 4
    value = CriticNetwork(read, 32, 2) if critic else None
    levels = NoiseNetwork(2 * config.history, 2, config.chunk, 16, 1) if noise else None
    base = None if tuned_from is None else deepcopy(made)
    return ControlPolicy(config, made, value, None, torch.device("cpu"), levels, base)


def choosing_policy() -> ControlPolicy:
    """One that chooses between two actions, with even odds at first."""
    config = ControlConfig(kind="categorical", observation=2, action=2, width=256, depth=2)
    return ControlPolicy(config, untrained(config), CriticNetwork(2, 32, 2), None, torch.device("cpu"))


def demonstrations(count: int, seed: int) -> list[Prompt]:
    """Episodes in which both actions are near the first mode, as columns of prompts."""
    numbers = np.random.default_rng(seed)
    found = []
    for index in range(count):
        own, actions = numbers.normal(), MODES[0] + 0.3 * numbers.normal(size=(DECISIONS, 2))
        seen = [[own, float(time)] for time in range(DECISIONS)]
        found.append(Prompt("ab"[index % 2], index, {"observed": seen, "action": actions.tolist()}))
    return found
