"""Control policies that have learned nothing."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

import torch
from torch import nn

from flowrl.environments import open_environment
from flowrl.errors import UserError
from flowrl.models.control.beside import BesideNetwork, begin_flows
from flowrl.models.control.form import ControlConfig
from flowrl.models.control.network import ComposedNetwork, ControlNetwork, ScoreNetwork, orthogonal

SIZE = {"width": 64, "depth": 2, "activation": "tanh"}
"""Of a policy that is made for an environment: that of CleanRL's PPO."""


def new_network(config: ControlConfig) -> ControlNetwork:
    """An untrained network of this shape, as torch begins."""
    c = config
    form = (c.activation, c.blocks, c.norm, c.encoder, c.embedding)
    shape = (c.kind, c.observation, c.action, c.chunk, c.history)
    if c.policies:
        parts = [ControlNetwork(*shape, each.width, each.depth, 0.0, *form) for each in c.policies]
        network: ControlNetwork = ComposedNetwork(parts, [each.weight for each in c.policies], c.residual)
    else:
        network = ControlNetwork(*shape, c.width, c.depth, c.residual, *form, c.conditions)
    for name, wanted in c.beside.items():
        if wanted.kind == "flow":
            network.beside[name] = new_network(replace(c, beside={}, acting=None, residual=0.0, score=None))
        else:
            network.beside[name] = BesideNetwork(name, wanted, c.observation * c.history, c.chunk, c.action)
    if c.score is not None:
        network.score = ScoreNetwork(c.observation, c.action)
    return network


def untrained(config: ControlConfig, seed: int = 0) -> ControlNetwork:
    """A network that begins near N(0, 1), or near even odds. A flow's last layer is 0, so that an action is its noise
    z. Of a Gaussian or of choices the weights are orthogonal and the last layer small, as in CleanRL's PPO."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = new_network(config)
        if config.kind in ("gaussian", "categorical"):
            orthogonal(network.body, 0.01)
            return network
    last = [layer for layer in network.body if isinstance(layer, nn.Linear)][-1]
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    begin_flows(network, [name for name, form in config.beside.items() if form.kind == "flow"])
    return network


def config_for(environment: str, **shape: object) -> ControlConfig:
    """The shape of a policy for an environment: it has one row of it made and asks for its sizes. ``shape``: other
    fields than those of `SIZE`, and ``kind``: by default categorical where an action is one of n choices, else
    Gaussian. Raises `UserError` for an environment that there is not, and for choices of none."""
    with closing(open_environment(environment, 1)) as found:
        discrete, sizes = found.discrete, {"observation": found.observation_size, "action": found.action_size}
    kind = shape.pop("kind", None) or ("categorical" if discrete else "gaussian")
    if kind == "categorical" and not discrete:
        raise UserError(f"environment {environment} does not say that its actions are choices; take another kind")
    return ControlConfig(**{**SIZE, **shape, **sizes, "kind": kind})  # pyright: ignore[reportArgumentType]
