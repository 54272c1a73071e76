"""Small networks over action chunks: a velocity, the noise of a DDPM, the mean of a Gaussian or the odds of choices; a
critic, and how much noise a step has."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

Kind = Literal["flow", "ddpm", "gaussian", "categorical"]
"""What a network answers: the velocity of a flow at (chunk, time), the noise in a DDPM's chunk; of the observation alone
the mean of a Gaussian, or the logits of d choices."""
Activation = Literal["silu", "tanh"]
ACTIVATIONS: dict[Activation, type[nn.Module]] = {"silu": nn.SiLU, "tanh": nn.Tanh}
TIME_WAVES = 4
"""Time features are ``cos(pi 2^k t)`` and ``sin(pi 2^k t)`` for so many k from 0."""
LEAST_STD = 1e-3


class Statistics(nn.Module):
    """``(x - mean) / std`` with numbers that belong to the weights and never change while training, so that what was
    measured before an update is comparable with what is measured after it."""

    mean: Tensor
    std: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("std", torch.ones(size))

    def fit(self, values: Tensor) -> None:
        """Take those of data [T, size]; numbers that never change keep std 1."""
        std = values.std(dim=0, correction=0)
        self.mean.copy_(values.mean(dim=0))
        self.std.copy_(torch.where(std > LEAST_STD, std, torch.ones_like(std)))

    def forward(self, x: Tensor) -> Tensor:
        """Standardised values [..., size]."""
        return (x - self.mean) / self.std

    def undo(self, x: Tensor) -> Tensor:
        """Values in their own units."""
        return x * self.std + self.mean


def perceptron(sizes: list[int], activation: type[nn.Module]) -> nn.Sequential:
    """Linear layers with an activation between them."""
    layers: list[nn.Module] = []
    for index, (wide, next_wide) in enumerate(pairwise(sizes)):
        layers += [nn.Linear(wide, next_wide), *([activation()] if index < len(sizes) - 2 else [])]
    return nn.Sequential(*layers)


def orthogonal(body: nn.Sequential, last: float) -> None:
    """Orthogonal weights times the square root of 2, in the last layer times ``last``, and no biases, as CleanRL's."""
    linear = [layer for layer in body if isinstance(layer, nn.Linear)]
    for layer in linear:
        nn.init.orthogonal_(layer.weight, last if layer is linear[-1] else math.sqrt(2))
        nn.init.zeros_(layer.bias)


class ControlNetwork(nn.Module):
    """Of observations [n, history * o] to what a chunk [n, h, d] of standardised actions should be.

    ``log_std`` [h, d] is the logarithm of the deviation with which a Gaussian policy acts; flows have it for methods
    that act by their mean (`flowrl.samplers.gaussian`), and a policy of choices has none.
    """

    log_std: nn.Parameter

    def __init__(
        self,
        kind: Kind,
        observation: int,
        action: int,
        chunk: int,
        history: int,
        width: int,
        depth: int,
        activation: Activation = "silu",
    ) -> None:
        super().__init__()
        self.kind, self.shape = kind, (chunk, action)
        seen = observation * history
        self.observations, self.actions = Statistics(observation), Statistics(action)
        asked = chunk * action + 2 * TIME_WAVES if kind in ("flow", "ddpm") else 0
        self.body = perceptron([seen + asked, *[width] * depth, chunk * action], ACTIVATIONS[activation])
        if kind != "categorical":
            self.log_std = nn.Parameter(torch.zeros(chunk, action))
        self.register_buffer("waves", math.pi * 2.0 ** torch.arange(TIME_WAVES), persistent=False)

    waves: Tensor

    def time_features(self, t: Tensor) -> Tensor:
        """[n, 2 * TIME_WAVES] of times [n]."""
        angle = t[:, None] * self.waves.to(t)
        return torch.cat([angle.cos(), angle.sin()], dim=1)

    def features(self, observed: Tensor) -> Tensor:
        """[n, history * o] standardised, of raw observations [n, history, o]."""
        return self.observations(observed).flatten(1)

    def forward(self, observed: Tensor, x: Tensor | None = None, t: Tensor | None = None) -> Tensor:
        """[n, h, d] at a chunk ``x`` [n, h, d] and times ``t`` [n] in [0, 1], of observations [n, history, o]."""
        seen = [self.features(observed)]
        if self.kind in ("flow", "ddpm"):
            assert x is not None and t is not None
            seen += [x.flatten(1), self.time_features(t.to(x))]
        return self.body(torch.cat(seen, dim=1)).unflatten(1, self.shape)


class CriticNetwork(nn.Module):
    """The value of an observation: layers of tanh, orthogonal weights as in CleanRL's PPO, the last one small."""

    def __init__(self, observation: int, width: int, depth: int) -> None:
        super().__init__()
        self.body = perceptron([observation, *[width] * depth, 1], nn.Tanh)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # one and the same critic begins every run, as the rest of it follows from the config
            orthogonal(self.body, 0.01)

    def forward(self, features: Tensor) -> Tensor:
        """[n]"""
        return self.body(features)[:, 0]


class NoiseNetwork(nn.Module):
    """How much noise a step at some time has for an observation, between the least, 0, and the most, 1, for every
    number of a chunk [h, d]: ``(tanh(f(s, t)) + 1) / 2``, layers of tanh (ReinFlow/ReinFlow, model/flow/mlp_flow.py).
    Only training asks it: the deployed policy makes its steps without noise."""

    def __init__(self, observation: int, action: int, chunk: int, width: int, depth: int) -> None:
        super().__init__()
        self.shape = (chunk, action)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # as the critic: the same in every run
            self.body = perceptron([observation + 2 * TIME_WAVES, *[width] * depth, chunk * action], nn.Tanh)

    def forward(self, features: Tensor, time_features: Tensor) -> Tensor:
        """[n, h, d]"""
        answer = self.body(torch.cat([features, time_features], dim=1))
        return ((answer.tanh() + 1) / 2).unflatten(1, self.shape)
