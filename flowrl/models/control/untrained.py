"""Write an untrained policy to a folder.

``python -m flowrl.models.control.untrained gym:Pendulum-v1 --kind flow --width 128 --out FOLDER`` makes one for an
environment, where ``model: {path: "new:gym:Pendulum-v1"}`` is not the policy that is wanted; ``two_walls`` alone makes
that world's base again.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

from flowrl.models.control.load import save_control
from flowrl.models.control.network import Activation, Kind
from flowrl.models.control.new import SIZE, config_for, untrained
from flowrl.models.control.policy import ControlConfig
from flowrl.models.family import embedded_model

BASES = {"two_walls": ControlConfig(observation=2, action=2, width=64, depth=3)}
"""Of the worlds whose base has learned nothing."""


def main() -> None:
    """Write a policy."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("environment", help="a world, gym:NAME or path.py:make")
    options.add_argument("--out", type=Path, help="folder; that of a world's base by default")
    options.add_argument("--kind", choices=get_args(Kind), help="by default categorical for choices, else gaussian")
    options.add_argument("--activation", choices=get_args(Activation), default=SIZE["activation"])
    for name, size in (("width", SIZE["width"]), ("depth", SIZE["depth"]), ("chunk", 1), ("history", 1)):
        options.add_argument(f"--{name}", type=int, default=size)
    options.add_argument("--seed", type=int, default=0, help="of the weights")
    given = vars(options.parse_args())
    environment, seed, folder = given.pop("environment"), given.pop("seed"), given.pop("out")
    if folder is None and environment not in BASES:
        options.error(f"--out: a folder for the policy of {environment}")
    config = BASES[environment] if folder is None else config_for(environment, **given)
    folder = folder or embedded_model(environment, "control")
    assert folder is not None
    save_control(config, untrained(config, seed), folder)
    print(f"{config.kind}, {config.observation} numbers observed, {config.action} of an action, in {folder}")


if __name__ == "__main__":
    main()
