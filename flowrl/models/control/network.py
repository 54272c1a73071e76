"""Small networks over action chunks: a velocity, the noise of a DDPM, the mean of a Gaussian or the odds of choices; a
critic, and how much noise a step has."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

Kind = Literal["flow", "ddpm", "gaussian", "categorical", "mip"]
"""What a network answers: the velocity of a flow at (chunk, time), the noise in a DDPM's chunk; of the observation
alone the mean of a Gaussian, or the logits of d choices; the chunk itself, in two evaluations (MIP,
arXiv:2512.01809)."""
Activation = Literal["silu", "relu", "mish", "elu", "gelu", "tanh"]
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "silu": nn.SiLU,
    "relu": nn.ReLU,
    "mish": nn.Mish,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
}
TIME_WAVES = 4
"""Time features are ``cos(pi 2^k t)`` and ``sin(pi 2^k t)`` for so many k from 0."""
LONGEST_WAVE = 10000.0
LEAST_STD = 1e-3
RESIDUAL_WIDTH, RESIDUAL_DEPTH, RESIDUAL_LIMIT = 256, 2, 3.0
"""Of a residual; the standardised observations that it reads are cut so far from 0."""
SCORE_WIDTH, SCORE_DEPTH = 128, 3


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


def perceptron(sizes: list[int], activation: type[nn.Module], norm: bool = False) -> nn.Sequential:
    """Linear layers with an activation between them, ``norm``: of normalised numbers."""
    layers: list[nn.Module] = []
    for index, (wide, next_wide) in enumerate(pairwise(sizes)):
        last = index == len(sizes) - 2
        between = [] if last else [*([nn.LayerNorm(next_wide)] if norm else []), activation()]
        layers += [nn.Linear(wide, next_wide), *between]
    return nn.Sequential(*layers)


class ResidualBlock(nn.Module):
    """``x + l2(act(l1(act(x))))``, both inputs normalised first where ``norm`` says so (d3il and irom-princeton/dppo,
    model/common/mlp.py)."""

    def __init__(self, width: int, activation: type[nn.Module], norm: bool) -> None:
        super().__init__()
        self.l1, self.l2, self.act = nn.Linear(width, width), nn.Linear(width, width), activation()
        self.norm1 = nn.LayerNorm(width, eps=1e-6) if norm else nn.Identity()
        self.norm2 = nn.LayerNorm(width, eps=1e-6) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[n, width]"""
        inner = self.l1(self.act(self.norm1(x)))
        return x + self.l2(self.act(self.norm2(inner)))


class TimeEmbedding(nn.Module):
    """[n, size] of numbers [n]: sines and cosines of waves from 1 to 10000 long, then two layers of Mish, twice as wide
    between them (irom-princeton/dppo, model/diffusion/mlp_diffusion.py)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.layers = perceptron([size, 2 * size, size], nn.Mish)
        half = size // 2
        waves = torch.exp(torch.arange(half) * (-math.log(LONGEST_WAVE) / (half - 1)))
        self.register_buffer("waves", waves, persistent=False)

    waves: Tensor

    def forward(self, number: Tensor) -> Tensor:
        """[n, size]"""
        angle = number.to(self.waves)[:, None] * self.waves
        return self.layers(torch.cat([angle.sin(), angle.cos()], dim=1))


def orthogonal(body: nn.Sequential, last: float) -> None:
    """Orthogonal weights times the square root of 2, in the last layer times ``last``, and no biases, as CleanRL's."""
    linear = [layer for layer in body if isinstance(layer, nn.Linear)]
    for layer in linear:
        nn.init.orthogonal_(layer.weight, last if layer is linear[-1] else math.sqrt(2))
        nn.init.zeros_(layer.bias)


