"""Write an untrained policy to a folder.

``python -m flowrl.models.control.untrained gym:Pendulum-v1 --kind flow --width 128 --out FOLDER`` makes one for an
environment, where ``model: {path: "new:gym:Pendulum-v1"}`` is not the policy that is wanted; ``two_walls`` alone makes
that world's base again. ``avoid --kind flow --chunk 16 --execute 8 --history 2 --data avoid --out FOLDER`` makes one
that is to imitate, with the statistics of its demonstrations: a world's, or a .jsonl file's.
"""

from __future__ import annotations

import argparse
import importlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from flowrl.errors import UserError
from flowrl.models.control.load import check_shape, save_control
from flowrl.models.control.network import Activation, Kind
from flowrl.models.control.new import SIZE, config_for, untrained
from flowrl.models.control.policy import ControlConfig
from flowrl.models.family import embedded_model

BASES = {"two_walls": ControlConfig(observation=2, action=2, width=64, depth=3)}
"""Of the worlds whose base has learned nothing."""


def steps_of(source: str) -> tuple[Tensor, Tensor]:
    """Observations [T, o] and actions [T, d] of all demonstrations of a world, or of a .jsonl file with the columns
    ``observed`` and ``action``. Raises `UserError` where there are none."""
    if not source.endswith(".jsonl"):
        try:
            world: Any = importlib.import_module(f"flowrl.worlds.{source}.demonstrations")
        except ImportError:
            raise UserError(
                f"--data: {source!r} is no world with demonstrations; give avoid, or a .jsonl file"
            ) from None
        observed, action, _ = map(torch.from_numpy, world.demonstrations())
        return observed, action
    try:
        rows = [json.loads(line) for line in Path(source).read_text(encoding="utf-8").splitlines() if line.strip()]
        parts = [(row["observed"][: len(row["action"])], row["action"]) for row in rows]
        observed, action = (torch.tensor([step for row in part for step in row]) for part in zip(*parts, strict=True))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"--data {source}: a line is an episode with observed and action ({error})") from error
    return observed.float(), action.float()


def main() -> None:
    """Write a policy."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("environment", help="a world, gym:NAME or path.py:make")
    options.add_argument("--out", type=Path, help="folder; that of a world's base by default")
    options.add_argument("--kind", choices=get_args(Kind), help="by default categorical for choices, else gaussian")
    options.add_argument("--activation", choices=get_args(Activation), default=SIZE["activation"])
    for name, size in (
        ("width", SIZE["width"]),
        ("depth", SIZE["depth"]),
        ("chunk", 1),
        ("history", 1),
        ("past", 0),
        ("execute", 0),
    ):
        options.add_argument(f"--{name}", type=int, default=size)
    options.add_argument("--seed", type=int, default=0, help="of the weights")
    options.add_argument("--data", help="demonstrations whose statistics it takes: a world or a .jsonl file")
    given = vars(options.parse_args())
    environment, seed, folder, data = (given.pop(name) for name in ("environment", "seed", "out", "data"))
    if folder is None and environment not in BASES:
        options.error(f"--out: a folder for the policy of {environment}")
    config = BASES[environment] if folder is None else config_for(environment, **given)
    folder = folder or embedded_model(environment, "control")
    assert folder is not None
    config = replace(config, steps=2) if config.kind == "mip" else config
    try:
        check_shape(config, "the policy")
        network = untrained(config, seed)
        if data:
            observed, action = steps_of(data)
            network.observations.fit(observed)
            network.actions.fit(action)
    except (UserError, RuntimeError) as error:
        options.error(str(error))
    save_control(config, network, folder)
    print(f"{config.kind}, {config.observation} numbers observed, {config.action} of an action, in {folder}")


if __name__ == "__main__":
    main()
