"""A policy that has learned nothing: what the world two_walls begins with.

``python -m flowrl.models.control.untrained`` makes its base again.
"""

from __future__ import annotations

import torch
from torch import nn

from flowrl.models.control.load import new_network, save_control
from flowrl.models.control.network import ControlNetwork
from flowrl.models.control.policy import ControlConfig
from flowrl.models.family import embedded_model

CONFIG = ControlConfig(observation=2, action=2, width=64, depth=3)


def untrained(config: ControlConfig, seed: int = 0) -> ControlNetwork:
    """A network whose last layer is 0: as a flow its velocity is 0, so that an action is its noise z; as a Gaussian its
    mean is 0 and its deviation 1. Both begin as the same policy, N(0, 1)."""
    torch.manual_seed(seed)
    network = new_network(config)
    last = [layer for layer in network.body if isinstance(layer, nn.Linear)][-1]
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return network


def main() -> None:
    """Write the base of the world two_walls."""
    folder = embedded_model("two_walls", "control")
    assert folder is not None
    save_control(CONFIG, untrained(CONFIG), folder)


if __name__ == "__main__":
    main()