class ControlNetwork(nn.Module):
    """Of observations [n, history * o] to what a chunk [n, h, d] of standardised actions should be.

    ``log_std`` [h, d] is the logarithm of the deviation with which a Gaussian policy acts; flows have it for methods
    that act by their mean (`flowrl.samplers.gaussian`), and a policy of choices has none. ``residual``, where its scale
    is not 0, is what is added to every single action when it is executed; ``score`` moves it towards the data before.

    ``depth`` hidden layers of ``width`` numbers, of which with ``blocks`` all but the first are in residual blocks of
    two. ``encoder``: widths of layers that observations pass first. ``embedding``: size of a learned `TimeEmbedding`; 0
    has the waves of `TIME_WAVES`, which learn nothing. With ``conditions`` it also hears one of so many labels, or
    none, which is 0: each adds a vector of its own to what the first layer makes. They begin as 0, so that every answer
    is that without a label.
    """

    def __init__(
        self,
        kind: Kind,
        observation: int,
        action: int,
        chunk: int,
        history: int,
        width: int,
        depth: int,
        residual: float = 0.0,
        activation: Activation = "silu",
        blocks: bool = False,
        norm: bool = False,
        encoder: tuple[int, ...] = (),
        embedding: int = 0,
        conditions: int = 0,
    ) -> None:
        super().__init__()
        self.kind, self.shape = kind, (chunk, action)
        seen, act = observation * history, ACTIVATIONS[activation]
        self.observations, self.actions = Statistics(observation), Statistics(action)
        self.encoder = perceptron([seen, *encoder], act) if encoder else None
        self.embedding = TimeEmbedding(embedding) if embedding else None
        asked = 0 if kind in ("gaussian", "categorical") else chunk * action + (embedding or 2 * TIME_WAVES)
        enters = (encoder[-1] if encoder else seen) + asked
        if blocks:
            inner = [ResidualBlock(width, act, norm) for _ in range((depth - 1) // 2)]
            self.body = nn.Sequential(nn.Linear(enters, width), *inner, nn.Linear(width, chunk * action))
        else:
            self.body = perceptron([enters, *[width] * depth, chunk * action], act, norm)
        if kind != "categorical":
            self.log_std = nn.Parameter(torch.zeros(chunk, action))
        self.residual = ResidualNetwork(observation, action, residual) if residual else None
        self.labels = nn.Parameter(torch.zeros(conditions, width)) if conditions else None
        self.score: ScoreNetwork | None = None
        self.beside = nn.ModuleDict()
        """Networks that a method trains beside this one (`flowrl.types.Beside`)."""
        self.register_buffer("waves", math.pi * 2.0 ** torch.arange(TIME_WAVES), persistent=False)

    waves: Tensor

    def time_features(self, t: Tensor) -> Tensor:
        """[n, 2 * TIME_WAVES] of times [n]."""
        angle = t[:, None] * self.waves.to(t)
        return torch.cat([angle.cos(), angle.sin()], dim=1)

    def features(self, observed: Tensor) -> Tensor:
        """[n, history * o] standardised, of raw observations [n, history, o]."""
        return self.observations(observed).flatten(1)

    def residual_features(self, observed: Tensor, action: Tensor) -> Tensor:
        """[n, o + d]: what a residual reads, of raw observations [n, o] and the standardised actions [n, d] that the
        policy decided on."""
        return torch.cat([self.observations(observed).clamp(-RESIDUAL_LIMIT, RESIDUAL_LIMIT), action], dim=1)

    def forward(
        self, observed: Tensor, x: Tensor | None = None, t: Tensor | None = None, label: Tensor | None = None
    ) -> Tensor:
        """[n, h, d] at a chunk ``x`` [n, h, d] and times ``t`` [n] in [0, 1] (a DDPM's with an embedding: the number of
        its time, from 0, the cleanest), of observations [n, history, o], with labels [n] int64, 0 for none."""
        features = self.features(observed)
        seen = [features if self.encoder is None else self.encoder(features)]
        if self.kind not in ("gaussian", "categorical"):
            assert x is not None and t is not None
            time = self.time_features(t.to(x)) if self.embedding is None else self.embedding(t)
            seen += [x.flatten(1), time]
        if label is None:
            return self.body(torch.cat(seen, dim=1)).unflatten(1, self.shape)
        assert self.labels is not None
        heard = torch.cat([torch.zeros_like(self.labels[:1]), self.labels])[label]
        return self.body[1:](self.body[0](torch.cat(seen, dim=1)) + heard).unflatten(1, self.shape)


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


class ResidualNetwork(nn.Module):
    """What is added to a single action, ``scale * f(s, a)``: layers of ReLU, weights by their inputs (He et al.), the
    last ones 0 and without a bias, so that at first nothing is added (ankile/robust-rearrangement, 26 Nov 2024,
    src/models/residual.py and src/config/actor/residual_diffusion.yaml). ``log_std`` [d], the logarithm of the
    deviation with which it explores, does not learn."""

    log_std: Tensor

    def __init__(self, observation: int, action: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        sizes = [observation + action, *[RESIDUAL_WIDTH] * RESIDUAL_DEPTH]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # as the critic: the same in every run
            hidden = perceptron([*sizes, action], nn.ReLU)[:-1]
            last = nn.Linear(RESIDUAL_WIDTH, action, bias=False)
            for layer in hidden:
                if isinstance(layer, nn.Linear):
                    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                    nn.init.zeros_(layer.bias)
            nn.init.zeros_(last.weight)
        self.body = nn.Sequential(*hidden, last)
        self.register_buffer("log_std", torch.zeros(action))

    def forward(self, features: Tensor) -> Tensor:
        """[n, d], before the scale."""
        return self.body(features)


class ScoreNetwork(nn.Module):
    """The gradient by the action of the logarithm of the density of observations and single actions, both standardised,
    as `flowrl.models.control.scoring.fit` learns it: layers of SiLU."""

    def __init__(self, observation: int, action: int) -> None:
        super().__init__()
        self.body = perceptron([observation + action, *[SCORE_WIDTH] * SCORE_DEPTH, action], nn.SiLU)

    def forward(self, observed: Tensor, action: Tensor) -> Tensor:
        """[n, d]"""
        return self.body(torch.cat([observed, action], dim=1))


class ComposedNetwork(ControlNetwork):
    """``sum_i w_i f_i(s, x, t)`` of networks of one kind over the same chunks, each with its own statistics of
    observations; those of actions are the same for all (`flowrl.models.control.composed`)."""

    def __init__(self, parts: Sequence[ControlNetwork], weights: Sequence[float], residual: float = 0.0) -> None:
        nn.Module.__init__(self)
        first = parts[0]
        self.kind, self.shape, self.weights = first.kind, first.shape, tuple(weights)
        self.parts, self.beside = nn.ModuleList(parts), nn.ModuleDict()
        size = len(first.observations.mean)
        self.residual = ResidualNetwork(size, first.shape[1], residual) if residual else None
        self.labels = None
        self.score = None

    @property
    def observations(self) -> Statistics:
        """The first network's: what a critic and a residual read."""
        return self._first.observations

    @property
    def actions(self) -> Statistics:
        """Of all networks."""
        return self._first.actions

    @property
    def log_std(self) -> nn.Parameter:
        """The first network's."""
        return self._first.log_std

    @property
    def _first(self) -> Any:
        return self.parts[0]

    def time_features(self, t: Tensor) -> Tensor:
        """[n, 2 * TIME_WAVES], the same for all."""
        return self._first.time_features(t)

    def forward(
        self, observed: Tensor, x: Tensor | None = None, t: Tensor | None = None, label: Tensor | None = None
    ) -> Tensor:
        """[n, h, d], as of a single network, which hears no label; one of weight 0 is not asked."""
        asked = [(part, weight) for part, weight in zip(self.parts, self.weights, strict=True) if weight]
        return torch.stack([weight * part(observed, x, t) for part, weight in asked]).sum(dim=0)
