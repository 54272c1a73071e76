"""Training of companions: an algorithm's further weights, by the optimisation pass that trains the policy, on its
samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler

from flowrl.config import Config
from flowrl.math.random import derive
from flowrl.models import LoadedPolicy
from flowrl.parts.algorithm import Algorithm
from flowrl.parts.companions import CompanionWeights
from flowrl.records.shards import below
from flowrl.runtime.optimizers import build_optimizer, optimizer_state, restore_optimizer
from flowrl.step import UNSCALED, UpdateSettings, improve
from flowrl.types import Memory, Rollout, Scores, Share

Optimizers = Mapping[str, torch.optim.Optimizer]
"""One for each companion, by its name. They hold the policy's parameters, in whose place a companion's weights stand
while it learns, and moments of their own."""
REPORTED = ("loss", "grad_norm")
"""What the log has of a companion's updates, as ``companion/<name>/<metric>``."""


def build_optimizers(config: Config, policy: LoadedPolicy, algorithm: Algorithm) -> dict[str, torch.optim.Optimizer]:
    """Those of an algorithm's companions, of the class and with the options of ``optimizer``."""
    return {
        each.name: build_optimizer(
            config.optimizer, [policy.parameters()], derive(config.train.seed, "optimizer", each.name)
        )
        for each in algorithm.companions
    }


def train_companions(
    policy: Any,
    optimizers: Optimizers,
    algorithm: Algorithm,
    rollout: Rollout,
    scores: Scores,
    memory: Memory,
    settings: UpdateSettings,
    scaler: GradScaler = UNSCALED,
    share: Share | None = None,
    done: int = 0,
) -> dict[str, float]:
    """Let every companion learn from a scored rollout; what the log has of it. The live weights stay as they are.

    ``settings`` are the policy's: a companion splits the samples among updates of its own number. ``done``: iterations
    before this one. Every process calls this, as `flowrl.step.improve`, and raises what that does.
    """
    found: dict[str, float] = {}
    for each in algorithm.companions:
        advantage = each.advantage(scores, memory)
        own = replace(settings, updates=each.updates, epochs=each.epochs, seed=derive(settings.seed, each.name))
        arguments = (learned_by(each, algorithm), rollout, scores, advantage, own, scaler, share)
        with policy.weights.learning(each.name):
            made = improve(policy, optimizers[each.name], *arguments)
        steps = each.updates * each.epochs
        for average in each.ema_weights:
            decay = average.decay((done + 1) * steps, done * steps)
            policy.weights.update_ema(average.name, decay, each.name)
        found |= {f"companion/{each.name}/{name}": made[name] for name in REPORTED}
    return found


def learned_by(companion: CompanionWeights, algorithm: Algorithm) -> Algorithm:
    """What a companion learns by: its own loss of the samples of an algorithm."""
    return Algorithm(
        sampler=algorithm.sampler,
        estimator=companion.estimator,
        advantage=companion.advantage,
        objective=companion.objective,
        regularizers=companion.regularizers,
        loss_weight=companion.loss_weight,
        redraw=companion.epochs > 1,
        families=algorithm.families,
    )


def state_of(optimizers: Optimizers) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """``(tensors, values)`` of all optimisers, by companion; the weights are among the policy's weight sets."""
    every = {name: optimizer_state(optimizer) for name, optimizer in optimizers.items()}
    tensors = {f"{name}/{key}": tensor for name, (moments, _) in every.items() for key, tensor in moments.items()}
    return tensors, {name: numbers for name, (_, numbers) in every.items() if numbers}


def restore_optimizers(optimizers: Optimizers, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
    """Continue from what `state_of` returned. Raises `KeyError` or `ValueError` for what does not fit."""
    for name, optimizer in optimizers.items():
        restore_optimizer(optimizer, below(tensors, f"{name}/"), values.get(name, {}))
