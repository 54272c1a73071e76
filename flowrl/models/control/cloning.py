"""Behaviour cloning of demonstrations by flow matching: how the embedded worlds' control policies begin.

``python -m flowrl.models.control.cloning avoid`` makes a world's demonstrations and base again (5 s on one core).
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowrl.models.control.load import new_network, save_control
from flowrl.models.control.network import ControlNetwork
from flowrl.models.control.policy import ControlConfig
from flowrl.models.family import embedded_model

LOG_STD = -0.7
"""Logarithm of the deviation with which a method acts that takes the policy's mean: half of the demonstrations'."""


def chunks_of(action: Tensor, length: Tensor, chunk: int) -> Tensor:
    """[T, chunk, d] the actions that follow from each on, of episodes of these lengths one after another; beyond an end
    the last one is repeated."""
    ends = (length.long().cumsum(0) - 1).repeat_interleave(length.long())
    return action[torch.minimum(torch.arange(len(action))[:, None] + torch.arange(chunk), ends[:, None])]


def clone(
    config: ControlConfig,
    observed: Tensor,
    chunks: Tensor,
    *,
    hidden: tuple[slice, float] | None = None,
    steps: int = 1200,
    batch: int = 256,
    lr: float = 1e-3,
    seed: int = 0,
    statistics: ControlNetwork | None = None,
) -> tuple[ControlNetwork, float]:
    """A flow that imitates chunks [T, h, d] at observations [T, o], and its last loss: ``mean (v - (e - a))^2`` at
    uniform times, Adam, cosine schedule. ``hidden``: a part of the observation that is set to 0 in this share of the
    pairs, so that the policy also acts without it. ``statistics``: another policy's network, whose statistics are
    taken instead of the data's, as policies that are to be composed need (`flowrl.models.control.composed`)."""
    torch.manual_seed(seed)
    network = new_network(config)
    if statistics is None:
        network.observations.fit(observed)
        network.actions.fit(chunks.flatten(0, 1))
    else:
        network.observations.load_state_dict(statistics.observations.state_dict())
        network.actions.load_state_dict(statistics.actions.state_dict())
    targets = network.actions(chunks)
    learned = [parameter for name, parameter in network.named_parameters() if name != "log_std"]
    optimizer = torch.optim.Adam(learned, lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    value = torch.zeros(())
    for _ in range(steps):
        rows = torch.randint(len(observed), (batch,))
        seen, clean, t, noise = observed[rows], targets[rows], torch.rand(batch), torch.randn(batch, *chunks.shape[1:])
        if hidden is not None:
            seen[torch.rand(batch) < hidden[1], hidden[0]] = 0
        wide = t[:, None, None]
        value = (network(seen[:, None], (1 - wide) * clean + wide * noise, t) - (noise - clean)).square().mean()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        network.log_std.fill_(LOG_STD)
    return network, float(value.detach())


def main() -> None:
    """Make a world's demonstrations and base again."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("world")
    options.add_argument("--out", type=Path, help="another folder than the world's own")
    options.add_argument("--steps", type=int, default=1200)
    given = options.parse_args()
    world: Any = importlib.import_module(f"flowrl.worlds.{given.world}.demonstrations")
    print(world.write())
    observed, action, length = map(torch.from_numpy, world.demonstrations())
    config = ControlConfig(observation=observed.shape[1], action=action.shape[1], chunk=world.CHUNK)
    chunks = chunks_of(action, length, world.CHUNK)
    network, loss = clone(config, observed, chunks, hidden=world.HIDDEN, steps=given.steps)
    folder = given.out or embedded_model(given.world, "control")
    assert folder is not None
    save_control(config, network, folder)
    print(f"{len(observed)} pairs, last loss {loss:.4f}, in {folder}")


if __name__ == "__main__":
    main()
